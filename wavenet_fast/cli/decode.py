"""`wavenet-fast-decode`: ParallelWaveGAN's decoding command, for a voice. A recipe's stage changes the program's name
and --checkpoint.

Features are (frames, bands), as ParallelWaveGAN's preprocessing dumps them; UTT becomes OUTDIR/UTT_gen.wav, 16 bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, InputError
from . import SentencedCommand
from .files import Job, Plan
from .options import (
    Settings,
    batch_option,
    device_options,
    layout_option,
    mel_from_option,
    parse_speaker,
    seed_option,
    speaker_option,
    temperature_option,
    voice_from,
)
from .report import Progress, Report, say

if TYPE_CHECKING:
    from ..vocoder import Vocoder

MAX_VALUES = 1 << 30
"""Of one utterance's features, as for mel files."""
MAX_LIST_BYTES = 1 << 28
DUMPED = "-feats.npy"


@click.command(name="wavenet-fast-decode", cls=SentencedCommand)
@click.option("--scp", "--feats-scp", metavar="FILE", help="Kaldi-style list: utterance, then .npy, .h5 or ark:offset.")
@click.option("--dumpdir", metavar="DIR", help=f"Folder with *{DUMPED} or *.h5 (dataset feats), searched to its depth.")
@click.option("--outdir", required=True, metavar="DIR", help="Where UTT_gen.wav go.")
@click.option("--checkpoint", required=True, metavar="NAME|DIR", help="The voice.")
@click.option("--config", metavar="FILE", help="Not read: a voice brings its own.")
@click.option(
    "--normalize-before", is_flag=True, help="The features are not normalised; do it by the voice's statistics."
)
@click.option("--verbose", type=int, default=1, show_default=True, help="0 is silent, 2 tells more.")
@mel_from_option
@layout_option("tc")
@seed_option
@temperature_option
@speaker_option
@batch_option
@device_options
def decode_command(
    scp: str | None, dumpdir: str | None, outdir: str, checkpoint: str, config: str | None, normalize_before: bool,
    verbose: int, mel_from: str | None, layout: Any, seed: int, temperature: float | None, speaker: str | None,
    batch: int, **engine: Any,
) -> int:  # fmt: skip
    """Vocode dumped features, as `parallel-wavegan-decode` does."""
    from .speak import Speech, facts_of

    if (scp is None) == (dumpdir is None):
        raise InputError("give one of --dumpdir and --scp: where the features are")
    if mel_from is not None and normalize_before:
        raise InputError("--mel-from and --normalize-before both say what the features are; give one of them")
    found = dict(_listed(scp) if scp is not None else _dumped(str(dumpdir)))
    plan = Plan(True, [Job(Path(utterance), _target(outdir, utterance)) for utterance in found])
    settings = Settings(seed, temperature, parse_speaker(speaker), "wav", batch, False, layout)
    voice = voice_from(checkpoint, **engine)
    if config is not None and verbose:
        say(f"--config {config} is not read: the voice {checkpoint} brings its own")
    if verbose > 1:
        say("; ".join((repr(voice), *voice.backend_notes)))

    def load(job: Job) -> NDArray[np.float32]:
        return _prepared(voice, found[str(job.source)](), normalize_before, mel_from, layout)

    told = Report(plan, facts_of(voice, checkpoint, settings))
    with told.told(None, False, not verbose), Progress(plan, not verbose) as progress:
        Speech(voice, plan, load, settings, told, progress).run()
    return told.exit_code


def main() -> NoReturn:
    """The entry point of the script `wavenet-fast-decode`."""
    decode_command.main(prog_name="wavenet-fast-decode")


Loader = Callable[[], NDArray[Any]]


def _target(outdir: str, utterance: str) -> Path:
    folder = Path(outdir)
    if not outdir or (folder.exists() and not folder.is_dir()):
        raise InputError(f"--outdir {outdir}: is no folder; name one, which is made where it is missing")
    if "/" in utterance or "\0" in utterance or utterance in (".", ".."):
        raise InputError(f"the utterance {ascii(utterance)[:80]} cannot be a file's name; rename it in the list")
    return folder / f"{utterance}_gen.wav"


def _dumped(dumpdir: str) -> Iterator[tuple[str, Loader]]:
    """The utterances of a folder, in the order of their paths, and how to read each."""
    folder = Path(dumpdir)
    if not folder.is_dir():
        raise InputError(f"--dumpdir {dumpdir}: is no folder; give the one that holds *{DUMPED} or *.h5")
    seen: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith((DUMPED, ".h5")) and p.is_file()):
        utterance = path.name.removesuffix(DUMPED) if path.name.endswith(DUMPED) else path.stem
        if utterance in seen:
            raise InputError(f"{seen[utterance]} and {path} are both utterance {utterance}; rename one, or give --scp")
        seen[utterance] = path
        yield utterance, _loader(str(path))
    if not seen:
        raise InputError(f"--dumpdir {dumpdir}: holds neither *{DUMPED} nor *.h5; is it the folder of the features?")


def _listed(scp: str) -> Iterator[tuple[str, Loader]]:
    """The utterances of a Kaldi-style list, and how to read each."""
    from ..fileio import opened

    with opened(scp, "a list of utterances") as found:
        if found.size > MAX_LIST_BYTES:
            raise InputError(f"--scp {scp}: has {found.size} bytes; a list may have {MAX_LIST_BYTES}: cut it in pieces")
        text = found.file.read()
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--scp {scp}: is no text; give a list with an utterance and its file on each line") from None
    seen = set()
    for number, line in enumerate(lines, 1):
        utterance, _, value = line.strip().partition(" ")
        if not utterance:
            continue
        if not value.strip():
            raise InputError(f"{scp}, line {number}: {ascii(line)[:80]} names no file; give an utterance and its file")
        if utterance in seen:
            raise InputError(f"{scp}, line {number}: utterance {utterance} is listed twice; every name makes one file")
        seen.add(utterance)
        yield utterance, _loader(value.strip())
    if not seen:
        raise InputError(f"--scp {scp}: lists no utterance; give an utterance and its file on each line")


def _loader(value: str) -> Loader:
    """How to read features (F, M) from `value`: a .npy file, file.h5 or file.h5:dataset, or a place in a Kaldi ark."""
    if value.endswith("|"):
        command = f"{ascii(value)[1:-1][:80]}: is a command, and none is run; write its output to a file, and list that"
        return lambda: _refuse(command)
    if value.endswith(".npy"):
        return lambda: _read_npy(value)
    path, _, dataset = value.partition(":")
    if path.endswith(".h5"):
        return lambda: _read_h5(path, dataset or "feats")
    return lambda: _read_ark(value)


def _refuse(sentence: str) -> NoReturn:
    raise AudioError(sentence)


def _read_npy(path: str) -> NDArray[Any]:
    from ..audio import read_mel

    return read_mel(path).mel


def _read_h5(path: str, dataset: str) -> NDArray[Any]:
    with _library("h5py", path), _damaged(path):
        import h5py

        with h5py.File(path, "r") as file:
            found = file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                raise AudioError(f"{path}: holds no dataset {dataset}; ParallelWaveGAN dumps mels as feats")
            if found.size is None or found.size > MAX_VALUES:
                raise AudioError(f"{path}: {dataset} has the shape {found.shape}; at most {MAX_VALUES} values are read")
            return np.asarray(found)


def _read_ark(value: str) -> NDArray[Any]:
    with _library("kaldiio", value), _damaged(value):
        import kaldiio

        return np.asarray(kaldiio.load_mat(value))


@contextmanager
def _library(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise InputError(
            f'{path}: needs {name}, which is not installed; pip install "wavenet-fast[decode]", or dump *{DUMPED}'
        ) from None


@contextmanager
def _damaged(path: str) -> Iterator[None]:
    """What a library raises for a file that it cannot read is not specified."""
    try:
        yield
    except (AudioError, ImportError, MemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise AudioError(f"{path}: cannot be read: {reason[:200]}") from None


def _prepared(
    voice: Vocoder, mel: NDArray[Any], normalize_before: bool, mel_from: str | None, layout: Any
) -> NDArray[np.float32]:
    """Features as the voice takes them, with the same axes."""
    from ..mel_convert import convert_mel
    from ..peer_calls import from_raw, has_statistics

    if mel_from is not None:
        return np.asarray(convert_mel(mel, mel_from, voice, layout=layout))
    if not normalize_before:
        return mel
    if not has_statistics(voice):
        raise InputError("--normalize-before: this voice has no mean and scale to normalise by; leave it out")
    own = from_raw(voice, mel, layout)[0][0]
    return np.asarray(own.T if layout == "tc" else own, np.float32)
