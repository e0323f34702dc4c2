"""`check`: what the number formats cost a voice, on recordings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..backends import INT8_COST_LIMIT
from ..errors import InputError
from ..fileio import replacing, write_all
from .files import SOUND_SUFFIXES
from .options import parse_speaker
from .report import SOME_FAILED, say


@click.command(name="check")
@click.argument("voice", metavar="VOICE")
@click.option(
    "--data", required=True, metavar="DIR",
    help="Folder of recordings (WAV, FLAC …) that the voice was not trained on; nothing here can tell whether it was.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Record the costs in the voice's config.json, where `auto` finds them.")
@click.option("--speaker", metavar="ID|FILE", help="Speaker id, or a .npy vector, of a voice that has several.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything measured, as JSON.")
def check_command(voice: str, data: str, write: bool, speaker: str | None, json_file: str | None) -> int:
    """Measure what the number formats of the cpu backend cost VOICE, a checkpoint directory or a bundled voice.

    Per format: bits per sample on the recordings less those of fp32, and the error of every stage against the PyTorch
    reference. Recordings at another sample rate are resampled; one that cannot be used is reported and left out (exit
    code 3).

    With --write the costs go into config.json, together with a fingerprint of the weights. From then on, `auto` is
    int8 for this voice if that costs at most 0.02 bits."""
    from ..checkpoint import check_writable, load_checkpoint, record_costs, resolve

    directory, recordings = resolve(voice), find_recordings(data)
    if write:
        check_writable(directory)
    if json_file is not None:
        _check_place(json_file, recordings)
    checkpoint = load_checkpoint(directory)

    from tqdm import tqdm  # type: ignore[import-untyped]

    from ..check import check_voice, format_outcome

    with tqdm(total=0, disable=None, delay=2, leave=False, file=sys.stderr, desc="measuring") as bar:

        def watch(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        outcome = check_voice(checkpoint, recordings, parse_speaker(speaker), say, watch)
    click.echo(format_outcome(outcome))
    if json_file is not None:
        with replacing(json_file) as file:
            write_all(file, (json.dumps({"voice": voice, **outcome.to_dict()}, indent=1) + "\n").encode())
    if write:
        costs = outcome.record()
        record_costs(directory, costs)
        small = costs.int8 is not None and costs.int8.cost_bits <= INT8_COST_LIMIT
        chosen = (
            "int8 for this voice (except on portable code), as that costs"
            if small
            else "not int8 for this voice, as that does not cost"
        )
        click.echo(
            f"\nrecorded in {directory / 'config.json'}; `auto` is {chosen} at most {INT8_COST_LIMIT} bits per sample"
        )
    return SOME_FAILED if outcome.failed else 0


def find_recordings(data: str) -> list[Path]:
    """Every sound file below a folder, sorted. Raises `InputError` where there is no folder, or none in it."""
    folder = Path(data)
    if not data or not folder.is_dir():
        what = "is a file" if data and folder.exists() else "is not there"
        raise InputError(f"--data {data!r}: {what}; give a folder of recordings that the voice was not trained on")
    failed: list[OSError] = []
    found = [
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=failed.append)
        for name in names
        if name.lower().endswith(SOUND_SUFFIXES)
    ]
    for error in failed:
        say(f"{os.fsdecode(error.filename or data)}: {(error.strerror or str(error)).lower()}; it is left out")
    if not found:
        raise InputError(f"{folder}: no sound files ({', '.join(SOUND_SUFFIXES)}) in it; give a folder of recordings")
    return sorted(found)


def _check_place(json_file: str, recordings: Sequence[Path]) -> None:
    """Raises `InputError` where the report cannot be put, or would replace a recording."""
    path = Path(json_file)
    if not json_file or path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--json {json_file!r}: is a folder, or lies in none; name a file in a folder that is there")
    if any(os.path.realpath(path) == os.path.realpath(recording) for recording in recordings):
        raise InputError(f"--json {json_file}: is one of the recordings; name another file")
