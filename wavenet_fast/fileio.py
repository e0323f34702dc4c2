"""Opening what may be anything, and writing so that a name holds a whole file or what it held before."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from .errors import AudioError, WavenetFastError

Source: TypeAlias = "str | os.PathLike[str] | BinaryIO"

MAX_SPOOL_BYTES = 8 << 30
"""Of what comes through a pipe, which has to be copied to disk before it can be read: 8 GiB."""


class Opened(NamedTuple):
    """A seekable file at its beginning, what to call it in a message, and its size in bytes."""

    file: BinaryIO
    name: str
    size: int


@contextmanager
def opened(source: Source, kind: str) -> Iterator[Opened]:
    """`source`, a path or a binary file object, as a seekable file; `kind` says in messages what is wanted.

    A path must lead to a regular file: opening a pipe could wait for ever, and a device has no end. A file object is
    read from its beginning, or copied to disk first where it cannot seek. Raises `AudioError`, also for whatever the
    operating system refuses while the file is being read.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with sentences(name, "read"):
            flags = (
                os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            )
            if os.path.isdir(name):  # Windows cannot open one to ask
                raise AudioError(f"{name}: is a folder; give {kind}")
            with os.fdopen(os.open(name, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise AudioError(f"{name}: is a pipe, socket or device; give {kind}")
                yield Opened(file, name, status.st_size)
        return
    name = str(getattr(source, "name", "the given file object"))
    with sentences(name, "read"):
        if source.seekable():
            size = source.seek(0, io.SEEK_END)
            source.seek(0)
            yield Opened(source, name, size)
            return
        with tempfile.TemporaryFile() as copy:
            while copy.tell() <= MAX_SPOOL_BYTES and (block := source.read(1 << 20)):
                copy.write(block)
            size = copy.tell()
            if size > MAX_SPOOL_BYTES:
                raise AudioError(f"{name}: is longer than {MAX_SPOOL_BYTES >> 30} GiB; give {kind} in pieces")
            copy.seek(0)
            yield Opened(copy, name, size)


class Replacement:
    """A file being written beside `target`, to take its place in one step.

    file  the working file, open for writing without a buffer of its own
    path  where it lies: beside the target, as NAME.<process id>.partial.SUFFIX, so that it can be played whatever
          becomes of this process
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        with sentences(os.fspath(target), "written"):
            self.target = Path(os.path.realpath(target))  # through a link: what it points to is replaced, not the link
            if self.target.is_dir():
                raise AudioError(f"{self.target}: is a folder; name a file")
            stem = os.fsdecode(os.fsencode(self.target.stem)[:180])  # room for the rest of the name
            for attempt in range(100):
                extra = f"-{attempt}" if attempt else ""
                self.path = self.target.with_name(f"{stem}.{os.getpid()}{extra}.partial{self.target.suffix}")
                with suppress(FileExistsError):
                    self.file = open(self.path, "x+b", buffering=0)  # noqa: SIM115 - closed by commit or discard
                    return
        raise AudioError(f"{self.target}: a hundred unfinished files (*.partial*) lie beside it; remove them")

    def commit(self) -> None:
        """Put the file in place. Where that fails the error says where it is."""
        with sentences(str(self.target), "written"):
            try:
                os.fsync(self.file.fileno())  # a full disk may be noticed only here
            except OSError:
                self.discard()
                raise
            self.file.close()
            try:
                os.replace(self.path, self.target)
            except OSError as error:
                raise AudioError(f"{self.target}: cannot be replaced ({error.strerror}); see {self.path}") from None

    def keep(self, beside: bool) -> Path:
        """Close the unfinished file and return where it is: under the target's name if nothing is there and not
        `beside`, else where it was written."""
        self.file.close()
        if not beside and not os.path.lexists(self.target):
            with suppress(OSError):
                os.replace(self.path, self.target)
                return self.target
        return self.path

    def discard(self) -> None:
        self.file.close()
        with suppress(OSError):
            self.path.unlink()


def is_special(target: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither a regular file nor a folder: a pipe, a socket or a device."""
    try:
        mode = os.stat(target).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write all of `target` into; it takes its place when the block ends, and is gone where it fails. Into a
    pipe or a device it is written as it comes: neither can be replaced without being lost."""
    if is_special(target):
        with sentences(os.fspath(target), "written"), open(target, "wb", buffering=0) as file:
            yield file
        return
    new = Replacement(target)
    try:
        with sentences(os.fspath(target), "written"):
            yield new.file
    except BaseException:
        new.discard()
        raise
    new.commit()


@contextmanager
def sentences(name: str, done: str) -> Iterator[None]:
    """Turns an OSError into an `AudioError`: NAME: cannot be read: reason. A broken pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AudioError(f"{name}: cannot be {done}: {reason}") from None
    except ValueError as error:
        if isinstance(error, WavenetFastError) or "embedded null" not in str(error):
            raise
        raise AudioError(f"{name!r}: is no file name: it holds a null character") from None


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte; an unbuffered file may take fewer at a time."""
    view = memoryview(data)
    while len(view):
        taken = file.write(view)
        if not taken:
            raise BlockingIOError(11, "the receiver takes no data; it must not be in non-blocking mode")
        view = view[taken:]
