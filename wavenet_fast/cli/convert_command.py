"""`convert`: a checkpoint of another project → a voice's directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .report import say


@click.command(name="convert")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--family", metavar="NAME", help="r9y9, kan-bayashi, nv-wavenet or own. [default: told by the tensors]")
@click.option(
    "--hparams", metavar="FILE|NAME",
    help="hparams.json (r9y9), model.conf (kan-bayashi) or config.json (nv-wavenet), or autovc for the file that "
    "AutoVC and SpeechSplit publish. [default: what lies beside IN]",
)  # fmt: skip
@click.option("--skip-rule", metavar="RULE", help="running or sum: of an old r9y9 file whose hparams lack `legacy`.")
@click.option("--mel", metavar="NAME|FILE", help="Recipe of its mels: a preset, a JSON file, or elsewhere.")
@click.option(
    "--stats", type=click.Path(path_type=Path), metavar="FILE",
    help="Mean and scale of its mels: meanvar.joblib, stats.h5 or .npz. [default: what lies beside IN]",
)  # fmt: skip
@click.option("--sample-rate", type=click.IntRange(1000, 384_000), metavar="HZ", help="Of a kan-bayashi file.")
@click.option(
    "--conditioning", type=click.Path(path_type=Path), metavar="FILE",
    help="For what nv-wavenet's export_weights() gave: a file with its upsample and cond_layers.",
)  # fmt: skip
@click.option(
    "--mel-check", nargs=2, type=click.Path(path_type=Path), metavar="WAV MEL",
    help="A recording and the mel that the other project made of it: refuse if this recipe makes another.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of the weights.")
@click.option("--i-trust-this-file", "trusted", is_flag=True, help="Also read a whole pickled module.")
@click.option("--overwrite", is_flag=True, help="Replace the voice that is at OUT.")
def convert_command(
    source: Path, out: Path, mel_check: tuple[Path, Path] | None, dtype: Any, overwrite: bool, **options: Any
) -> None:
    """Convert the checkpoint IN of r9y9/wavenet_vocoder, kan-bayashi/PytorchWaveNetVocoder, ESPnet or nv-wavenet into
    the voice OUT, a directory.

    Pickles are read by PyTorch with weights_only, in a process of its own with limits on memory and time. What
    neither the file nor what lies beside it says is asked for by an option, never guessed."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ..importers.convert import Options, check_target, read, write

    check_target(out, overwrite)
    steps = 3 + (mel_check is not None)
    with tqdm(total=steps, disable=None, delay=2, leave=False, file=sys.stderr, bar_format="{desc} {n}/{total}") as bar:

        def watch(step: str) -> None:
            bar.set_description_str(step)
            bar.update(bar.n < steps)

        checkpoint, notes = read(source, Options(**options), watch)
        if mel_check is not None:
            watch("checking the mel")
            say(f"the recipe makes that mel: {_checked(checkpoint, *mel_check):.4f} standard deviations apart")
        watch("writing")
        write(out, checkpoint, dtype, overwrite)
    for note in notes:
        say(note)
    click.echo(f"{out}: {checkpoint.info.get('provenance', {}).get('family', 'a voice of this package')}")


def _checked(checkpoint: Any, wav: Path, mel: Path) -> float:
    from ..audio import read_audio
    from ..importers.mel_check import check
    from ..melfile import read_mel

    sound, _ = read_audio(wav, checkpoint.mel.sample_rate)
    return check(checkpoint, sound, read_mel(mel).mel)
