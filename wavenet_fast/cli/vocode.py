"""`vocode`: mel files → sound. `resynth`: recordings → mel → sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import AudioError, InputError, ShapeError
from ..recipe import recipe_differences
from .files import MEL_SUFFIXES, SOUND_SUFFIXES, Job, make_plan, readable
from .options import (
    FORMATS,
    Settings,
    default_voice,
    engine_options,
    layout_option,
    load_voice,
    mel_from_option,
    parse_speaker,
    resample_option,
    run_options,
    speech_options,
)
from .report import Progress, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..vocoder import Vocoder

MEL_MAGICS = {b"\x93NUMPY": "npy", b"PK\x03\x04": "npz"}


@click.command(name="vocode")
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@run_options
@speech_options
@layout_option("ct")
@mel_from_option
@engine_options
def vocode_command(inputs: tuple[str, ...], mel_from: str | None, layout: Any, **options: Any) -> int:
    """Vocode mel files (.npz of `wavenet-fast mel`, or .npy) IN... into OUT.

    A folder IN keeps its tree below OUT; what is already there is skipped, and files that cannot be used are reported
    while the rest is done (exit code 3). "-" reads one mel from stdin or writes sound to stdout. Ctrl-C leaves what is
    made so far as a valid file, with --fold the files that are done. "--mel-from file" takes the recipe that a .npz
    carries."""

    def mel_of(voice: Vocoder, job: Job) -> Any:
        return read_mel_for(voice, job, mel_from, layout)

    return speak_files(inputs, MEL_SUFFIXES, "mel files", mel_of, layout=layout, **options)


@click.command(name="resynth")
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@run_options
@speech_options
@resample_option
@engine_options
def resynth_command(inputs: tuple[str, ...], resample: bool, **options: Any) -> int:
    """Take the mel of recordings IN... (WAV, FLAC …) and vocode it again into OUT: what the voice makes of them.

    Folders, "-", exit codes and Ctrl-C are as for `vocode`."""
    from .sound import read_sound

    def mel_of(voice: Vocoder, job: Job) -> Any:
        return voice.mel(read_sound(job, voice.sample_rate, resample), voice.sample_rate)

    return speak_files(inputs, SOUND_SUFFIXES, "sound files", mel_of, **options)


def speak_files(
    inputs: Sequence[str], suffixes: Sequence[str], what: str, read: Callable[[Vocoder, Job], Any],
    *, out: str, overwrite: bool, report: str | None, as_json: bool, quiet: bool,
    seed: int, temperature: float | None, speaker: str | None, format_: str, batch: int, strict_mel: bool,
    fold: int, layout: str = "ct", voice: str | None, **engine: Any,
) -> int:  # fmt: skip
    """Vocode the mel that `read` finds for each input; the exit code. The rest are the options of the commands."""
    from .speak import Speech, facts_of

    if fold > 1 and batch > 1:
        raise InputError(
            f"--batch {batch} vocodes several files together, --fold {fold} the pieces of one; give one of the two"
        )
    plan = make_plan(inputs, out, suffixes, FORMATS[format_][0], overwrite, what)
    settings = Settings(seed, temperature, parse_speaker(speaker), format_, batch, strict_mel, layout, fold)
    voice = voice or default_voice()
    loaded = load_voice(voice, **engine)
    told = Report(plan, facts_of(loaded, voice, settings))
    with told.told(report, as_json, quiet), Progress(plan, quiet) as progress:
        Speech(loaded, plan, lambda job: read(loaded, job), settings, told, progress).run()
    return told.exit_code


def read_mel_for(voice: Vocoder, job: Job, mel_from: str | None = None, layout: Any = "ct") -> Any:
    """The mel of a job, float32, with the axes of the file, which `layout` names. `mel_from` converts it from that
    recipe, or from its own where it is "file". Raises `AudioError` where the recipe that it carries is not the voice's,
    or not the one named."""
    from ..audio import read_mel
    from ..mel_convert import convert_mel, same_linear_mel

    found = read_mel(readable(job, MEL_MAGICS, "mel file"))
    if mel_from is not None:
        if (found.spec is None) == (mel_from == "file"):
            has = "no recipe" if found.spec is None else "a recipe of its own"
            advice = "name the recipe" if found.spec is None else "give --mel-from file"
            raise AudioError(f"{job.name}: carries {has}, and --mel-from is {mel_from!r}; {advice}")
        try:
            return convert_mel(found.mel, found.spec or mel_from, voice, layout=layout)
        except (InputError, ShapeError) as error:
            raise type(error)(f"{job.name}: {error}") from None
    if found.spec is not None and found.spec != voice.mel_spec:
        convertible = same_linear_mel(found.spec, voice.mel_spec) and found.spec.normalize != "meanvar"
        raise AudioError(
            f"{job.name}: its mel recipe is not this voice's: {recipe_differences(found.spec, voice.mel_spec)};"
            f" {'convert it, with --mel-from file, or ' if convertible else ''}make it again from the sound, with"
            " `wavenet-fast mel` and this --voice"
        )
    return found.mel
