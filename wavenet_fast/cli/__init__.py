"""The command line, `wavenet-fast`. Here: the list of commands, and how any of them ends.

Exit codes: 0 done; 2 cannot be done as asked (one sentence on stderr says why); 3 some files failed and the rest are
done; 130 and 143 after Ctrl-C and SIGTERM; 141 where the reader of a pipe has gone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from ..errors import WavenetFastError

COMMANDS = {
    "demo": ("demo_command", "Hear the bundled voice: vocode a held-out recording from its mel."),
    "vocode": ("vocode", "Mel files → WAV; whole folders, pipes and raw PCM too."),
    "mel": ("sound", "WAV → mel files, by a voice's or a preset's recipe."),
    "resynth": ("vocode", "WAV → mel → WAV: what a voice makes of a recording."),
    "train": ("tools", "Train a voice from a folder of recordings (needs torch)."),
    "check": ("check_command", "Measure what the number formats cost a voice, on recordings."),
    "convert": ("convert_command", "Make a voice of another project's checkpoint (r9y9, kan-bayashi, nv-wavenet)."),
    "inspect": ("tools", "Show what is in a checkpoint directory."),
    "bench": ("bench_command", "Measure speed against what this machine's memory allows."),
    "doctor": ("tools", "Show CPU features, GPUs, backends and why each is off."),
}
"""Name → (module, one line of help). The modules are imported only when their command runs."""

PIPE_CLOSED = 141


class Terminated(KeyboardInterrupt):
    """SIGTERM. A kind of Ctrl-C, so that whatever leaves a valid file after one does so after the other."""


class SentencedCommand(click.Command):
    """A command that turns every end into a sentence and an exit code."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run, and leave by `SystemExit`, whatever happens.

        Click's own `main` is not used: it answers Ctrl-C and a closed pipe in its own way."""
        _speak_to_anything()
        with _terminable(), _plain_warnings():
            sys.exit(self._run(sys.argv[1:] if args is None else list(args), prog_name or "wavenet-fast", extra))

    def _run(self, args: list[str], name: str, extra: dict[str, Any]) -> int:
        try:
            with self.make_context(name, args, **extra) as context:
                code = self.invoke(context)
            if sys.stdout is not None:  # as it is where a shell has closed it (>&-)
                sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except WavenetFastError as error:
            return refuse(str(error))
        except (Terminated, KeyboardInterrupt, click.Abort) as stop:
            return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        except BrokenPipeError:
            # What is still buffered has no reader; without this, Python complains about it at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except OSError as error:
            return refuse(os_sentence(error))
        except MemoryError as error:
            return refuse(f"not enough memory{f' ({error})' if str(error) else ''}; give shorter or fewer inputs")


class Commands(SentencedCommand, click.Group):
    """A group that knows its commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def refuse(sentence: str) -> int:
    """Say why on stderr; the exit code."""
    click.echo(f"wavenet-fast: {sentence}", err=True)
    return 2


def os_sentence(error: OSError) -> str:
    """What the system refused, with the file's name in front where there is one."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, (str, bytes)) else reason


def _speak_to_anything() -> None:
    """Make text streams take whatever is said: a shell may have closed stderr (2>&-), a terminal may not know a
    character, and a file's name may be no text at all."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`. Outside the main thread signals cannot be set, and are left alone."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"wavenet-fast: warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"wavenet-fast {__version__}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def cli() -> None:
    """Autoregressive WaveNet vocoders, fast: mel spectrogram in, waveform out.

    `wavenet-fast demo` is the place to begin."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the script `wavenet-fast`."""
    cli.main(args)
