"""The demonstration: what it writes, what it says, and that its figures are what they are called."""

from __future__ import annotations

import importlib.util
import json
import sys
import time

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from wavenet_fast import Vocoder, demo
from wavenet_fast.checkpoint import bundled_voices, save_checkpoint
from wavenet_fast.cli import cli
from wavenet_fast.errors import InputError

RATE = 8000
LENGTH = 1003  # no multiple of the hop


@pytest.fixture(scope="module")
def voice(tmp_path_factory, make_checkpoint) -> str:
    """A voice with two held-out recordings."""
    path = tmp_path_factory.mktemp("voices") / "small"
    save_checkpoint(path, make_checkpoint())
    (path / "samples").mkdir()
    for name, pitch in (("one", 0.3), ("two", 0.5)):
        soundfile.write(path / "samples" / f"{name}.flac", 0.3 * np.sin(np.arange(LENGTH) * pitch), RATE)
    return str(path)


def run(*args: object):
    return CliRunner().invoke(cli, ["demo", *map(str, args)])


def test_what_it_leaves(voice, tmp_path):
    out = tmp_path / "deep" / "demo"
    result = run("--out", out, "--voice", voice, "--json", "--seed", 3)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {"rtf", "time_to_first_audio_ms", "backend", "isa", "seconds"} <= set(told)
    original, rate = soundfile.read(out / "original.wav", dtype="int16")
    source, _ = soundfile.read(f"{voice}/samples/one.flac", dtype="int16")
    assert rate == RATE and np.abs(original.astype(int) - source).max() <= 1
    voc = Vocoder.from_pretrained(voice)
    wav, _ = soundfile.read(f"{voice}/samples/one.flac", dtype="float32")
    expected = voc(voc.mel(wav, RATE), seed=3)[:LENGTH]
    vocoded, _ = soundfile.read(out / "vocoded.wav", dtype="int16")
    assert np.array_equal(vocoded, np.rint(expected * 32767))
    assert told["seconds"] == pytest.approx(len(voc(voc.mel(wav, RATE))) / RATE)
    assert told["backend"] == voc.backend and told["isa"] == voc.isa
    assert set(told["paths"]) >= {"original", "vocoded"}


def test_figures_are_what_they_are_called(voice, monkeypatch):
    """A voice that takes 20 ms for each of its chunks of 40 ms, and 50 ms for the first."""
    made = []

    def slow_stream(mel, chunk_frames, **_):
        made.append(chunk_frames)
        for i in range(5):
            time.sleep(0.05 if i == 0 else 0.02)
            yield np.zeros(320, np.float32)

    voc = Vocoder.from_pretrained(voice)
    monkeypatch.setattr(voc, "stream", slow_stream)
    sound, timing = demo.timed_stream(voc, np.zeros((5, 1), np.float32), 0, None)
    assert len(sound) == 1600 and timing["seconds"] == 0.2 and len(made) == 2
    assert 50 <= timing["time_to_first_audio_ms"] < 75
    assert 0.13 / 0.2 <= timing["rtf"] < 0.2 / 0.2


def test_another_recording(voice, tmp_path):
    result = run("--out", tmp_path, "--voice", voice, "--json", "--sample", "two")
    assert json.loads(result.stdout)["recording"] == "two.flac"
    result = run("--out", tmp_path / "x", "--voice", voice, "--sample", "three")
    assert result.exit_code == 2 and "one, two" in result.stderr and not (tmp_path / "x").exists()


def test_a_voice_without_recordings(tmp_path, make_checkpoint):
    save_checkpoint(tmp_path / "bare", make_checkpoint())
    result = run("--out", tmp_path / "x", "--voice", tmp_path / "bare")
    assert result.exit_code == 2 and "resynth" in result.stderr


def test_for_people_too(voice, tmp_path):
    result = run("--out", tmp_path, "--voice", voice)
    assert result.exit_code == 0, result.output
    for word in ("real-time factor", "time to first audio", "backend", "vocoded.wav"):
        assert word in result.stdout


def test_without_matplotlib_there_is_no_picture_and_a_hint(voice, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    result = run("--out", tmp_path, "--voice", voice)
    assert result.exit_code == 0 and "wavenet-fast[plot]" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["original.wav", "vocoded.wav"]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture(voice, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert run("--out", tmp_path, "--voice", voice).exit_code == 0
    header = (tmp_path / "spectrograms.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(header[16:20], "big") > 800
    assert "matplotlib.pyplot" not in sys.modules


def test_held_out_refuses_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no recordings"):
        demo.held_out(tmp_path, None)


def test_the_bundled_voice_speaks(tmp_path):
    """The first command of the README, as it stands there."""
    assert bundled_voices(), "the package bundles no voice"
    result = run("--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    wav, rate = soundfile.read(tmp_path / "vocoded.wav")
    original, _ = soundfile.read(tmp_path / "original.wav")
    assert rate == 16000 and len(wav) == len(original) and 0.1 < wav.std() / original.std() < 10
    assert told["rtf"] > 0 and told["time_to_first_audio_ms"] > 0
