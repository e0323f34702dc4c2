"""Sound files: what is read, what is refused, and what a writer leaves however it ends."""

from __future__ import annotations

import io
import os
import signal
import stat
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from children import HERE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wavenet_fast.audio as audio
from wavenet_fast.audio import WavWriter, read_audio, to_pcm16
from wavenet_fast.errors import AudioError, InputError, ShapeError

RATE = 16000
TONE = (0.5 * np.sin(np.arange(4000) * 0.05)).astype(np.float32)


def wav_bytes(data: bytes = to_pcm16(TONE).tobytes(), *, size: int | None = None, channels: int = 1, rate: int = RATE,
              bits: int = 16, code: int = 1) -> bytes:  # fmt: skip
    """A WAV whose header says whatever is asked for."""
    frame = channels * bits // 8
    fmt = struct.pack("<HHIIHH", code, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data"
    body += struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def written(path: Path, wav: np.ndarray = TONE, rate: int = RATE, **format_: str) -> Path:
    soundfile.write(path, wav, rate, **format_)
    return path


def refused(source: object, *words: str, **options: object) -> None:
    with pytest.raises(AudioError) as caught:
        read_audio(source, **options)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "subtype", "error"),
    [
        ("WAV", "PCM_16", 4e-5), ("WAV", "PCM_24", 1e-6), ("WAV", "PCM_32", 1e-7), ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 0), ("WAV", "DOUBLE", 0), ("WAV", "ALAW", 0.02), ("WAVEX", "PCM_16", 4e-5),
        ("RF64", "PCM_16", 4e-5), ("FLAC", "PCM_16", 4e-5), ("AIFF", "PCM_16", 4e-5), ("OGG", "VORBIS", 0.1),
    ],
)  # fmt: skip
def test_kinds_of_sound_by_content_whatever_the_name(format_: str, subtype: str, error: float, tmp_path: Path) -> None:
    for name in ("x.wav", "x.raw", "x", "x.npy"):
        path = tmp_path / name
        with soundfile.SoundFile(path, "w", RATE, 1, subtype, format=format_) as file:
            file.write(TONE)
        wav, rate = read_audio(path)
        assert rate == RATE
        assert wav.dtype == np.float32
        assert wav.shape == TONE.shape
        assert np.abs(wav - TONE).max() <= error


def test_long_sound_is_read_in_blocks(tmp_path: Path) -> None:
    wav = np.random.default_rng(0).uniform(-1, 1, 600_001).astype(np.float32)
    got, _ = read_audio(written(tmp_path / "x.wav", wav, subtype="FLOAT"))
    np.testing.assert_array_equal(got, wav)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
def test_sizes_that_mean_unknown(size: int) -> None:
    wav, _ = read_audio(io.BytesIO(wav_bytes(size=size)))
    np.testing.assert_array_equal(wav, to_pcm16(TONE).astype(np.float32) / 32768)


def test_flac_that_does_not_know_its_length(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path / "x.flac").read_bytes())
    assert data[4] & 0x7F == 0, "STREAMINFO comes first"
    data[21] &= 0xF0  # 36 bits of sample count
    data[22:26] = bytes(4)
    wav, _ = read_audio(io.BytesIO(bytes(data)))
    assert wav.shape == TONE.shape


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty (0 bytes)"]),
        (b"RIFF", ["no sound file"]),
        (b"hello, this is no sound at all", ["no sound file"]),
        (b"\x93NUMPY\x01\x00", ["no sound file"]),
        (wav_bytes()[:30], ["no sound file"]),
        (wav_bytes(b""), ["no sound", "0 samples"]),
        (wav_bytes()[:44], ["cut short", "8000 bytes", "0 are there"]),
        (wav_bytes()[:-1], ["cut short", "7999 are there"]),
        (wav_bytes(size=0), ["no sound"]),
        (wav_bytes(size=0x7FFEFFFF), ["cut short"]),
        (wav_bytes(channels=0), ["x.wav"]),
        (wav_bytes(channels=65535), ["x.wav"]),
        (wav_bytes(channels=2), ["2 channels", "mixdown=True"]),
        (wav_bytes(rate=0), ["x.wav"]),
        (wav_bytes(rate=999), ["999 Hz", "1000 … 384000"]),
        (wav_bytes(rate=4_000_000_000), ["x.wav"]),
        (wav_bytes(bits=0), ["x.wav"]),
        (wav_bytes(code=0x1234), ["x.wav"]),
        (wav_bytes(np.array([0, 1, np.nan, 0], "<f4").tobytes(), bits=32, code=3), ["sample 2", "NaN"]),
        (wav_bytes(np.array([-np.inf, 1], "<f4").tobytes(), bits=32, code=3), ["sample 0", "infinite"]),
    ],
)
def test_bad_sound_files(data: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    refused(path, "x.wav", *words)


def test_damaged_flac(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, 50_000).astype(np.float32)
    data = written(tmp_path / "x.flac", noise).read_bytes()
    refused(io.BytesIO(data[: len(data) // 2]), "given file object")
    promised = bytearray(data)
    promised[22:26] = b"\x10\x00\x00\x00"
    refused(io.BytesIO(bytes(promised)), "given file object")


@pytest.mark.timeout(20)
def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.wav", "none.wav", "no such file")
    refused("nul\0.wav", "null character")
    refused("x" * 5000, "too long")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        refused(tmp_path / "pipe.wav", "is a pipe, socket or device")
    if os.path.exists("/dev/zero"):
        refused("/dev/zero", "device")


def test_file_objects_that_cannot_seek() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        os.write(writer, wav_bytes())
        os.close(writer)
        wav, _ = read_audio(file)
    assert wav.shape == TONE.shape


def test_an_endless_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, n: int = -1) -> bytes:
            return bytes(n)

    monkeypatch.setattr("wavenet_fast.fileio.MAX_SPOOL_BYTES", 1 << 22)
    refused(Endless(), "longer than")


def test_more_samples_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_FILE_SAMPLES", 3999)
    refused(io.BytesIO(wav_bytes()), "more than 3999 samples")


def test_rate_and_channels_are_changed_on_request_only(tmp_path: Path) -> None:
    path = written(tmp_path / "x.wav")
    assert read_audio(path, RATE)[1] == RATE
    refused(path, "16000 Hz", "22050 Hz", "resample=True", "--resample", sample_rate=22050)
    wav, rate = read_audio(path, 22050, resample=True)
    assert rate == 22050
    assert abs(len(wav) - 4000 * 22050 / RATE) <= 1
    middle = slice(500, -500)
    expected = 0.5 * np.sin(np.arange(len(wav)) * 0.05 * RATE / 22050)
    assert np.abs(wav - expected)[middle].max() < 1e-3
    stereo = written(tmp_path / "s.wav", np.stack([TONE, np.zeros_like(TONE)], 1), subtype="FLOAT")
    refused(stereo, "2 channels", "average")
    np.testing.assert_array_equal(read_audio(stereo, mixdown=True)[0], TONE / 2)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_bytes_end_in_sound_or_a_sentence(data: st.DataObject, tmp_path: Path) -> None:
    name, arguments = data.draw(
        st.sampled_from([("x.wav", {"subtype": "PCM_16"}), ("y.wav", {"subtype": "FLOAT"}), ("z.flac", {})])
    )
    source = tmp_path / name
    if not source.exists():
        written(source, TONE[:600], **arguments)
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(content) - 1, 120)) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    try:
        wav, rate = read_audio(io.BytesIO(bytes(content)))
    except AudioError:
        return
    assert wav.ndim == 1
    assert 0 < len(wav) <= 600 * 4
    assert np.isfinite(wav).all()
    assert 1000 <= rate <= 384_000


# --- writing --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=20))
def test_pcm16_rounds_clips_and_never_wraps(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = [round(max(-1.0, min(1.0, v)) * 32767) for v in x.tolist()]
    assert np.abs(to_pcm16(x).astype(int) - np.array(expected, int).reshape(x.shape)).max(initial=0) <= 0.5 or (
        np.abs(to_pcm16(x).astype(int) - expected).max() <= 1  # x.5 either way: the product is rounded to float32
    )


def test_pcm16_corners() -> None:
    np.testing.assert_array_equal(
        to_pcm16(np.array([[1, -1, 2, -2], [np.inf, -np.inf, 0, 1 - 2**-24]])),
        [[32767, -32767, 32767, -32767], [32767, -32767, 0, 32767]],
    )
    with pytest.raises(InputError, match="NaN"):
        to_pcm16(np.array([0, np.nan]))


def stdlib(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def beside(path: Path) -> list[Path]:
    return [p for p in path.parent.iterdir() if ".partial" in p.name]


def test_a_written_file_is_what_was_given(tmp_path: Path) -> None:
    for encoding, expected in (("pcm16", to_pcm16(TONE).astype(np.float32) / 32768), ("float32", TONE)):
        path = tmp_path / f"{encoding}.wav"
        with WavWriter(path, 22050, encoding) as file:  # type: ignore[arg-type]
            for start in range(0, len(TONE), 77):
                file.write(TONE[start : start + 77])
            file.write(TONE[:0])
            assert file.samples == len(TONE)
        got, rate = soundfile.read(path, dtype="float32")
        assert rate == 22050
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(read_audio(path, 22050)[0], expected)
        assert not beside(path)
    assert stat.S_IMODE((tmp_path / "pcm16.wav").stat().st_mode) == 0o666 & ~current_umask()
    with WavWriter(tmp_path / "empty.wav", RATE):
        pass
    assert len(stdlib(tmp_path / "empty.wav")[0]) == 0


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_file_is_valid_after_every_chunk_and_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"good")
    with WavWriter(path, RATE) as file:
        for n in range(1, 6):
            file.write(TONE[:100])
            (partial,) = beside(path)
            assert len(stdlib(partial)[0]) == 100 * n
            assert path.read_bytes() == b"good"
    assert len(stdlib(path)[0]) == 500


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_an_exception_leaves(kind: type[BaseException], good: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    if good:
        path.write_bytes(b"good")
    with pytest.raises(kind), WavWriter(path, RATE) as file:
        file.write(TONE)
        raise kind
    assert (path.read_bytes() == b"good") if good else (path.exists() == (kind is not ValueError))
    kept = beside(path) if good else [path]
    if kind is ValueError:
        assert not beside(path)
    else:
        assert len(stdlib(kept[0])[0]) == len(TONE)
        assert len(list(tmp_path.iterdir())) == 1 + good


@pytest.mark.parametrize("encoding", ["pcm16", "float32"])
@pytest.mark.parametrize("container", ["wav", "raw"])
def test_an_interrupt_inside_a_write_leaves_whole_samples(
    container: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WavWriter(tmp_path / "x.wav", RATE, encoding, container)  # type: ignore[arg-type]
    writer.write(TONE[:10])
    size = (beside(tmp_path / "x.wav")[0]).stat().st_size

    def half(file: io.RawIOBase, data: bytes) -> None:
        file.write(data[:7])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audio, "write_all", half)
        writer.write(TONE[10:20])
    assert writer.keep_partial() == tmp_path / "x.wav"
    assert (tmp_path / "x.wav").stat().st_size == size
    if container == "wav":
        assert soundfile.info(tmp_path / "x.wav").frames == 10


def test_partials_of_runs_that_will_resume(tmp_path: Path) -> None:
    writer = WavWriter(tmp_path / "x.wav", RATE)
    writer.write(TONE)
    kept = writer.keep_partial(beside=True)
    assert kept is not None
    assert kept != tmp_path / "x.wav"
    assert kept.suffix == ".wav"
    assert not (tmp_path / "x.wav").exists()
    again = WavWriter(tmp_path / "x.wav", RATE)
    again.write(TONE[:5])
    again.commit()
    assert len(stdlib(kept)[0]) == len(TONE), "an earlier partial is not written over"
    assert WavWriter(tmp_path / "y.wav", RATE).keep_partial() is None
    assert not list(tmp_path.glob("y*"))
    with pytest.raises(InputError, match="closed"):
        again.write(TONE)


KILLED = """
import os, sys, signal, numpy as np
from wavenet_fast.audio import WavWriter
with WavWriter(sys.argv[1], 16000) as file:
    for _ in range(3):
        file.write(np.full(123, 0.25, np.float32))
    os.kill(os.getpid(), signal.{})
"""


def child(code: str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=HERE, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_killed_process_leaves_a_playable_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    process = child(KILLED.format(name), str(path), stderr=subprocess.DEVNULL)
    assert process.wait(60) == -getattr(signal, name)
    samples, _ = stdlib(beside(path)[0] if name == "SIGKILL" else path)
    np.testing.assert_array_equal(samples, np.full(369, 8192))


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "x.wav").symlink_to(tmp_path / "real" / "y.wav")
    with WavWriter(tmp_path / "x.wav", RATE) as file:
        file.write(TONE)
    assert (tmp_path / "x.wav").is_symlink()
    assert len(stdlib(tmp_path / "real" / "y.wav")[0]) == len(TONE)


def test_names_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / ("ж" * 125 + ".wav")
    with WavWriter(path, RATE) as file:
        file.write(TONE)
    assert len(stdlib(path)[0]) == len(TONE)


@pytest.mark.parametrize(
    ("encoding", "container", "expected"),
    [
        ("pcm16", "wav", None),
        ("float32", "wav", None),
        ("pcm16", "raw", to_pcm16(TONE).tobytes()),
        ("float32", "raw", TONE.astype("<f4").tobytes()),
    ],
)
def test_pipes_get_sound_at_once(encoding: str, container: str, expected: bytes | None) -> None:
    reader, end = os.pipe()
    with open(reader, "rb", buffering=0) as source:
        with open(end, "wb") as pipe:
            with WavWriter(pipe, RATE, encoding, container) as file:  # type: ignore[arg-type]
                file.write(TONE[:100])
                begun = source.read(1 << 16)
                file.write(TONE[100:])
            assert not pipe.closed
        data = begun + b"".join(iter(lambda: source.read(1 << 16), b""))
    assert len(begun) >= 200
    if expected is not None:
        assert data == expected
        return
    assert data[4:8] == b"\xff" * 4
    assert data[data.index(b"data") + 4 :][:4] == b"\xff" * 4
    wav, _ = read_audio(io.BytesIO(data))
    np.testing.assert_allclose(wav, TONE, atol=1e-4 if encoding == "pcm16" else 0)


def test_a_reader_that_goes_away_is_a_broken_pipe() -> None:
    reader, end = os.pipe()
    os.close(reader)
    with open(end, "wb", buffering=0) as pipe, pytest.raises(BrokenPipeError):
        WavWriter(pipe, RATE)


def test_file_objects_that_can_seek_get_true_sizes(tmp_path: Path) -> None:
    memory = io.BytesIO(b"before")
    memory.seek(6)
    with WavWriter(memory, RATE) as file:
        file.write(TONE)
        file.write(TONE)
    assert memory.getvalue()[:6] == b"before"
    with wave.open(io.BytesIO(memory.getvalue()[6:])) as back:
        assert back.getnframes() == 2 * len(TONE)
    code = "import sys, numpy as np; from wavenet_fast.audio import WavWriter\n"
    code += "with WavWriter(sys.stdout.buffer, 16000) as f: [f.write(np.ones(50, np.float32)) for _ in range(4)]"
    for mode in ("wb", "ab"):
        with open(tmp_path / mode, mode) as target:
            assert child(code, stdout=target).wait(60) == 0
        data = (tmp_path / mode).read_bytes()
        assert len(data) == 44 + 2 * 200
        assert struct.unpack("<I", data[40:44])[0] == (400 if mode == "wb" else 0xFFFFFFFF)
        assert len(read_audio(tmp_path / mode)[0]) == 200


def test_beyond_four_gigabytes_the_size_is_unknown_again(tmp_path: Path) -> None:
    writer = WavWriter(tmp_path / "x.wav", RATE)
    for samples, size in (((1 << 31) - 100, (1 << 32) - 200), (1 << 31, 0xFFFFFFFF), (1 << 40, 0xFFFFFFFF)):
        writer.samples = samples
        assert struct.unpack("<I", writer._header()[40:44])[0] == size
    writer.discard()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.wav", "no such file"),
        (tmp_path / "file" / "x.wav", "not a directory"),
        ("nul\0.wav", "null character"),
        *([("/dev/full", "no space left")] if os.path.exists("/dev/full") else []),
    ):
        with pytest.raises(AudioError, match=words), WavWriter(path, RATE) as file:
            file.write(TONE)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if os.path.exists("/dev/null"):
        with WavWriter("/dev/null", RATE) as file:
            file.write(TONE)
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"good")

    def full(file: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(AudioError, match=r"x\.wav: cannot be written: no space left"), WavWriter(path, RATE) as file:
        file.write(TONE)
        monkeypatch.setattr(audio, "write_all", full)
        file.write(TONE)
    assert path.read_bytes() == b"good"
    assert not beside(path)


def test_what_a_writer_refuses(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "x.wav", RATE) as file:
        with pytest.raises(ShapeError, match=r"\(2, 3\)"):
            file.write(np.zeros((2, 3), np.float32))
        with pytest.raises(InputError, match="NaN"):
            file.write(np.array([np.nan], np.float32))
        file.write(TONE)
    assert len(stdlib(tmp_path / "x.wav")[0]) == len(TONE)
    with pytest.raises(InputError, match="mp3"):
        WavWriter(tmp_path / "y.wav", RATE, "mp3")  # type: ignore[arg-type]
    assert not (tmp_path / "y.wav").exists()


def test_sound_libraries_are_loaded_when_needed() -> None:
    code = "import sys, wavenet_fast.audio; sys.exit(bool({'soundfile', 'soxr', 'torch'} & set(sys.modules)))"
    assert child(code).wait(60) == 0
