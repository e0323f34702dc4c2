"""`wavenet-fast check`: costs of number formats on recordings, what is recorded of them, what `auto` makes of that."""

from __future__ import annotations

import importlib.util
import json
import os
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_result import refused
from click.testing import CliRunner, Result
from tolerances import TRACE_MAX, TRACE_RMS

from wavenet_fast import Vocoder
from wavenet_fast.audio import read_audio
from wavenet_fast.backends import INT8_COST_LIMIT, choose
from wavenet_fast.check import check_voice, weighted_cost
from wavenet_fast.checkpoint import CONFIG, load_checkpoint, save_checkpoint
from wavenet_fast.cli import cli
from wavenet_fast.config import LogisticHead, ScalarInput, Speakers
from wavenet_fast.errors import ConfigError
from wavenet_fast.format_costs import FIELD, weights_fingerprint
from wavenet_fast.packing import DTYPES

RATE = 8000


def recording(path: Path, samples: int, seed: int, rate: int = RATE) -> Path:
    """Noise with a slow swell, so that recordings and their parts differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(samples) * (0.05 + 0.2 * np.sin(np.arange(samples) * 0.002) ** 2)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    """Recordings of different lengths, one of them at another sample rate."""
    recording(tmp_path / "data" / "a.wav", 1500, 1)
    recording(tmp_path / "data" / "deep" / "b.wav", 3001, 2)
    recording(tmp_path / "data" / "deep" / "c.WAV", 2205, 3, rate=11025)
    return tmp_path / "data"


@pytest.fixture
def voice(tmp_path, make_checkpoint) -> Path:
    save_checkpoint(tmp_path / "voice", make_checkpoint(license="none", sampling={"temperature": 0.7}))
    return tmp_path / "voice"


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["check", *map(str, args)])


def edit(voice: Path, **fields: Any) -> None:
    raw = json.loads((voice / CONFIG).read_text())
    (voice / CONFIG).write_text(json.dumps(raw | fields))


def recorded(voice: Path, cost: float = 0.001, **fields: Any) -> None:
    """Write a record by hand that belongs to the weights."""
    weights = weights_fingerprint(load_checkpoint(voice).weights)
    edit(voice, **{FIELD: {"weights": weights, "int8": {"cost_bits": cost}} | fields})


# --- measuring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["categorical", "mixture with speakers"])
def test_costs_are_those_of_the_likelihood(kind, data, make_config, make_checkpoint):
    mixture = {"input": ScalarInput(), "head": LogisticHead(components=3), "speakers": Speakers(channels=3, count=4)}
    checkpoint = make_checkpoint(make_config(**(mixture if kind != "categorical" else {})))
    speaker = None if kind == "categorical" else 2
    outcome = check_voice(checkpoint, sorted(p for p in data.rglob("*") if p.is_file()), speaker)
    assert [r.path.name for r in outcome.recordings] == ["a.wav", "b.wav", "c.WAV"] and outcome.formats == [*DTYPES]
    bits, lengths = {dtype: [] for dtype in DTYPES}, []
    for r in outcome.recordings:
        wav, _ = read_audio(r.path, RATE, resample=True)
        lengths.append(len(wav))
        for dtype in DTYPES:
            voc = Vocoder(checkpoint, "cpu", dtype=dtype)
            bits[dtype].append(voc.nll(voc.mel(wav, RATE), wav, speaker))
            assert r.bits[dtype] == bits[dtype][-1]
    assert [r.samples for r in outcome.recordings] == lengths and len(set(lengths)) == 3
    total = {dtype: np.dot(bits[dtype], lengths) / sum(lengths) for dtype in DTYPES}
    for dtype in DTYPES:
        assert outcome.bits(dtype) == pytest.approx(total[dtype], abs=1e-12)
        assert outcome.cost(dtype).cost_bits == pytest.approx(total[dtype] - total["fp32"], abs=1e-12)
    assert outcome.seconds == sum(lengths) / RATE
    assert 1e-7 < abs(outcome.cost("bf16").cost_bits) < abs(outcome.cost("int8").cost_bits) + 0.01 < 0.1


def test_the_standard_error_by_hand():
    two = weighted_cost([0.1, 0.3], [100, 300])
    assert two.cost_bits == pytest.approx(0.25) and two.standard_error == pytest.approx(0.075)
    alike = np.random.default_rng(0).standard_normal(20)
    assert weighted_cost(alike, [7] * 20).standard_error == pytest.approx(alike.std(ddof=1) / 20**0.5)
    assert weighted_cost([0.1], [5]).standard_error is None


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the reference needs PyTorch")
def test_stage_errors_are_small_and_grow_where_a_format_is_wrong(data, make_checkpoint, monkeypatch):
    from wavenet_fast.backends import cpu

    checkpoint, paths = make_checkpoint(), [data / "deep" / "b.wav"]
    good = check_voice(checkpoint, paths)
    assert good.stage_samples == 3000
    layers = range(checkpoint.config.n_layers)
    names = {"conditioning", "embed", "skip", "hidden", "logits", *(f"gate.{i}" for i in layers)}
    names |= {f"x.{i}" for i in layers[:-1]}
    for dtype in DTYPES:
        assert good.stages[dtype].keys() == names
        for error in good.stages[dtype].values():
            assert error.largest <= TRACE_MAX["cpu", dtype] and error.rms <= TRACE_RMS["cpu", dtype]
            assert 0 <= error.rms <= error.largest
    pack = cpu.pack

    def wrong(config, weights, layouts, dtype):
        if dtype == "int8":
            weights = {**weights, "layers.1.residual.weight": -weights["layers.1.residual.weight"]}
        return pack(config, weights, layouts, dtype)

    monkeypatch.setattr(cpu, "pack", wrong)
    bad = check_voice(checkpoint, paths)
    assert bad.stages["bf16"] == good.stages["bf16"] and bad.stages["int8"]["x.0"] == good.stages["int8"]["x.0"]
    for stage in ("x.1", "gate.2", "logits"):
        assert bad.stages["int8"][stage].rms > 0.2 > 10 * good.stages["int8"][stage].rms
    assert bad.cost("bf16") == good.cost("bf16") and bad.cost("int8").cost_bits > good.cost("int8").cost_bits + 0.1


def test_without_torch_fp32_is_compared_with_the_portable_code(data, voice, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    outcome = check_voice(load_checkpoint(voice), [data / "a.wav"])
    assert list(outcome.stages) == ["fp32"] and outcome.formats == [*DTYPES]
    assert all(e.largest <= TRACE_MAX["cpu", "fp32"] for e in outcome.stages["fp32"].values())
    result = run(voice, "--data", data)
    assert result.exit_code == 0 and 'pip install "wavenet-fast[torch]"' in result.stdout


def test_a_large_model_is_followed_for_less_than_a_second(data, voice, monkeypatch):
    monkeypatch.setattr("wavenet_fast.stages.TRACE_BYTES", 1 << 18)
    short = check_voice(load_checkpoint(voice), [data / "a.wav"])
    assert short.stage_samples % 6 == 0 and 0 < short.stage_samples < 300
    assert short.recordings[0].samples == 1500


def test_weights_too_large_for_fp16_are_a_sentence(data, tmp_path, make_checkpoint):
    checkpoint = make_checkpoint()
    large = checkpoint.weights["layers.2.skip.weight"].copy()
    large[3, 4] = 7e4
    save_checkpoint(tmp_path / "v", replace(checkpoint, weights={**checkpoint.weights, "layers.2.skip.weight": large}))
    result = run(tmp_path / "v", "--data", data, "--write")
    assert result.exit_code == 0, result.output
    assert "fp16: " in result.stderr and "65504" in result.stderr
    field = json.loads((tmp_path / "v" / CONFIG).read_text())[FIELD]
    assert "fp16" not in field and {"bf16", "int8"} <= field.keys()


def test_progress_reaches_the_end(data, voice):
    (data / "bad.wav").write_bytes(b"RIFF")
    told = []
    check_voice(load_checkpoint(voice), sorted(data.glob("*.wav")), watch=lambda *step: told.append(step))
    total = told[0][1]
    assert told[0] == (0, total) and told == sorted(told) and total == len(DTYPES) * 3
    assert told[-1][0] == (total if importlib.util.find_spec("torch") else total - len(DTYPES) + 1)


# --- the record -------------------------------------------------------------------------------------------------


def test_what_is_written_is_loaded_saved_and_followed(data, voice, tmp_path):
    before = json.loads((voice / CONFIG).read_text())
    weights = (voice / "model.safetensors").read_bytes()
    result = run(voice, "--data", data, "--write", "--json", tmp_path / "told.json")
    assert result.exit_code == 0, result.output
    after, told = json.loads((voice / CONFIG).read_text()), json.loads((tmp_path / "told.json").read_text())
    field = after.pop(FIELD)
    assert after == before and list(after) == list(before) and (voice / "model.safetensors").read_bytes() == weights
    assert sorted(p.name for p in voice.iterdir()) == [CONFIG, "model.safetensors"]
    assert field["weights"] == told["weights"] and field["recordings"] == 3
    for dtype in DTYPES[1:]:
        assert field[dtype]["cost_bits"] == pytest.approx(told["formats"][dtype]["cost_bits"], abs=1e-7)
        assert field[dtype]["standard_error"] == pytest.approx(told["formats"][dtype]["standard_error"], abs=1e-7)
    checkpoint = load_checkpoint(voice)
    assert checkpoint.format_costs == {dtype: field[dtype]["cost_bits"] for dtype in DTYPES[1:]}
    voc = Vocoder(checkpoint, "cpu")
    cheap = field["int8"]["cost_bits"] <= INT8_COST_LIMIT
    assert (voc.dtype == "int8") == cheap and ("`auto` is int8" in result.stdout) == cheap
    voc.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / CONFIG).read_text()) == before | {FIELD: field}
    text = CliRunner().invoke(cli, ["inspect", str(voice)]).stdout
    assert f"int8 {field['int8']['cost_bits']:+.6f}" in text and "3 recordings" in text


@pytest.mark.parametrize(("cost", "small"), [(0.02, True), (-0.001, True), (0.0200001, False), (3.0, False)])
def test_auto_is_int8_only_where_its_recorded_cost_is_small(voice, cost, small):
    plain = Vocoder.from_pretrained(voice, "cpu").dtype
    assert plain in ("bf16", "fp32")
    recorded(voice, cost)
    voc = Vocoder.from_pretrained(voice, "cpu")
    assert voc.dtype == ("int8" if small else plain)
    assert Vocoder.from_pretrained(voice, "cpu", dtype="fp32").dtype == "fp32"
    if small:
        mel = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        asked = Vocoder.from_pretrained(voice, "cpu", dtype="int8")
        np.testing.assert_array_equal(voc(mel, seed=3), asked(mel, seed=3))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the reference needs PyTorch")
def test_the_reference_stays_in_fp32(voice):
    recorded(voice)
    assert Vocoder.from_pretrained(voice, "reference").dtype == "fp32"


def test_costs_of_other_weights_are_not_followed(voice, make_checkpoint, tmp_path):
    recorded(voice)
    checkpoint = load_checkpoint(voice)
    assert Vocoder(checkpoint, "cpu").dtype == "int8"
    name = "layers.0.dilated.weight"
    changed = checkpoint.weights[name].copy()
    changed[0, 0, 0] = np.nextafter(changed[0, 0, 0], np.float32(9))
    other = replace(checkpoint, weights={**checkpoint.weights, name: changed})
    assert other.format_costs == {} and Vocoder(other, "cpu").dtype != "int8"
    save_checkpoint(tmp_path / "other", other)
    assert FIELD in json.loads((tmp_path / "other" / CONFIG).read_text())
    for path, words in ((tmp_path / "other", "other weights"), (voice, "int8 +0.001000")):
        assert words in CliRunner().invoke(cli, ["inspect", str(path)]).stdout
        told = json.loads(CliRunner().invoke(cli, ["inspect", str(path), "--json"]).stdout)
        assert told[FIELD]["of_these_weights"] == (path == voice)


def test_voices_that_record_nothing(voice):
    assert load_checkpoint(voice).format_costs == {}
    assert "not measured" in CliRunner().invoke(cli, ["inspect", str(voice)]).stdout
    edit(voice, **{FIELD: None})
    assert load_checkpoint(voice).format_costs == {}


def test_number_formats_and_fields_of_later_versions_are_left_alone(voice, tmp_path):
    recorded(voice, fp4={"cost_bits": "?", "blocks": 16}, by="hand")
    recorded_field = json.loads((voice / CONFIG).read_text())[FIELD]
    voc = Vocoder.from_pretrained(voice, "cpu")
    assert voc.dtype == "int8" and load_checkpoint(voice).format_costs == {"int8": 0.001}
    voc.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / CONFIG).read_text())[FIELD] == recorded_field


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ({"weights": "00", "int8": {"cost_bits": "cheap"}}, r"number_formats\.int8\.cost_bits: is \"cheap\""),
        ({"weights": "00", "int8": {"cost_bits": True}}, r"number_formats\.int8\.cost_bits: is true"),
        ({"weights": "00", "int8": {}}, r"number_formats\.int8: lacks the field \"cost_bits\""),
        ({"weights": "00", "bf16": {"cost_bits": 0, "standard_error": -1}}, r"number_formats\.bf16\.standard_error"),
        ({"weights": "00", "bf16": 0.001}, r"number_formats\.bf16: is 0.001"),
        ({"weights": 7}, r"number_formats\.weights: is 7"),
        ({"weights": "00", "recordings": -1}, r"number_formats\.recordings: is -1"),
        ({"int8": {"cost_bits": 0}}, r"number_formats: lacks the field \"weights\""),
        ([], r"number_formats: is \[\]"),
    ],
)
def test_bad_records_are_named_with_their_path(voice, field, path):
    edit(voice, **{FIELD: field})
    with pytest.raises(ConfigError, match=rf"config\.json: {path}"):
        load_checkpoint(voice)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_costs_that_are_not_finite_are_refused(voice, number):
    recorded(voice)
    text = (voice / CONFIG).read_text()
    assert text.count('"cost_bits": 0.001') == 1
    (voice / CONFIG).write_text(text.replace('"cost_bits": 0.001', f'"cost_bits": {number}'))
    with pytest.raises(ConfigError, match=r"config\.json: .*only finite numbers"):
        load_checkpoint(voice)


def test_a_checkpoint_in_memory_is_read_as_strictly(make_checkpoint, tmp_path):
    bad = make_checkpoint(**{FIELD: {"weights": "00", "int8": {"cost_bits": float("nan")}}})
    for use in (lambda: Vocoder(bad, "cpu"), lambda: save_checkpoint(tmp_path / "v", bad)):
        with pytest.raises(ConfigError, match=r"number_formats|info"):
            use()
    assert not (tmp_path / "v").exists()


def test_the_number_format_follows_from_costs_alone():
    plain = choose("cpu")[2]
    assert choose("cpu", costs={"int8": 0.02})[2] == "int8"
    assert choose("cpu", costs={"int8": 0.03, "bf16": 0.0})[2] == plain
    assert choose("cpu", costs={"bf16": -9.0, "fp16": -9.0})[2] == plain
    assert choose("cpu", dtype="fp32", costs={"int8": 0.0})[2] == "fp32"


# --- the command line -------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_used(voice, data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no sound")
    refused(run(voice, "--data", tmp_path / "gone"), "gone", "is not there", "folder of recordings")
    refused(run(voice, "--data", data / "a.wav"), "a.wav", "is a file")
    refused(run(voice, "--data", ""), "--data ''")
    refused(run(voice, "--data", tmp_path / "empty"), "no sound files", ".flac")
    refused(run(voice), "--data")
    refused(run("nobody", "--data", data), "nobody", "Bundled voices")


def test_recordings_that_cannot_be_used_are_named_and_left_out(voice, data, tmp_path):
    (data / "bad.wav").write_bytes(b"RIFF and no more")
    (data / "empty.flac").write_bytes(b"")
    recording(data / "none.wav", 0, 0)
    result = run(voice, "--data", data, "--write", "--json", tmp_path / "told.json")
    refused(result, "bad.wav", "empty.flac", "none.wav", "left out", code=3)
    told = json.loads((tmp_path / "told.json").read_text())
    assert {Path(f["file"]).name for f in told["failed"]} == {"bad.wav", "empty.flac", "none.wav"}
    assert {Path(f["file"]).name for f in told["recordings"]} == {"a.wav", "b.wav", "c.WAV"}
    assert json.loads((voice / CONFIG).read_text())[FIELD]["recordings"] == 3


def test_without_one_usable_recording_nothing_is_written(voice, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"RIFF")
    before = (voice / CONFIG).read_bytes()
    refused(run(voice, "--data", tmp_path / "bad", "--write"), "none of the 1 recordings", "a.wav")
    assert (voice / CONFIG).read_bytes() == before


def test_the_table(voice, data):
    before = (voice / CONFIG).read_bytes()
    result = run(voice, "--data", data)
    assert result.exit_code == 0 and result.stderr == ""
    for word in (*DTYPES, "cost", "standard error", "conditioning", "gate", "logits", "3 recordings"):
        assert word in result.stdout
    assert (voice / CONFIG).read_bytes() == before


def test_speakers(data, tmp_path, make_config, make_checkpoint):
    save_checkpoint(tmp_path / "many", make_checkpoint(make_config(speakers=Speakers(channels=3, count=4))))
    bits = []
    for speaker in (1, 2):
        told = tmp_path / f"{speaker}.json"
        assert run(tmp_path / "many", "--data", data, "--speaker", speaker, "--json", told).exit_code == 0
        bits.append(json.loads(told.read_text())["formats"]["fp32"]["bits"])
    assert bits[0] != bits[1]
    refused(run(tmp_path / "many", "--data", data), "speaker id 0 … 3")
    refused(run(tmp_path / "many", "--data", data, "--speaker", "Ann"), ".npy")


def test_places_that_cannot_be_written(voice, data, tmp_path, monkeypatch):
    sound = (data / "a.wav").read_bytes()
    refused(run(voice, "--data", data, "--json", data / "a.wav"), "one of the recordings")
    refused(run(voice, "--data", data, "--json", tmp_path), "a folder")
    refused(run(voice, "--data", data, "--json", tmp_path / "no" / "x.json"), "lies in none")
    assert (data / "a.wav").read_bytes() == sound
    before = (voice / CONFIG).read_bytes()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if Path(path).name == CONFIG else access(path, mode))
    monkeypatch.setattr("wavenet_fast.check.check_voice", lambda *a: pytest.fail("measured for nothing"))
    refused(run(voice, "--data", data, "--write"), "config.json", "cannot be written", "save_pretrained")
    assert (voice / CONFIG).read_bytes() == before


def test_a_full_disk_leaves_the_old_configuration(voice, data, monkeypatch):
    before = (voice / CONFIG).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(run(voice, "--data", data, "--write"), "config.json", "No space left")
    assert (voice / CONFIG).read_bytes() == before
    assert sorted(p.name for p in voice.iterdir()) == [CONFIG, "model.safetensors"]
