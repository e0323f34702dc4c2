"""`train`, `inspect` and `doctor`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import click

from ..errors import BackendError


@click.command(name="train")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of WAV or FLAC recordings.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Checkpoint directory to make.")
@click.option("--config", type=click.Path(path_type=Path), help="JSON with model, mel and, if wanted, training.")
@click.option("--from", "start_from", metavar="VOICE", help="Name or directory of a voice whose weights to begin with.")
@click.option("--minutes", type=float, help="Length of the training, earlier sittings included.")
@click.option("--resume", is_flag=True, help="Continue the training in --out.")
@click.option("--resample", is_flag=True, help="Convert recordings at another sample rate.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads for torch.")
def train_command(
    data: Path,
    out: Path,
    config: Path | None,
    minutes: float | None,
    resume: bool,
    resample: bool,
    start_from: str | None,
    threads: int | None,
) -> int:
    """Train a voice from recordings.

    Beside a recording, a .npy or .npz mel of the same name is used instead of the extracted one. Ctrl-C leaves a
    usable checkpoint, which --resume continues; the exit code is then 130, after SIGTERM 143."""
    if importlib.util.find_spec("torch") is None:
        raise BackendError('training needs PyTorch, which is not installed; pip install "wavenet-fast[train]" adds it')
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ..checkpoint import resolve
    from ..train import run

    begin = None if start_from is None else resolve(start_from)
    form = "{desc}{percentage:3.0f}% |{bar}| {n:.1f}/{total:.0f} minutes{postfix}"
    with tqdm(total=0.0, disable=not sys.stderr.isatty(), leave=False, bar_format=form, file=sys.stderr) as bar:

        def watch(done: float, total: float, bits: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"{bits:.2f} bits per sample", refresh=False)
            bar.update(done - bar.n)

        _, stopped = run(data, out, config, minutes, resume, resample, threads, begin, bar.write, watch)
    return 0 if stopped is None else 128 + stopped


@click.command(name="inspect")
@click.argument("voice", metavar="PATH")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect_command(voice: str, as_json: bool) -> None:
    """Show what is in the checkpoint directory PATH, or in the bundled voice of that name. Needs no torch."""
    from ..checkpoint import load_checkpoint, resolve
    from ..inspect import describe, format_description

    told = describe(load_checkpoint(resolve(voice)))
    click.echo(json.dumps(told) if as_json else format_description(told))


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--selftest", is_flag=True,
    help="First run the self-test of the GPU kernels again, for the shape of --voice, and remember its verdict.",
)  # fmt: skip
@click.option("--voice", metavar="NAME|DIR", help="Whose shape --selftest takes; the bundled voice if not given.")
@click.option("--dtype", default="auto", show_default=True, help="Number format for --selftest.")
def doctor_command(as_json: bool, selftest: bool, voice: str | None, dtype: str) -> int:
    """Show CPU features, instruction sets, GPUs, backends and why each is off, and the verdicts of the self-tests that
    GPU kernels have to pass. Exit code 2 where no backend works."""
    from ..doctor import examine, format_examination, run_selftests
    from .options import default_voice

    if selftest:
        run_selftests(voice or default_voice(), dtype)
    told = examine()
    click.echo(json.dumps(told) if as_json else format_examination(told))
    return 0 if any(b["available"] for b in told["backends"].values()) else 2
