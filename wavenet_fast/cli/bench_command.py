"""`bench`: the gate, then the stopwatch."""

from __future__ import annotations

import json

import click

from ..errors import InputError
from .options import default_voice, engine_options
from .places import check_place, write_json


@click.command(name="bench")
@click.option("--case", metavar="NAME", help="Named shape with random weights: nv-medium, r9y9-mol …")
@engine_options
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, metavar="N", help="Streams made together."
)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="How long to measure, after the gate.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True, help="Medians are over these.")
@click.option("--json", "json_path", metavar="FILE", help='Write the numbers as JSON; "-" is stdout.')
def bench_command(
    case: str | None, voice: str | None, backend: str, device: str, dtype: str, threads: int | None, batch: int,
    seconds: float, rounds: int, json_path: str | None,
) -> None:  # fmt: skip
    """Measure speed, and how near it comes to the speed at which this machine can read the weights.

    Of a named case, or of a voice; the bundled one where neither is named. One thread unless --threads says otherwise.
    The correctness gate runs first: nothing is timed that computes something else."""
    from ..bench import case_subject, format_bench, measure, voice_subject

    if case is not None and voice is not None:
        raise InputError("both --case and --voice are given; give one of them")
    if json_path is not None and json_path != "-":  # said before the measurement, not after
        check_place(f"--json {json_path}", json_path)
    subject = voice_subject(voice or default_voice()) if case is None else case_subject(case)
    told = measure(subject, backend, device, dtype, batch, threads or 1, seconds, rounds)
    if json_path == "-":
        click.echo(json.dumps(told, indent=1))
        return
    if json_path is not None:
        write_json(json_path, told)
    click.echo(format_bench(told))
