"""The command line as a function of its arguments: files, folders, reports, refusals."""

from __future__ import annotations

import json
import os
import stat
import threading
import wave
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cli_result import refused
from click.testing import CliRunner, Result

from wavenet_fast import Vocoder
from wavenet_fast.audio import read_mel, write_mel
from wavenet_fast.checkpoint import save_checkpoint
from wavenet_fast.cli import COMMANDS, cli
from wavenet_fast.fileio import replacing
from wavenet_fast.mel import MEL_PRESETS

HOP, BANDS, RATE = 6, 5, 8000


@pytest.fixture(scope="module")
def voice(tmp_path_factory, make_checkpoint) -> str:
    path = tmp_path_factory.mktemp("voices") / "small"
    save_checkpoint(path, make_checkpoint(license="none", sampling={"temperature": 0.7}))
    return str(path)


@pytest.fixture
def mels(tmp_path) -> Path:
    """A tree of three mels of different lengths."""
    rng = np.random.default_rng(5)
    for name, frames in (("a", 9), ("deep/b", 40), ("deep/er/c", 23)):
        path = tmp_path / "mels" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.standard_normal((BANDS, frames)).astype(np.float32))
    return tmp_path / "mels"


def run(*args: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args], input=stdin)


def sound(path: Path) -> tuple[int, np.ndarray]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")


def recording(path: Path, seconds: float = 0.1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave_ = 0.3 * np.sin(np.arange(int(seconds * rate)) * 0.3)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((wave_ * 32767).astype("<i2").tobytes())
    return path


# --- vocode -----------------------------------------------------------------------------------------------------


def test_vocode_writes_what_the_vocoder_makes(voice, mels, tmp_path):
    out = tmp_path / "a.wav"
    result = run("vocode", mels / "a.npy", "-o", out, "--voice", voice, "--seed", 7, "--json")
    assert result.exit_code == 0, result.output
    expected = Vocoder.from_pretrained(voice)(np.load(mels / "a.npy"), seed=7)
    rate, samples = sound(out)
    assert rate == RATE and len(samples) == 9 * HOP
    assert np.abs(samples / 32767 - expected).max() <= 0.5 / 32767 + 1e-6
    told = json.loads(result.stdout)
    assert (told["done"], told["failed"], told["seed"], told["temperature"]) == (1, 0, 7, 0.7)
    assert told["files"][0]["samples"] == 9 * HOP and told["rtf"] > 0
    assert told["backend"] in ("cpu", "reference") and told["isa"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_folder_keeps_its_tree_and_batching_changes_no_sample(voice, mels, tmp_path, batch):
    out = tmp_path / f"out{batch}"
    assert run("vocode", mels, "-o", out, "--voice", voice, "--batch", batch, "--seed", 3).exit_code == 0
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == ["a.wav", "deep/b.wav", "deep/er/c.wav"]
    voc = Vocoder.from_pretrained(voice)
    for name in names:
        expected = voc(np.load(mels / name.replace(".wav", ".npy")), seed=3)
        assert np.array_equal(sound(out / name)[1], np.rint(expected * 32767).astype("<i2"))


def test_a_bad_file_is_reported_and_the_rest_done(voice, mels, tmp_path):
    (mels / "deep" / "empty.npy").write_bytes(b"")
    (mels / "garbage.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.save(mels / "transposed.npy", np.zeros((9, BANDS), np.float32))
    np.save(mels / "nan.npy", np.full((BANDS, 3), np.nan, np.float32))
    out, report = tmp_path / "out", tmp_path / "report.json"
    result = run("vocode", mels, "-o", out, "--voice", voice, "--report", report, "--batch", 2)
    refused(result, "empty.npy", "garbage.npz", "transposed.npy", "nan.npy", "3 done", "4 failed", code=3)
    assert len(list(out.rglob("*.wav"))) == 3 and not [p for p in out.rglob("*") if p.is_file() and p.suffix != ".wav"]
    told = json.loads(report.read_text())
    assert (told["done"], told["failed"]) == (3, 4)
    assert {Path(f["input"]).name for f in told["files"] if f["status"] == "failed" and f["error"]} == {
        "empty.npy", "garbage.npz", "transposed.npy", "nan.npy",
    }  # fmt: skip


def test_a_second_run_does_only_what_is_missing(voice, mels, tmp_path):
    out = tmp_path / "out"
    run("vocode", mels, "-o", out, "--voice", voice)
    (out / "deep" / "b.wav").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.wav")}
    result = run("vocode", mels, "-o", out, "--voice", voice)
    assert result.exit_code == 0 and "1 done, 2 skipped" in result.stderr
    assert (out / "deep" / "b.wav").exists()
    assert before == {p: p.stat().st_mtime_ns for p in before}
    run("vocode", mels, "-o", out, "--voice", voice, "--overwrite")
    assert all(p.stat().st_mtime_ns != t for p, t in before.items())


def test_missing_files_among_several(voice, mels, tmp_path):
    result = run("vocode", mels / "a.npy", mels / "gone.npy", "-o", tmp_path / "out", "--voice", voice)
    refused(result, "gone.npy", code=3)
    assert (tmp_path / "out" / "a.wav").exists()


def test_two_inputs_with_one_answer(voice, mels, tmp_path):
    write_mel(mels / "a.npz", np.zeros((BANDS, 2), np.float32), None)
    result = run("vocode", mels, "-o", tmp_path / "out", "--voice", voice)
    refused(result, "already the answer to", code=3)


def test_a_failed_run_leaves_the_good_file_that_was_there(voice, mels, tmp_path):
    out = tmp_path / "good.wav"
    run("vocode", mels / "a.npy", "-o", out, "--voice", voice)
    before = out.read_bytes()
    np.save(mels / "nan.npy", np.full((BANDS, 3), np.nan, np.float32))
    refused(run("vocode", mels / "nan.npy", "-o", out, "--voice", voice), "nan", "frame 0")
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["good.wav"]


def test_an_empty_mel_is_an_empty_sound(voice, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((BANDS, 0), np.float32))
    assert run("vocode", tmp_path / "none.npy", "-o", tmp_path / "none.wav", "--voice", voice).exit_code == 0
    assert len(sound(tmp_path / "none.wav")[1]) == 0


def test_layout_and_raw_formats(voice, mels, tmp_path):
    mel = np.load(mels / "a.npy")
    np.save(tmp_path / "tc.npy", np.ascontiguousarray(mel.T))
    expected = Vocoder.from_pretrained(voice)(mel)
    args = ("vocode", tmp_path / "tc.npy", "--voice", voice, "--layout", "tc")
    assert run(*args, "-o", tmp_path / "x.raw", "--format", "f32le").exit_code == 0
    assert np.array_equal(np.fromfile(tmp_path / "x.raw", "<f4"), expected)
    assert run(*args, "-o", tmp_path / "y.raw", "--format", "s16le").exit_code == 0
    assert np.array_equal(np.fromfile(tmp_path / "y.raw", "<i2"), np.rint(expected * 32767))
    refused(run("vocode", tmp_path / "tc.npy", "--voice", voice, "-o", tmp_path / "z.wav"), "looks transposed")


def test_speakers(make_config, make_checkpoint, mels, tmp_path):
    from wavenet_fast.config import Speakers

    config = make_config(speakers=Speakers(channels=3, count=4))
    save_checkpoint(tmp_path / "many", make_checkpoint(config))
    args = ("vocode", mels / "a.npy", "--voice", tmp_path / "many")
    voc = Vocoder.from_pretrained(tmp_path / "many")
    assert run(*args, "-o", tmp_path / "2.wav", "--speaker", 2).exit_code == 0
    expected = voc(np.load(mels / "a.npy"), speaker=2)
    assert np.array_equal(sound(tmp_path / "2.wav")[1], np.rint(expected * 32767))
    np.save(tmp_path / "vector.npy", np.array([0.5, -1, 2], np.float32))
    assert run(*args, "-o", tmp_path / "v.wav", "--speaker", tmp_path / "vector.npy").exit_code == 0
    expected = voc(np.load(mels / "a.npy"), speaker=np.load(tmp_path / "vector.npy"))
    assert np.array_equal(sound(tmp_path / "v.wav")[1], np.rint(expected * 32767))
    refused(run(*args, "-o", tmp_path / "n.wav"), "speaker id 0 … 3")
    refused(run(*args, "-o", tmp_path / "n.wav", "--speaker", 9), "speakers 0 … 3")
    refused(run(*args, "-o", tmp_path / "n.wav", "--speaker", "Ann"), ".npy")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--seed", -1), ("seed", "-1")),
        (("--seed", 2**64), ("seed",)),
        (("--seed", "x"), ("--seed",)),
        (("--temperature", 0), ("temperature",)),
        (("--temperature", "nan"), ("temperature",)),
        (("--backend", "gpu"), ("'gpu'", "'cpu'")),
        (("--device", "cuda"), ("'cuda'",)),
        (("--dtype", "int3"), ("'int3'", "'fp32'")),
        (("--threads", 0), ("threads",)),
        (("--speaker", 1), ("speaker",)),
        (("--voice", "nobody"), ("nobody", "Bundled voices")),
        (("--format", "mp3"), ("wav", "s16le")),
        (("--batch", 0), ("--batch",)),
        (("--no-such-option",), ("No such option",)),
    ],
)
def test_options_that_make_no_sense(voice, mels, tmp_path, extra, words):
    out = tmp_path / "x.wav"
    refused(run("vocode", mels / "a.npy", "-o", out, "--voice", voice, *extra), *words)
    assert not out.exists()


def test_places_that_cannot_be_written(voice, mels, tmp_path):
    (tmp_path / "folder.wav").mkdir()
    args = ("vocode", mels / "a.npy", "--voice", voice, "-o")
    refused(run(*args, tmp_path / "folder.wav"), "is a folder")
    refused(run(*args, mels / "a.npy"), "is the input itself")
    refused(run(*args, mels / "a.npy" / "x.wav"), "a.npy")
    refused(run(*args, "/proc/nowhere/x.wav"), "/proc/nowhere")
    refused(run("vocode", mels, "--voice", voice, "-o", "-"), "one answer")
    refused(run("vocode", mels, "--voice", voice, "-o", mels / "a.npy"), "is a file")
    refused(run("vocode", "-", mels, "--voice", voice, "-o", tmp_path / "o"), "stands alone")
    (tmp_path / "nothing").mkdir()
    refused(run("vocode", tmp_path / "nothing", "--voice", voice, "-o", tmp_path / "o"), "no mel files")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_a_sentence(voice, mels):
    refused(run("vocode", mels / "a.npy", "--voice", voice, "-o", "/dev/full"), "no space left")


def test_what_stdin_may_hold(voice, tmp_path):
    out = tmp_path / "x.wav"
    refused(run("vocode", "-", "-o", out, "--voice", voice, stdin=b""), "stdin is empty")
    refused(run("vocode", "-", "-o", out, "--voice", voice, stdin=b"RIFF1234"), "begins with", "npz")
    refused(run("vocode", "-", "-o", f"{tmp_path}/", "--voice", voice, stdin=b""), "no name")


# --- mel, resynth -----------------------------------------------------------------------------------------------


def test_mel_files_carry_their_recipe_and_vocode_checks_it(voice, tmp_path):
    wav, mel = recording(tmp_path / "r.wav"), tmp_path / "r.npz"
    assert run("mel", wav, "-o", mel, "--voice", voice).exit_code == 0
    voc, found = Vocoder.from_pretrained(voice), read_mel(mel)
    assert found.spec == voc.mel_spec
    assert np.array_equal(found.mel, voc.mel(sound(wav)[1].astype(np.float32) / 32768, RATE))
    assert run("vocode", mel, "-o", tmp_path / "o.wav", "--voice", voice).exit_code == 0
    write_mel(mel, found.mel, msgspec.structs.replace(found.spec, center=False, fmin=50.0))
    result = run("vocode", mel, "-o", tmp_path / "p.wav", "--voice", voice)
    refused(result, "recipe", "fmin is 50.0, wanted 0.0", "center is False, wanted True")


def test_resynth_is_mel_then_vocode(voice, tmp_path):
    wav = recording(tmp_path / "in" / "r.wav")
    run("mel", wav, "-o", tmp_path / "r.npz", "--voice", voice)
    run("vocode", tmp_path / "r.npz", "-o", tmp_path / "two.wav", "--voice", voice, "--seed", 4)
    assert run("resynth", wav, "-o", tmp_path / "one.wav", "--voice", voice, "--seed", 4).exit_code == 0
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    result = run("resynth", tmp_path / "in", "-o", tmp_path / "in", "--voice", voice)
    refused(result, "would replace it", code=3)


def test_an_output_folder_below_the_input_is_not_read(voice, tmp_path):
    recording(tmp_path / "in" / "r.wav")
    for _ in range(2):
        assert run("resynth", tmp_path / "in", "-o", tmp_path / "in" / "out", "--voice", voice).exit_code == 0
    assert [p.name for p in (tmp_path / "in" / "out").rglob("*")] == ["r.wav"]


def test_another_sample_rate_is_refused_or_converted(voice, tmp_path):
    wav = recording(tmp_path / "r.wav", rate=11025)
    for command in ("mel", "resynth"):
        out = tmp_path / f"{command}{'.npz' if command == 'mel' else '.wav'}"
        refused(run(command, wav, "-o", out, "--voice", voice), "--resample", "11025", str(RATE))
        assert not out.exists()
        assert run(command, wav, "-o", out, "--voice", voice, "--resample").exit_code == 0


def test_presets(tmp_path):
    wav = recording(tmp_path / "r.wav", rate=16000)
    assert run("mel", wav, "-o", tmp_path / "r.npz", "--preset", "nv-wavenet-16k").exit_code == 0
    assert read_mel(tmp_path / "r.npz").spec == MEL_PRESETS["nv-wavenet-16k"]
    refused(run("mel", wav, "-o", tmp_path / "x.npz", "--preset", "x"), "nv-wavenet-16k")
    refused(run("mel", wav, "-o", tmp_path / "x.npz", "--preset", "x", "--voice", "y"), "one of them")


def test_sound_that_cannot_be_used(voice, tmp_path):
    for name, data in (("empty.wav", b""), ("text.wav", b"hello, this is no sound at all"), ("header.wav", b"RIFF")):
        (tmp_path / name).write_bytes(data)
        refused(run("mel", tmp_path / name, "-o", tmp_path / "x.npz", "--voice", voice), name)
    refused(run("mel", recording(tmp_path / "none.wav", 0), "-o", tmp_path / "x.npz", "--voice", voice), "none.wav")
    assert not (tmp_path / "x.npz").exists()


# --- the rest ---------------------------------------------------------------------------------------------------


def test_inspect(voice, tmp_path):
    told = json.loads(run("inspect", voice, "--json").stdout)
    assert told["sample_rate_hz"] == RATE and told["temperature"] == 0.7
    assert "8000" in run("inspect", voice).stdout
    refused(run("inspect", tmp_path), "config.json")
    (tmp_path / "config.json").write_text("{")
    refused(run("inspect", tmp_path, "--json"), "config.json")


def test_doctor(monkeypatch):
    told = json.loads(run("doctor", "--json").stdout)
    assert set(told["backends"]) >= {"cpu", "reference"}
    for backend in told["backends"].values():
        assert backend["available"] == (backend["why_not"] is None)
    cpu, reference = told["backends"]["cpu"], told["backends"]["reference"]
    assert cpu["auto_dtype"] in ("fp32", "bf16", None) and reference["auto_dtype"] in ("fp32", None)
    if cpu["available"]:
        assert cpu["auto_dtype_where_int8_is_cheap"] == "int8" and "int8 for voices" in run("doctor").stdout
    if reference["available"]:
        assert reference["auto_dtype_where_int8_is_cheap"] == "fp32"
    assert told["versions"]["numpy"] == np.__version__
    assert told["machine"]["usable_cores"] >= 1
    assert "backends" in run("doctor").stdout
    if told["backends"]["cpu"]["available"]:
        assert told["isa"]["chosen"] in told["isa"]["possible"]
        assert told["sharing"]["plans"]["fits"]["1"] == {"teams": 1, "size": 1, "width": 1, "ahead": 8}


def test_doctor_tells_how_threads_share_the_work(monkeypatch):
    pytest.importorskip("wavenet_fast._engine", reason="the engine is not built")
    monkeypatch.setenv("WAVENET_FAST_SPLIT", "rows")
    plan = json.loads(run("doctor", "--json").stdout)["sharing"]["plans"]["fits"]["16"]
    assert plan["teams"] == 1 and plan["size"] >= 1 and plan["width"] == 16
    monkeypatch.setenv("WAVENET_FAST_SPLIT", "halves")
    problem = "WAVENET_FAST_SPLIT is 'halves'; the cpu backend offers auto, streams, rows"
    refused(run("demo"), problem)
    told = run("doctor").stdout
    assert f"threads           {problem}" in told and "WAVENET_FAST_SPLIT  halves" in told


def test_what_is_written_into_a_pipe_leaves_it_a_pipe(tmp_path):
    """And so do devices: a file that took their place would be all that is left of them."""
    pipe = tmp_path / "told.json"
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as file:
        file.write(b"{}")
    reader.join()
    assert found == [b"{}"] and stat.S_ISFIFO(os.stat(pipe).st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_train_without_torch_names_the_extra(monkeypatch, tmp_path):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    result = run("train", "--data", tmp_path, "--out", tmp_path / "v")
    refused(result, 'pip install "wavenet-fast[train]"')


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout


def test_unknown_commands():
    refused(run("sing"), "sing")
    assert run("--version").stdout.startswith("wavenet-fast ")


def test_no_option_is_declared_twice():
    """click only warns about it, and on every call."""
    for name in COMMANDS:
        declared = [word for option in cli.get_command(None, name).params for word in option.opts]
        assert len(declared) == len(set(declared)), name


def test_a_broken_archive_does_not_end_a_run(voice, mels, tmp_path):
    """Compressed by a method that zipfile knows and NumPy does not use, then damaged."""
    with zipfile.ZipFile(mels / "aa.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(mels / "a.npy", "mel.npy")
    data = bytearray((mels / "aa.npz").read_bytes())
    data[45:60] = bytes(15)
    (mels / "aa.npz").write_bytes(data)
    result = run("vocode", mels, "-o", tmp_path / "out", "--voice", voice)
    refused(result, "aa.npz: is a damaged archive", "3 done, 1 failed", code=3)


def test_one_file_too_large_for_memory_does_not_end_a_run(voice, mels, tmp_path, monkeypatch):
    def scarce(path):
        if path.name == "a.npy":
            raise MemoryError
        return read_mel(path)

    monkeypatch.setattr("wavenet_fast.audio.read_mel", scarce)
    result = run("vocode", mels, "-o", tmp_path / "out", "--voice", voice)
    refused(result, "a.npy: not enough memory", "2 done, 1 failed", code=3)


@pytest.mark.skipif(os.name == "nt", reason="names are bytes")
def test_names_that_are_no_text(voice, mels, tmp_path):
    """Latin-1 names from an old disk, good and bad, in every report."""
    odd = mels / os.fsdecode(b"\xe9t\xe9.npy")
    (mels / "a.npy").rename(odd)
    (mels / os.fsdecode(b"bad\xff.npy")).write_bytes(b"junk")
    (report := tmp_path / "report.json").write_text("an older report")
    result = run("vocode", mels, "-o", tmp_path / "out", "--voice", voice, "--report", report, "--json")
    assert result.exit_code == 3, result.output
    assert (tmp_path / "out" / odd.with_suffix(".wav").name).exists()
    told = json.loads(report.read_text())
    assert told == json.loads(result.stdout) and (told["done"], told["failed"]) == (3, 1)


def test_a_report_replaces_no_mel_and_no_sound(voice, mels, tmp_path):
    before = (mels / "a.npy").read_bytes()
    for report, words in [
        (mels / "a.npy", "an input or an answer"), (tmp_path / "x.wav", "an input or an answer"),
        (tmp_path, "a folder"), (tmp_path / "no" / "r.json", "lies in none"),
    ]:  # fmt: skip
        result = run("vocode", mels / "a.npy", "-o", tmp_path / "x.wav", "--voice", voice, "--report", report)
        refused(result, words)
    assert (mels / "a.npy").read_bytes() == before and not (tmp_path / "x.wav").exists()


def test_empty_names_are_refused(voice, mels, tmp_path, monkeypatch):
    """An unset variable of the shell must not mean the current folder."""
    monkeypatch.chdir(mels)
    refused(run("vocode", "", "-o", tmp_path / "o", "--voice", voice), "empty name")
    refused(run("vocode", mels / "a.npy", "-o", "", "--voice", voice), "empty name")
    refused(run("inspect", ""), "name is empty")


def test_a_name_that_says_another_format_is_refused(voice, mels, tmp_path):
    for name, extra in [("x.flac", []), ("x.mp3", []), ("x.wav", ["--format", "s16le"])]:
        result = run("vocode", mels / "a.npy", "-o", tmp_path / name, "--voice", voice, *extra)
        refused(result, "under another name")
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("given", ["²", "--5", "1.5"])
def test_speaker_ids_that_are_none(voice, mels, tmp_path, given):
    refused(run("vocode", mels / "a.npy", "-o", tmp_path / "x.wav", "--voice", voice, f"--speaker={given}"), "speaker")


def test_a_speaker_file_that_is_no_vector(voice, mels, tmp_path):
    (tmp_path / "s.npy").write_bytes(b"junk")
    result = run("vocode", mels / "a.npy", "-o", tmp_path / "x.wav", "--voice", voice, "--speaker", tmp_path / "s.npy")
    refused(result, "s.npy", "no .npy file")
    assert "pickle" not in result.stderr


def test_a_transposed_mel_is_named_with_the_option_that_helps(voice, mels, tmp_path):
    np.save(tmp_path / "turned.npy", np.load(mels / "a.npy").T)
    result = run("vocode", tmp_path / "turned.npy", "-o", tmp_path / "x.wav", "--voice", voice)
    refused(result, "turned.npy", "transposed", "--layout tc")
