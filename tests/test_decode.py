"""`wavenet-fast-decode` as ParallelWaveGAN's recipes call it, and `vocode --mel-from`."""

from __future__ import annotations

import io
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from cli_result import refused
from click.testing import CliRunner, Result
from msgspec.structs import replace

from wavenet_fast import Vocoder, convert_mel
from wavenet_fast.audio import to_pcm16, write_mel
from wavenet_fast.checkpoint import Checkpoint, save_checkpoint
from wavenet_fast.cli import cli
from wavenet_fast.cli.decode import decode_command
from wavenet_fast.cli.files import Job, Plan
from wavenet_fast.cli.report import Progress

HOP, BANDS, RATE = 6, 5, 8000
MEAN, SCALE = np.linspace(-2, 1, BANDS, dtype=np.float32), np.linspace(0.5, 2, BANDS, dtype=np.float32)
NAMES = {"b": 40, "a": 9, "c": 23}


@pytest.fixture(scope="module")
def voice(tmp_path_factory, make_checkpoint) -> str:
    path = tmp_path_factory.mktemp("voices") / "plain"
    save_checkpoint(path, make_checkpoint())
    return str(path)


@pytest.fixture(scope="module")
def normalised(tmp_path_factory, make_checkpoint) -> str:
    """A voice that takes mels normalised by mean and variance, like those of ParallelWaveGAN's recipes."""
    path, plain = tmp_path_factory.mktemp("voices") / "normalised", make_checkpoint()
    weights = {**plain.weights, "mel.mean": MEAN, "mel.scale": SCALE}
    save_checkpoint(path, Checkpoint(plain.config, replace(plain.mel, log="log10", normalize="meanvar"), weights))
    return str(path)


@pytest.fixture(scope="module")
def mels() -> dict[str, np.ndarray]:
    """Features (F, M)."""
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal((frames, BANDS)).astype(np.float32) for name, frames in NAMES.items()}


@pytest.fixture
def dump(tmp_path, mels) -> Path:
    folder = tmp_path / "dump"
    for name, mel in mels.items():
        path = folder / ("deep" if name == "c" else "") / f"{name}-feats.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, mel)
        np.save(path.with_name(f"{name}-wave.npy"), mel)
    return folder


def decode(*args: object) -> Result:
    return CliRunner().invoke(decode_command, [str(a) for a in args], prog_name="wavenet-fast-decode")


def pcm(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def expect(folder: Path, voice: str, mels: dict[str, np.ndarray], **options: object) -> None:
    """Exactly the files of `mels`, (F, M), and in them what a call of the voice makes."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}_gen.wav" for name in mels)
    voc = Vocoder.from_pretrained(voice)
    for name, mel in mels.items():
        np.testing.assert_array_equal(pcm(folder / f"{name}_gen.wav"), to_pcm16(voc(mel.T, **options)))


@pytest.mark.filterwarnings("ignore:the mel's median")
def test_dumped_arrays(voice, dump, mels, tmp_path):
    out = tmp_path / "made" / "wav"
    result = decode("--checkpoint", voice, "--dumpdir", dump, "--outdir", out, "--seed", 3, "--batch", 2)
    assert result.exit_code == 0, result.output
    expect(out, voice, mels, seed=3)
    assert "3 done" in result.stderr and "real-time factor" in result.stderr
    again = decode("--checkpoint", voice, "--dumpdir", dump, "--outdir", out, "--seed", 4, "--verbose", 0)
    assert again.exit_code == 0 and again.output == ""
    expect(out, voice, mels, seed=4)


def test_the_bar_tells_the_real_time_factor(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(Plan(True, [Job(None, None)] * 2), quiet=False) as progress:
        progress.begin(2.0)
        progress.advance(0.5, 0.25)
        progress.advance(1.5, 0.5)
        progress.bar.refresh()
        assert "RTF=0.250]" in sys.stderr.getvalue() and "1.0/2 files" in sys.stderr.getvalue()


def test_the_flags_of_parallel_wavegan(voice, dump, tmp_path):
    result = decode(
        "--checkpoint", voice, "--dumpdir", dump, "--outdir", tmp_path / "out", "--config", tmp_path / "config.yml",
        "--verbose", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "is not read: the voice" in result.stderr and "Vocoder(8000 Hz" in result.stderr
    assert {o for p in decode_command.params for o in p.opts} >= {
        "--scp", "--feats-scp", "--dumpdir", "--outdir", "--checkpoint", "--config", "--normalize-before", "--verbose",
    }  # fmt: skip


def test_normalize_before_uses_the_voice_s_statistics(normalised, voice, mels, tmp_path):
    (tmp_path / "dump").mkdir()
    raw = mels["b"] * SCALE + MEAN
    np.save(tmp_path / "dump" / "b-feats.npy", raw)
    arguments = ("--dumpdir", tmp_path / "dump", "--outdir", tmp_path / "out")
    assert decode("--checkpoint", normalised, *arguments, "--normalize-before").exit_code == 0
    own = ((raw.astype(np.float64) - MEAN) / SCALE).astype(np.float32)
    expect(tmp_path / "out", normalised, {"b": own})
    result = decode("--checkpoint", voice, *arguments, "--normalize-before")
    refused(result, "no mean and scale", "leave it out", code=3)
    refused(
        decode("--checkpoint", voice, *arguments, "--normalize-before", "--mel-from", "db"), "--mel-from", "one of them"
    )


@pytest.mark.filterwarnings("ignore:the mel's median")
def test_mels_of_another_recipe_are_converted(normalised, voice, dump, mels, tmp_path):
    for name in (normalised, voice):
        out = tmp_path / Path(name).name
        result = decode("--checkpoint", name, "--dumpdir", dump, "--outdir", out, "--mel-from", "db")
        assert result.exit_code == 0, result.output
        voc = Vocoder.from_pretrained(name)
        expect(out, name, {n: convert_mel(mel, "db", voc, layout="tc") for n, mel in mels.items()})


def test_lists_of_arrays_and_hdf5(voice, dump, mels, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    for name in "ab":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["feats"] = mels[name]
            file["other"] = mels["c"]
            file["wave"] = np.zeros(3, np.float32)
    lines = [f"x1 {dump / 'b-feats.npy'}", "", f"x2  {tmp_path / 'a.h5'}", f"x3 {tmp_path / 'a.h5'}:other"]
    (tmp_path / "feats.scp").write_text("\n".join(lines) + "\n")
    result = decode("--checkpoint", voice, "--scp", tmp_path / "feats.scp", "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    expect(tmp_path / "out", voice, {"x1": mels["b"], "x2": mels["a"], "x3": mels["c"]})
    (tmp_path / "h5").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.h5").rename(tmp_path / "h5" / f"{name}.h5")
    result = decode("--checkpoint", voice, "--dumpdir", tmp_path / "h5", "--outdir", tmp_path / "out2")
    assert result.exit_code == 0, result.output
    expect(tmp_path / "out2", voice, {"a": mels["a"], "b": mels["b"]})


def test_lists_of_kaldi_archives(voice, mels, tmp_path):
    kaldiio = pytest.importorskip("kaldiio", reason="kaldiio is not installed")
    kaldiio.save_ark(str(tmp_path / "feats.ark"), mels, scp=str(tmp_path / "feats.scp"))
    result = decode("--checkpoint", voice, "--feats-scp", tmp_path / "feats.scp", "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    expect(tmp_path / "out", voice, mels)


def test_files_that_cannot_be_used_do_not_stop_the_rest(voice, dump, mels, tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed")
    pytest.importorskip("kaldiio", reason="kaldiio is not installed")
    np.save(tmp_path / "turned.npy", mels["a"].T)
    (tmp_path / "noise.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "noise.ark").write_bytes(os.urandom(100))
    marker = tmp_path / "ran"
    lines = {
        "good": dump / "a-feats.npy",
        "turned": tmp_path / "turned.npy",
        "missing": tmp_path / "nothing.npy",
        "noise": tmp_path / "noise.h5",
        "gone": tmp_path / "gone.h5",
        "ark": f"{tmp_path / 'noise.ark'}:7",
        "command": f"touch {marker} |",
    }
    (tmp_path / "feats.scp").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    result = decode("--checkpoint", voice, "--scp", tmp_path / "feats.scp", "--outdir", tmp_path / "out")
    refused(
        result, "looks transposed", "nothing.npy: cannot be read", "noise.h5: cannot be read",
        "gone.h5: cannot be read", "noise.ark:7: cannot be read", "is a command, and none is run", code=3,
    )  # fmt: skip
    expect(tmp_path / "out", voice, {"good": mels["a"]})
    assert not marker.exists()


def test_missing_libraries_are_named(voice, tmp_path, monkeypatch):
    for name in ("h5py", "kaldiio"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "feats.scp").write_text("a x.h5\nb x.ark:3\n")
    result = decode("--checkpoint", voice, "--scp", tmp_path / "feats.scp", "--outdir", tmp_path / "out")
    refused(result, "x.h5: needs h5py", "x.ark:3: needs kaldiio", "wavenet-fast[decode]", code=3)


def test_command_lines_that_make_no_sense(voice, dump, tmp_path):
    where = ("--checkpoint", voice, "--outdir", tmp_path / "out")
    refused(decode(*where), "one of --dumpdir and --scp")
    refused(decode(*where, "--dumpdir", dump, "--scp", dump), "one of --dumpdir and --scp")
    refused(decode(*where, "--dumpdir", tmp_path / "no"), "is no folder")
    (tmp_path / "empty").mkdir()
    refused(decode(*where, "--dumpdir", tmp_path / "empty"), "holds neither *-feats.npy nor *.h5")
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    refused(decode(*where, "--scp", tmp_path / "file"), "is no text")
    refused(decode(*where, "--scp", dump), "is a folder; give a list")
    refused(decode("--checkpoint", voice, "--dumpdir", dump, "--outdir", tmp_path / "file"), "is no folder")
    for text, words in (
        ("\n\n", "lists no utterance"),
        ("a\n", "line 1: 'a' names no file"),
        ("a x.npy\na y.npy\n", "line 2: utterance a is listed twice"),
        ("../a x.npy\n", "'../a' cannot be a file's name"),
    ):
        (tmp_path / "list").write_text(text)
        refused(decode(*where, "--scp", tmp_path / "list"), words)
    refused(decode("--checkpoint", tmp_path / "none", "--dumpdir", dump, "--outdir", tmp_path), "neither a directory")
    np.save(dump / "deep" / "a-feats.npy", np.zeros((3, BANDS), np.float32))
    refused(decode(*where, "--dumpdir", dump), "are both utterance a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--mel-from", "db"), ("--normalize-before",)])
def test_features_of_the_other_axis_order_on_request(normalised, mels, tmp_path, more):
    for name, mel, layout in (("ct", mels["b"].T, ("--layout", "ct")), ("tc", mels["b"], ())):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "b-feats.npy", mel)
        arguments = ("--checkpoint", normalised, "--dumpdir", tmp_path / name, "--outdir", tmp_path / f"out-{name}")
        assert decode(*arguments, *layout, *more).exit_code == 0
    np.testing.assert_array_equal(pcm(tmp_path / "out-ct" / "b_gen.wav"), pcm(tmp_path / "out-tc" / "b_gen.wav"))


# --- vocode --mel-from --------------------------------------------------------------------------------------------


def vocode(*args: object) -> Result:
    return CliRunner().invoke(cli, ["vocode", *(str(a) for a in args)])


def test_vocode_converts_on_request_only(voice, mels, tmp_path, make_checkpoint):
    spec, mel = make_checkpoint().mel, mels["b"].T
    voc = Vocoder.from_pretrained(voice)
    write_mel(tmp_path / "plain.npy", mel)
    write_mel(tmp_path / "carried.npz", mel, replace(spec, log="db", ref_db=3.0))
    write_mel(tmp_path / "other.npz", mel, replace(spec, log="db", fmin=10.0))
    out = ("-o", tmp_path / "out.wav", "--voice", voice)

    refused(vocode(tmp_path / "carried.npz", *out), "log is db, wanted ln", "convert it, with --mel-from file")
    other = vocode(tmp_path / "other.npz", *out)
    refused(other, "fmin is 10.0, wanted 0.0", "again from the sound")
    assert "--mel-from" not in other.stderr
    refused(vocode(tmp_path / "other.npz", *out, "--mel-from", "file"), "other.npz: this mel cannot be converted: fmin")
    refused(
        vocode(tmp_path / "carried.npz", *out, "--mel-from", "db"),
        "carries a recipe of its own",
        "give --mel-from file",
    )
    refused(vocode(tmp_path / "plain.npy", *out, "--mel-from", "file"), "carries no recipe", "name the recipe")
    refused(vocode(tmp_path / "plain.npy", *out, "--mel-from", "dB"), "src is 'dB'", "db-20")

    for name, recipe, option in (
        ("plain.npy", "db", "db"),
        ("carried.npz", replace(spec, log="db", ref_db=3.0), "file"),
    ):
        result = vocode(tmp_path / name, *out, "--mel-from", option)
        assert result.exit_code == 0, result.output
        np.testing.assert_array_equal(pcm(tmp_path / "out.wav"), to_pcm16(voc(convert_mel(mel, recipe, voc))))
    write_mel(tmp_path / "turned.npy", mel.T)
    assert vocode(tmp_path / "turned.npy", *out, "--mel-from", "db", "--layout", "tc").exit_code == 0
    np.testing.assert_array_equal(pcm(tmp_path / "out.wav"), to_pcm16(voc(convert_mel(mel, "db", voc))))
