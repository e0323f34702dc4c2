"""`check`: what the number formats cost a voice, on recordings."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..backends import INT8_COST_LIMIT
from ..errors import InputError
from .files import SOUND_SUFFIXES
from .options import parse_speaker
from .places import check_place, write_json
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
        write_json(json_file, {"voice": voice, **outcome.to_dict()})
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
    check_place(f"--json {json_file!r}", json_file)
    if any(os.path.realpath(json_file) == os.path.realpath(recording) for recording in recordings):
        raise InputError(f"--json {json_file}: is one of the recordings; name another file")
