"""`mel`: recordings → mel files."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..config import MelSpec
from ..errors import InputError
from .files import SOUND_SUFFIXES, Job, make_plan, readable
from .options import default_voice, resample_option, run_options, voice_option
from .report import Progress, Report

SOUND_MAGICS = {b"RIFF": "WAV", b"RF64": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF"}


def read_sound(job: Job, sample_rate: int, resample: bool) -> Any:
    """The recording of a job at `sample_rate`, (N,) float32 mono. Raises `AudioError`."""
    from ..audio import read_audio

    wav, _ = read_audio(readable(job, SOUND_MAGICS, "sound file"), sample_rate, resample=resample)
    return wav


@click.command(name="mel")
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@run_options
@voice_option
@click.option("--preset", metavar="NAME", help="A recipe by name, instead of a voice's.")
@resample_option
def mel_command(
    inputs: tuple[str, ...], out: str, overwrite: bool, report: str | None, as_json: bool, quiet: bool,
    voice: str | None, preset: str | None, resample: bool,
) -> int:  # fmt: skip
    """Extract mels from recordings IN... (WAV, FLAC …) into OUT: .npz files that carry their recipe.

    The recipe is that of --voice (the bundled voice where neither is given) or of --preset. Folders, "-" and exit
    codes are as for `vocode`."""
    if voice and preset:
        raise InputError("--voice and --preset both name a recipe; give one of them")
    plan = make_plan(inputs, out, SOUND_SUFFIXES, ".npz", overwrite, "sound files")
    spec, extract = _recipe(voice, preset)
    told = Report(plan, {"fingerprint": spec.fingerprint, "recipe": preset or voice or default_voice()})
    with told.told(report, as_json, quiet), Progress(plan, quiet) as progress:
        for job in plan.jobs:
            with told.surviving(job):
                wav = read_sound(job, spec.sample_rate, resample)
                seconds = len(wav) / spec.sample_rate
                progress.begin(seconds)
                began = time.perf_counter()
                mel = extract(wav)
                told.working += time.perf_counter() - began
                _write(job, mel, spec)
                told.done(job, frames=mel.shape[1], seconds=seconds)
                progress.advance(seconds)
    return told.exit_code


def _write(job: Job, mel: Any, spec: MelSpec) -> None:
    from ..audio import write_mel

    if job.target is not None:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_mel(job.target, mel, spec)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_mel(Path(folder, "mel.npz"), mel, spec)
        sys.stdout.buffer.write(Path(folder, "mel.npz").read_bytes())
        sys.stdout.buffer.flush()


def _recipe(voice: str | None, preset: str | None) -> tuple[MelSpec, Callable[[Any], Any]]:
    """The recipe, and the function that follows it: (N,) → (M, F)."""
    from ..checkpoint import load_checkpoint, resolve
    from ..mel import MEL_PRESETS, mel_spectrogram

    if preset is None:
        checkpoint = load_checkpoint(resolve(voice or default_voice()))
        spec, weights = checkpoint.mel, checkpoint.weights
        return spec, lambda wav: mel_spectrogram(wav, spec, weights.get("mel.mean"), weights.get("mel.scale"))
    if preset not in MEL_PRESETS:
        raise InputError(f"--preset is {preset!r}; the presets are {', '.join(MEL_PRESETS)}")
    spec = MEL_PRESETS[preset]
    if spec.normalize == "meanvar":
        raise InputError(
            f"--preset {preset} is normalised by the mean and variance of a voice's training data; give that voice as"
            " --voice"
        )
    return spec, lambda wav: mel_spectrogram(wav, spec)
