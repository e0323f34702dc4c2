"""Options that several commands share, and the voice that they describe."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..vocoder import Vocoder

F = TypeVar("F", bound=Callable[..., Any])

FORMATS: dict[str, tuple[str, Any, Any]] = {
    "wav": (".wav", "pcm16", "wav"),
    "wav-f32": (".wav", "float32", "wav"),
    "s16le": (".s16le", "pcm16", "raw"),
    "f32le": (".f32le", "float32", "raw"),
}
"""Output format → how its files end, encoding and container. Raw samples are little-endian."""


@dataclass(frozen=True)
class Settings:
    """How to speak, apart from what."""

    seed: int
    temperature: float | None
    speaker: Any
    format: str
    batch: int
    strict_mel: bool
    layout: Any = "ct"
    fold: int = 1


def _decorated(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


voice_option = click.option(
    "--voice",
    metavar="NAME|DIR",
    help="Checkpoint directory, bundled voice, or organisation/name on the Hugging Face Hub.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Tell the outcome as JSON, for programs.")
resample_option = click.option("--resample", is_flag=True, help="Convert recordings to the sample rate wanted.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default="0", metavar="N",
    help="0 … 2⁶⁴−1; the same for every file.",
)  # fmt: skip

temperature_option = click.option(
    "--temperature", type=float, help="1 samples what the model learned. [default: the voice's own]"
)
speaker_option = click.option(
    "--speaker", metavar="ID|FILE", help="Speaker id, or a .npy vector, of a voice that has several."
)
batch_option = click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, metavar="N", help="Files vocoded together."
)


def layout_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--layout", type=click.Choice(["ct", "tc"]), default=default, show_default=True,
        help="ct: mels are (bands, frames); tc: (frames, bands).",
    )  # fmt: skip


mel_from_option = click.option(
    "--mel-from", metavar="NAME",
    help="Convert mels exactly from another recipe: ln, log10, db, db-20 (decibels less 20), unit (those mapped to "
    "0 … 1), or a preset.",
)  # fmt: skip

device_options = _decorated(
    [
        click.option(
            "--backend",
            default="auto",
            show_default=True,
            help="cuda or triton (NVIDIA GPU), cpu, reference, or auto: the first of them that works here, a GPU only "
            "after a self-test (see doctor).",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="For cuda and triton: cuda, cuda:N or emulated (on the CPU, for proof: very slow); else cpu.",
        ),
        click.option(
            "--dtype",
            default="auto",
            show_default=True,
            help="Number format: fp32, bf16, fp16, int8, or auto: int8 where the voice records (see check) that this "
            "costs at most 0.02 bits per sample and the code is not portable, else bf16 where the processor has it, "
            "else fp32; on cuda and triton bf16.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            metavar="N",
            help="Threads; a small model uses one a stream, so more help with --batch or --fold.",
        ),
    ]
)

engine_options = _decorated([voice_option, device_options])

speech_options = _decorated(
    [
        seed_option,
        temperature_option,
        speaker_option,
        click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="wav", show_default=True,
                     help="wav is 16-bit; s16le and f32le are raw PCM."),
        batch_option,
        click.option("--fold", type=click.IntRange(1), default=1, show_default="1, exact", metavar="N",
                     help="Cut each file into up to N pieces, vocode them side by side and join them: approximate, for "
                     "long files. Nothing is written before a file is done."),
        click.option("--strict-mel", is_flag=True, help="Refuse mels that look like another recipe's."),
    ]
)  # fmt: skip

run_options = _decorated(
    [
        click.option("-o", "--out", required=True, metavar="OUT", help='File, folder, or "-" for stdout.'),
        click.option("--overwrite", is_flag=True, help="In a folder, make again what is already there."),
        click.option("--report", metavar="FILE", help="Write what became of each file, as JSON."),
        json_option,
        click.option("-q", "--quiet", is_flag=True, help="No progress and no summary."),
    ]
)


def load_voice(voice: str | None, backend: str, device: str, dtype: str, threads: int | None) -> Vocoder:
    """The voice of the engine options; the bundled one where none is named."""
    return voice_from(voice or default_voice(), backend, device, dtype, threads)


def voice_from(name: str, backend: str, device: str, dtype: str, threads: int | None) -> Vocoder:
    """The voice of that name, for `device_options`."""
    from ..vocoder import Vocoder

    return Vocoder.from_pretrained(name, backend, device, dtype, threads)


def default_voice() -> str:
    """The bundled voice. Raises `InputError` where the package has none."""
    from ..checkpoint import bundled_voices

    names = bundled_voices()
    if not names:
        raise InputError("no voice is bundled with this installation; name a checkpoint directory with --voice")
    return names[0]


def parse_speaker(text: str | None) -> Any:
    """An id, or the vector in a .npy file. Raises `InputError` and, for a file that cannot be used, `AudioError`."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return int(text)
    if not text.endswith(".npy"):
        raise InputError(f"--speaker is {text!r}; give a speaker id, or a .npy file that holds a speaker vector")
    from ..melfile import read_vector

    return read_vector(text)
