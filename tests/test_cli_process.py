"""The command line as a process: signals, pipes, start-up."""

from __future__ import annotations

import io
import os
import select
import signal
import struct
import subprocess
import sys
import time
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from children import python

from wavenet_fast.audio import read_mel
from wavenet_fast.checkpoint import save_checkpoint

COMMAND = [sys.executable, "-m", "wavenet_fast"]
LONG = 200_000
"""Frames: more sound than any machine makes before the test sends its signal."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")


@pytest.fixture(scope="module")
def voice(tmp_path_factory, make_config, make_checkpoint) -> str:
    """Wide enough to take a while: as many channels as a real voice."""
    config = make_config(
        residual_channels=64,
        gate_channels=128,
        skip_channels=128,
        head_channels=256,
        dilations=(1, 2, 4, 8, 16, 32) * 2,
    )
    path = tmp_path_factory.mktemp("voices") / "wide"
    made = make_checkpoint(config)
    follow = {"mel.mean": np.zeros(5, np.float32), "mel.scale": np.ones(5, np.float32)}  # what the mels here do
    save_checkpoint(path, replace(made, weights={**made.weights, **follow}))
    return str(path)


@pytest.fixture(scope="module")
def mels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mels")
    for name, frames in (("long", LONG), ("short", 30)):
        np.save(folder / f"{name}.npy", np.random.default_rng(1).standard_normal((5, frames)).astype(np.float32))
    return folder


def start(*args: object, **options) -> subprocess.Popen:
    """A child with its own working directory, so that an installed package is not hidden by a checkout."""
    folder = options.pop("cwd", Path(sys.executable).parent)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *map(str, args)], cwd=folder, **pipes)


def wait_for_sound(folder: Path, child: subprocess.Popen, size: int = 20_000) -> None:
    """Until the child has written `size` bytes somewhere in the folder."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and child.poll() is None:
        if any(p.stat().st_size > size for p in folder.rglob("*") if p.is_file()):
            return
        time.sleep(0.01)
    raise AssertionError(f"no sound came: {child.communicate(timeout=10)}")


def whole(path: Path) -> int:
    """Samples of a WAV file whose header agrees with its length."""
    with wave.open(str(path)) as file:
        frames = file.getnframes()
        assert len(file.readframes(frames)) == 2 * frames
    assert path.stat().st_size == 44 + 2 * frames
    return frames


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_a_valid_part(voice, mels, tmp_path, number, code):
    out = tmp_path / "out.wav"
    child = start("vocode", mels / "long.npy", "-o", out, "--voice", voice)
    wait_for_sound(tmp_path, child)
    child.send_signal(number)
    sent = time.monotonic()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == code, errors
    assert time.monotonic() - sent < 2
    assert b"Traceback" not in errors and b"out.wav" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]
    assert 10_000 <= whole(out) < LONG * 6


def test_a_stopped_run_leaves_the_good_file_that_was_there(voice, mels, tmp_path):
    out = tmp_path / "out.wav"
    assert start("vocode", mels / "short.npy", "-o", out, "--voice", voice).wait(60) == 0
    before = out.read_bytes()
    child = start("vocode", mels / "long.npy", "-o", out, "--voice", voice)
    wait_for_sound(tmp_path, child)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out.read_bytes() == before
    partial = f"out.{child.pid}.partial.wav"
    assert sorted(p.name for p in tmp_path.iterdir()) == [partial, "out.wav"]
    assert whole(tmp_path / partial) >= 10_000 and partial.encode() in errors


def test_a_stopped_folder_goes_on_where_it_was(voice, mels, tmp_path):
    """What is under its final name is complete; the rest is made by the next run."""
    child = start("vocode", mels, "-o", tmp_path, "--voice", voice, "--batch", 2)
    wait_for_sound(tmp_path, child)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 143
    partial = f"long.{child.pid}.partial.wav"
    assert sorted(p.name for p in tmp_path.iterdir()) == [partial, "short.wav"]
    assert whole(tmp_path / "short.wav") == 180 and whole(tmp_path / partial) >= 10_000


def test_a_killed_run_leaves_nothing_under_the_final_name(voice, mels, tmp_path):
    child = start("vocode", mels / "long.npy", "-o", tmp_path / "out.wav", "--voice", voice)
    wait_for_sound(tmp_path, child)
    child.kill()
    child.communicate(timeout=30)
    assert [p.name for p in tmp_path.iterdir()] == [f"out.{child.pid}.partial.wav"]


def test_a_reader_that_leaves_ends_the_run_quietly(voice, mels):
    child = start("vocode", mels / "long.npy", "-o", "-", "--voice", voice, "--format", "s16le")
    assert len(child.stdout.read(100)) == 100
    child.stdout.close()
    errors = child.stderr.read()
    assert child.wait(30) == 141
    assert errors == b""


def test_stdin_to_stdout(voice, mels, tmp_path):
    """mel | vocode through pipes gives the bytes that files give."""
    data = (mels / "short.npy").read_bytes()
    pipes = {"stdin": subprocess.PIPE}
    raw = start("vocode", "-", "-o", "-", "--voice", voice, "--format", "s16le", **pipes)
    sound, errors = raw.communicate(data, 60)
    assert len(sound) == 2 * 180, errors
    file = tmp_path / "x.wav"
    assert start("vocode", mels / "short.npy", "-o", file, "--voice", voice).wait(60) == 0
    assert file.read_bytes()[44:] == sound
    streamed, _ = start("vocode", "-", "-o", "-", "--voice", voice, **pipes).communicate(data, 60)
    assert streamed[:4] == b"RIFF" and streamed[8:16] == b"WAVEfmt " and streamed[44:] == sound
    # Sizes are unknown when the header of a pipe is written; readers take these to mean "until the end".
    assert streamed[4:8] == streamed[40:44] == b"\xff\xff\xff\xff"
    mel, errors = start("mel", "-", "-o", "-", "--voice", voice, **pipes).communicate(file.read_bytes(), 60)
    (tmp_path / "y.npz").write_bytes(mel)
    assert read_mel(tmp_path / "y.npz").mel.shape[0] == 5, errors
    again, errors = start("vocode", "-", "-o", "-", "--voice", voice, **pipes).communicate(mel, 60)
    assert np.load(io.BytesIO(mel))["mel"].shape[1] * 12 == len(again) - 44, errors


def test_closed_streams_are_a_sentence(voice, mels):
    for words, closed, name in ((f"{mels}/short.npy -o -", ">&-", b"stdout"), ("- -o x.wav", "<&-", b"stdin")):
        command = f"{sys.executable} -m wavenet_fast vocode {words} --voice {voice} {closed}"
        child = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, cwd="/", check=False)
        assert child.returncode == 2 and name + b" is closed" in child.stderr
    child = subprocess.run(["sh", "-c", f"{sys.executable} -m wavenet_fast inspect {voice} >&-"], cwd="/", check=False)
    assert child.returncode == 0


def test_sound_is_not_thrown_at_a_terminal(voice, mels):
    leader, terminal = os.openpty()
    child = start("vocode", mels / "short.npy", "-o", "-", "--voice", voice, stdout=terminal)
    os.close(terminal)
    _, errors = child.communicate(timeout=60)
    os.close(leader)
    assert child.returncode == 2 and b"stdout is a terminal" in errors


def test_a_bar_on_a_terminal_after_two_seconds(voice, mels, tmp_path):
    import fcntl
    import termios

    leader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))  # a new terminal has no width
    child = start("vocode", mels / "long.npy", "-o", tmp_path / "x.wav", "--voice", voice, stderr=terminal)
    os.close(terminal)
    began, seen = time.monotonic(), b""
    while b"s of sound" not in seen and select.select([leader], [], [], 60)[0]:
        seen += os.read(leader, 1000)
    elapsed = time.monotonic() - began
    child.kill()
    child.communicate(timeout=60)
    os.close(leader)
    assert elapsed >= 2 and b"150.0 s of sound" in seen


def test_an_endless_stdin_is_refused_at_its_first_bytes(voice, tmp_path):
    with open("/dev/zero", "rb") as zero:
        child = start("vocode", "-", "-o", tmp_path / "x.wav", "--voice", voice, stdin=zero)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 2 and b"begins with" in errors


def test_no_bar_and_no_colour_off_a_terminal(voice, mels, tmp_path):
    child = start("vocode", mels / "short.npy", "-o", tmp_path / "x.wav", "--voice", voice)
    output, errors = child.communicate(timeout=60)
    assert output == b"" and errors.count(b"\n") == 1 and b"\r" not in errors and b"\x1b" not in errors


def test_help_is_quick_and_loads_little():
    code = (
        "import sys\nfrom wavenet_fast.cli import cli\ntry:\n cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print('LOADED', *[m for m in ('numpy','torch','soundfile','tqdm','matplotlib') if m in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "LOADED"


def test_a_forced_instruction_set_that_does_not_exist_is_a_sentence(voice, mels, tmp_path):
    environment = os.environ | {"WAVENET_FAST_ISA": "z80"}
    child = start(
        "vocode", mels / "short.npy", "-o", tmp_path / "x.wav", "--voice", voice, "--backend", "cpu", env=environment
    )
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 2 and b"z80" in errors and b"Traceback" not in errors
    child = start("doctor", env=environment)
    output, errors = child.communicate(timeout=60)
    assert b"z80" in output and b"Traceback" not in errors


@pytest.mark.parametrize("value", ["0", "abc"])
def test_other_libraries_variables_do_no_harm(voice, mels, tmp_path, value):
    environment = os.environ | {"OMP_NUM_THREADS": value}
    child = start("vocode", mels / "short.npy", "-o", tmp_path / "x.wav", "--voice", voice, env=environment)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors


def test_without_stderr_the_work_is_done_all_the_same(voice, mels, tmp_path):
    command = (
        f"{sys.executable} -m wavenet_fast vocode {mels / 'short.npy'} -o {tmp_path / 'x.wav'} --voice {voice} 2>&-"
    )
    subprocess.run(["sh", "-c", command], cwd="/", check=True)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert file.getnframes() > 0


@pytest.mark.parametrize("arguments", [["inspect", "VOICE"], ["vocode", "--help"], ["doctor"]])
def test_terminals_of_another_alphabet(voice, arguments):
    words = [sys.executable, "-m", "wavenet_fast", *(voice if a == "VOICE" else a for a in arguments)]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    child = subprocess.run(words, capture_output=True, cwd="/", check=True, env=environment)
    assert child.stdout and b"Traceback" not in child.stderr
