"""Sound files in, sound files out. (Mel files are in `melfile`; their names can be had from here too.)"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from .config import MAX_RATE, MIN_RATE
from .errors import AudioError, InputError, ShapeError
from .fileio import Opened, Replacement, Source, is_special, opened, sentences, write_all
from .melfile import MelFile as MelFile
from .melfile import read_mel as read_mel
from .melfile import write_mel as write_mel

Samples = NDArray[np.float32]
Encoding = Literal["pcm16", "float32"]

MAX_FILE_SAMPLES = 1 << 30
"""Of one sound file: 18 hours at 16 kHz, 4 GiB in memory."""


_UNKNOWN = 0xFFFF_FFFF
"""What stands for the size in the header of a WAV that is written to a pipe; others write 0x7FFF_F000 and the like."""


def read_audio(
    source: Source, sample_rate: int | None = None, resample: bool = False, mixdown: bool = False
) -> tuple[Samples, int]:
    """A recording, (N,) float32 mono with full scale ±1, and its sample rate in Hz.

    source: path or binary file object: WAV, FLAC, Ogg and whatever else libsndfile reads, known by its content.
    sample_rate: what is wanted, or None for the file's own; another one is converted (soxr, very high quality) only
    where `resample` says so, and several channels are averaged only where `mixdown` says so.

    Raises `AudioError`: not a readable sound file, cut short, without sound, NaN or infinity in it, another sample
    rate, more than one channel, more than `MAX_FILE_SAMPLES` samples.
    """
    with opened(source, "a sound file") as found:
        wav, rate = _decode(found, sample_rate if not resample else None, mixdown)
        name = found.name
    if sample_rate is not None and rate != sample_rate:
        import soxr

        wav = np.asarray(soxr.resample(wav, rate, sample_rate, quality="VHQ"), np.float32)
        rate = sample_rate
        if not len(wav):
            raise AudioError(f"{name}: is too short to be brought to {sample_rate} Hz")
    return wav, rate


def _decode(found: Opened, wanted_rate: int | None, mixdown: bool) -> tuple[Samples, int]:
    import soundfile

    file, name, size = found
    if not size:
        raise AudioError(f"{name}: is empty (0 bytes); give a sound file")
    _check_promise(found)
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(". ").lower()
        raise AudioError(f"{name}: is no sound file that can be read (WAV, FLAC, Ogg …): {reason}") from None
    with sound:
        rate, channels = sound.samplerate, sound.channels
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"{name}: its header says {rate} Hz; {MIN_RATE} … {MAX_RATE} Hz can be used")
        if wanted_rate is not None and rate != wanted_rate:
            raise AudioError(
                f"{name}: is at {rate} Hz where {wanted_rate} Hz is wanted; convert it, or ask for that with"
                " resample=True (--resample)"
            )
        if channels != 1 and not mixdown:
            raise AudioError(
                f"{name}: has {channels} channels where one is wanted; mix it to mono, or ask for the average of the"
                " channels with read_audio(…, mixdown=True)"
            )
        wav = _read_blocks(sound, name)
        if not len(wav):
            raise AudioError(f"{name}: holds no sound (0 samples); at least one is needed")
        return wav, rate


def _read_blocks(sound: Any, name: str) -> Samples:
    """All samples as mono; block by block, because the length in a header may be anything."""
    sound.seekable = lambda: False  # else soundfile seeks after every read, which fails at the end of a stream
    block, blocks, total = max(1, (1 << 18) // sound.channels), [], 0
    while True:
        try:
            part = sound.read(block, dtype="float32", always_2d=True)
        except RuntimeError as error:
            reason = str(getattr(error, "error_string", error)).rstrip(". ").lower()
            raise AudioError(f"{name}: is damaged after {total} samples: {reason}") from None
        if not len(part):
            break
        mono = part[:, 0] if sound.channels == 1 else part.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            first = total + int(np.argmin(np.isfinite(mono)))
            raise AudioError(f"{name}: sample {first} is NaN or infinite; repair the recording")
        total += len(mono)
        if total > MAX_FILE_SAMPLES:
            raise AudioError(f"{name}: holds more than {MAX_FILE_SAMPLES} samples; cut it into pieces")
        blocks.append(np.ascontiguousarray(mono))
    # A stream's header may not know its length (libsndfile: 2⁶³ − 1), an MP3's is an estimate.
    if total < sound.frames < 1 << 62 and sound.format not in ("MP3", "MPEG"):
        raise AudioError(f"{name}: is cut short: its header promises {sound.frames} samples, {total} are there")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _check_promise(found: Opened) -> None:
    """Raises where a WAV promises more sound than it holds: libsndfile would silently give what is there."""
    file, name, size = found
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    at = 12
    for _ in range(1000):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8:
            return
        kind, length = struct.unpack("<4sI", chunk)
        held = size - at - 8
        if kind == b"data":
            if held < length < 0x7FFF_0000:  # from there on it stands for "not known when this was written"
                raise AudioError(f"{name}: is cut short: its header promises {length} bytes of sound, {held} are there")
            return
        at += 8 + length + length % 2


def to_pcm16(samples: NDArray[Any]) -> NDArray[np.int16]:
    """16-bit integers of samples with full scale ±1, any shape: round(32767·x), clipped, so that +1 never wraps.

    Raises `InputError` for NaN."""
    samples = np.asarray(samples, np.float32)
    if np.isnan(samples).any():
        raise InputError("the samples hold NaN, which no integer can stand for")
    integers: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * np.float32(32767)).astype("<i2")
    return integers


class WavWriter:
    """Writes mono sound chunk by chunk, as a context manager.

    To a path: the sound grows in a file beside it (NAME.<process id>.partial.SUFFIX), a valid WAV after every chunk
    even if the process is killed, and takes its place when the block ends well. An error removes it. KeyboardInterrupt
    and SystemExit keep what there is (`keep_partial`). A good file under the name is replaced by a finished one only.

    To a file object, a pipe or a device: at once; the sizes in the header are brought up to date where it can seek,
    and else say "unknown" (0xFFFFFFFF). A file object is left open.

    sample_rate in Hz. container "raw" has no header: little-endian samples alone. Raises `AudioError` where writing
    fails; `BrokenPipeError` passes through.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        sample_rate: int,
        encoding: Encoding = "pcm16",
        container: Literal["wav", "raw"] = "wav",
    ) -> None:
        if encoding not in ("pcm16", "float32") or container not in ("wav", "raw"):
            raise InputError(f"{encoding!r} in {container!r} cannot be written; give pcm16 or float32, in wav or raw")
        self.samples = 0
        """Samples written so far."""
        self._rate, self._encoding, self._container = int(sample_rate), encoding, container
        self._replacement: Replacement | None = None
        self._owned = isinstance(target, (str, os.PathLike))
        self._open = True
        if isinstance(target, (str, os.PathLike)):
            self._name = os.fspath(target)
            self._file = self._open_path(self._name)
        else:
            self._name, self._file = str(getattr(target, "name", "the given file object")), target
        self._start = self._file.tell() if container == "wav" and _can_patch(self._file) else None
        try:
            with self._sentences():
                write_all(self._file, self._header())
        except BaseException:
            self.discard()
            raise

    def _open_path(self, name: str) -> BinaryIO:
        if is_special(name):
            with sentences(name, "written"):
                return open(name, "wb", buffering=0)
        self._replacement = Replacement(name)
        return self._replacement.file

    def write(self, samples: NDArray[Any]) -> None:
        """Append samples, (n,) floating point with full scale ±1 (clipped to that in 16 bits)."""
        if np.ndim(samples) != 1:
            raise ShapeError(f"the samples have shape {np.shape(samples)}; give one dimension, (n,)")
        if not self._open:
            raise InputError(f"{self._name}: is closed; samples can be written until then")
        data = to_pcm16(samples) if self._encoding == "pcm16" else np.asarray(samples, "<f4")
        with self._sentences():
            write_all(self._file, np.ascontiguousarray(data).tobytes())
            self.samples += len(data)
            self._patch()
            self._file.flush()

    def commit(self) -> None:
        """End the sound and, for a path, put it in place."""
        if self._open:
            self._open = False
            with self._sentences():
                if self._replacement:
                    self._replacement.commit()
                elif self._owned:
                    self._file.close()
                else:
                    self._file.flush()

    def discard(self) -> None:
        """Remove what was written, where it went to a path; what was there before stays."""
        if self._open:
            self._open = False
            if self._replacement:
                self._replacement.discard()
            elif self._owned:
                self._file.close()

    def keep_partial(self, beside: bool = False) -> Path | None:
        """End the sound early and return where it is kept as a valid file: under the path itself if no file is there
        (never, where `beside`: what runs again shall not take it for finished), else beside it. None where nothing
        was written, or not to a path."""
        if not self._open or not self._replacement or not self.samples:
            self.discard()
            return None
        self._open = False
        with self._sentences():
            self._patch()
            self._file.truncate(self._end())
            return self._replacement.keep(beside)

    def __enter__(self) -> WavWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        elif issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.keep_partial()
        else:
            self.discard()

    def _header(self) -> bytes:
        """WAV header: RIFF, "fmt ", for floats "fact", "data". Beyond 4 GiB the sizes say "unknown" again."""
        if self._container == "raw":
            return b""
        width, code = (2, 1) if self._encoding == "pcm16" else (4, 3)
        known = self._start is not None
        count = min(self.samples, _UNKNOWN) if known else _UNKNOWN
        fmt = struct.pack("<HHIIHH", code, 1, self._rate, self._rate * width, width, 8 * width)
        if code == 3:
            fmt += struct.pack("<H4sII", 0, b"fact", 4, count)
        length = min(self.samples * width, _UNKNOWN) if known else _UNKNOWN
        size = 18 if code == 3 else 16
        rest = b"WAVE" + struct.pack("<4sI", b"fmt ", size) + fmt + struct.pack("<4sI", b"data", length)
        return struct.pack("<4sI", b"RIFF", min(length + len(rest), _UNKNOWN)) + rest

    def _end(self) -> int:
        """Where the next sample goes."""
        width = 2 if self._encoding == "pcm16" else 4
        return (self._start or 0) + len(self._header()) + self.samples * width

    def _patch(self) -> None:
        """Bring the header up to date, where there is one that can be."""
        if self._start is not None:
            self._file.seek(self._start)
            write_all(self._file, self._header())
            self._file.seek(self._end())

    def _sentences(self) -> Any:
        return sentences(self._name, "written")


def _can_patch(file: BinaryIO) -> bool:
    """Whether an earlier place can be written again: not in a pipe, nor in a file open for appending (`>>`)."""
    if not file.seekable():
        return False
    try:
        import fcntl

        return not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND
    except (ImportError, OSError, ValueError, AttributeError):
        return "a" not in str(getattr(file, "mode", ""))
