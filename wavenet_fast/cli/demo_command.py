"""`demo`: the first thing to run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import default_voice, engine_options, json_option, load_voice, seed_option


@click.command(name="demo")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("wavenet-fast-demo"),
    show_default=True,
    help="Folder for the results.",
)
@click.option("--sample", metavar="NAME", help="Which held-out recording. [default: the first]")
@click.option("--temperature", type=float, help="1 samples what the model learned. [default: the voice's own]")
@seed_option
@json_option
@engine_options
def demo_command(
    out: Path, sample: str | None, temperature: float | None, seed: int, as_json: bool, voice: str | None,
    backend: str, device: str, dtype: str, threads: int | None,
) -> None:  # fmt: skip
    """Vocode a held-out recording from its mel alone, and leave both to be heard.

    Writes original.wav, vocoded.wav and, where matplotlib is installed, spectrograms.png."""
    from ..demo import format_demo, run_demo

    name = voice or default_voice()
    loaded = load_voice(name, backend, device, dtype, threads)
    told = run_demo(loaded, name, out, sample=sample, seed=seed, temperature=temperature)
    click.echo(json.dumps(told) if as_json else format_demo(told))
