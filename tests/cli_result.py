"""What tests of the command line demand of a refusal."""

from __future__ import annotations

from click.testing import Result


def refused(result: Result, *words: str, code: int = 2) -> None:
    """Exit code and a sentence with the words in it, without a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr
