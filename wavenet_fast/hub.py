"""Voices on the Hugging Face Hub, through huggingface_hub where it is installed (extra `hub`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import CheckpointError

FILES = ("config.json", "model.safetensors", "README.md", "LICENSE")
"""What is taken from a repository: nothing that could be code."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether `name` could be "organisation/name". Where its first part is a folder here, it is a path."""
    return _ID.fullmatch(name) is not None and not Path(name.partition("/")[0]).is_dir()


def fetch(name: str, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The directory of the voice "organisation/name" in the Hub's cache on this machine, brought up to date unless
    `local_files_only` or the environment variable HF_HUB_OFFLINE.

    revision: a branch, tag or commit; None is the main branch. Raises `CheckpointError`."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f"{name} is neither a directory nor a bundled voice. It may be a voice on the Hugging Face Hub, for which"
            ' huggingface_hub is missing: pip install "wavenet-fast[hub]"'
        ) from None
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=local_files_only)
        )
    except LocalEntryNotFoundError as error:
        silent = "local_files_only was given" if local_files_only else "HF_HUB_OFFLINE is set"
        if local_files_only or constants.HF_HUB_OFFLINE:
            why = f"the Hugging Face Hub was not asked for it ({silent})"
        else:
            why = f"the Hugging Face Hub could not be asked for it: {_reason(error.__cause__ or error)}"
        raise CheckpointError(
            f"{_named(name, revision)} is neither a directory nor a bundled voice nor in the cache of this machine, and"
            f" {why}; go online, or give a directory"
        ) from None
    except Exception as error:  # of the library, its HTTP client or the system
        raise CheckpointError(
            f"{_named(name, revision)} is neither a directory nor a bundled voice, and the Hugging Face Hub does not"
            f" give it: {_reason(error)}"
        ) from None


def in_cache(directory: Path) -> Path | None:
    """The folder that files of a snapshot in the Hub's cache are links into, where `directory` is one:
    …/models--organisation--name/snapshots/<commit> links to …/models--organisation--name/blobs."""
    repository = directory.parent.parent
    if directory.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def _named(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name} at {revision}"


def _reason(error: Any) -> str:
    """The first line of what a library said, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ascii(lines[0])[1:-1][:200]
