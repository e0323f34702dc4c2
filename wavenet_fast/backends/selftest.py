"""The self-test that a GPU backend must pass before `auto` takes it: once for each shape, number format, GPU, driver,
compiler and version of the kernels.

It runs in a process of its own with a time limit, so that a kernel that crashes or hangs hurts nobody: this module as
a script takes a question as JSON on standard input and answers in lines of JSON on standard output, {"step": word} as
it goes on and {"passed": …, "reason": …} at its end. The verdict is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..cachedir import cache_directory
from ..config import WaveNetConfig, decode, encode
from ..errors import BackendError, WavenetFastError
from . import gpu

TIME_LIMIT = 180.0
"""Seconds. Loading torch and compiling the kernels of a large model takes a good part of a minute."""
_PACKAGES = {
    "cuda": ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "torch"),
    "triton": ("triton", "torch"),
}
"""Backend → what compiles and launches its kernels, or makes what they hear."""
_START, _MAKE = "start", "make the model ready"

Key = dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """What a self-test found; `reason` is empty for a pass, `key` says what it holds for."""

    passed: bool
    reason: str
    key: Key


def verdict(config: WaveNetConfig, backend: str, device: str, dtype: str, again: bool = False) -> Verdict:
    """Whether the backend computes this shape right on this device: as remembered, else found out now, which may take
    up to `TIME_LIMIT`. With `again` what is remembered does not count. Raises `BackendError` where no process can be
    started; that is not remembered."""
    key = key_of(config, backend, device, dtype)
    name = _name(key)
    with _lock:
        if not again and (known := _remembered.get(name) or _read(name, key)) is not None:
            _remembered[name] = known
            return known
        question = {"config": encode(config), "backend": backend, "device": device, "dtype": dtype}
        passed, reason = _ask(question, f"self-test of {backend} on {device}")
        _remembered[name] = found = Verdict(passed, reason, key)
        _write(name, found)
    return found


def stored() -> list[Verdict]:
    """Every verdict in the user's cache folder that this version can read, in no particular order."""
    folder = _folder()
    if folder is None:
        return []
    return [found for path in sorted(folder.glob("*.json")) if (found := _parsed(path)) is not None]


# --- what a verdict holds for -----------------------------------------------------------------------------------


def key_of(config: WaveNetConfig, backend: str, device: str, dtype: str) -> Key:
    """Everything that could change the outcome."""
    c = config
    shape = hashlib.sha256(json.dumps(encode(c), sort_keys=True).encode()).hexdigest()[:16]
    size = f"{c.n_layers} layers, R {c.residual_channels}, G {c.gate_channels}, S {c.skip_channels}"
    return {**_place(backend, device), "dtype": dtype, "shape": shape, "size": size}


def counts_here(found: Verdict) -> bool:
    """Whether a verdict is about a GPU of this machine as it is now, with what is installed now."""
    backend, kind = found.key.get("backend", ""), found.key.get("device", "")
    driver = gpu.look() if kind == "cuda" else ""
    devices = [f"cuda:{i}" for i in range(len(driver.gpus))] if isinstance(driver, gpu.Driver) else [kind]
    return any(_place(backend, device).items() <= found.key.items() for device in devices)


def _place(backend: str, device: str) -> Key:
    """What of a key does not depend on the model."""
    from .. import __version__

    place = {"backend": backend, "device": device.partition(":")[0], "version": __version__}
    driver = gpu.look() if place["device"] == "cuda" else ""
    if isinstance(driver, gpu.Driver):
        found = driver.gpus[gpu.cuda_index(device)]
        place |= {"gpu": found.name, "capability": ".".join(map(str, found.capability)), "driver": str(driver)}
    for package in _PACKAGES.get(backend, ()):
        with suppress(importlib.metadata.PackageNotFoundError):
            place[package] = importlib.metadata.version(package)
    return {**place, "kernels": sources_hash()}


def sources_hash() -> str:
    """16 hexadecimal digits that differ whenever the kernels, or what calls them, do."""
    here = Path(__file__).parent
    spec = importlib.util.find_spec("wavenet_fast.kernels")
    kernels = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    digest = hashlib.sha256()
    for folder in (*kernels, here):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cu", ".cuh", ".h")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(here.with_name("packing.py").read_bytes())
    return digest.hexdigest()[:16]


# --- what is remembered -----------------------------------------------------------------------------------------

_remembered: dict[str, Verdict] = {}
_lock = threading.Lock()


def _folder() -> Path | None:
    cache = cache_directory()
    return None if cache is None else cache / "selftest"


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".json"


def _read(name: str, key: Key) -> Verdict | None:
    """None for a file that is not there, cannot be read, or holds something else than the verdict on this key."""
    folder = _folder()
    found = None if folder is None else _parsed(folder / name)
    return found if found is not None and found.key == key else None


def _parsed(path: Path) -> Verdict | None:
    try:
        told = json.loads(path.read_bytes())
        passed, reason, key = told["passed"], told["reason"], told["key"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    texts = isinstance(key, dict) and all(isinstance(text, str) for text in (reason, *key, *key.values()))
    return Verdict(passed, reason, key) if texts and isinstance(passed, bool) else None


def _write(name: str, found: Verdict) -> None:
    """In one step; where the folder cannot be written the verdict holds for this process only."""
    folder = _folder()
    if folder is None:
        return
    text = json.dumps({"passed": found.passed, "reason": found.reason, "key": found.key}, indent=1)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(suffix=".partial", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(partial, folder / name)
        except OSError:
            os.unlink(partial)


# --- the process ------------------------------------------------------------------------------------------------


def command() -> list[str]:
    """What runs the self-test."""
    return [sys.executable or "", "-m", __name__]  # an embedded Python may have none


def _ask(question: dict[str, Any], title: str) -> tuple[bool, str]:
    """(passed, reason), whatever becomes of the process. Raises `BackendError` where there can be none."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from .agreement import STEPS

    home = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]))
    with (
        tempfile.TemporaryDirectory() as room,
        tempfile.TemporaryFile() as errors,
        tqdm(total=len(STEPS) + 2, desc=title, disable=None, leave=False) as bar,
    ):
        try:
            child = subprocess.Popen(
                command(), cwd=room, env={**os.environ, "PYTHONPATH": home}, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        except OSError as error:
            raise BackendError(f"its self-test cannot be run: no process can be started ({error})") from None
        answers = _Answers(child.stdout, bar)
        try:
            with suppress(BrokenPipeError):
                assert child.stdin is not None
                child.stdin.write(json.dumps(question).encode())
                child.stdin.close()
            code = child.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            return False, f"it did not end within {TIME_LIMIT:g} s (step: {answers.step})"
        finally:
            _end(child)
        answers.thread.join(5)
        answer: tuple[bool, str] | None = answers.verdict
        if answer is not None and code == 0:
            return answer
        errors.seek(0)
        last = (errors.read()[-10_000:].decode(errors="replace").strip().splitlines() or [""])[-1]
        return False, f"its process {_manner(code)} (step: {answers.step})" + (f": {last}" if last else "")


class _Answers:
    """Reads what the process says, as it says it."""

    def __init__(self, stream: IO[bytes] | None, bar: Any) -> None:
        assert stream is not None
        self.step = _START
        self.verdict: tuple[bool, str] | None = None
        self._stream, self._bar = stream, bar
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                with suppress(ValueError, LookupError, TypeError):
                    self._take(json.loads(line))

    def _take(self, told: Any) -> None:
        if "step" in told:
            self.step = str(told["step"])
            self._bar.set_postfix_str(self.step, refresh=False)
            self._bar.update()
        else:
            self.verdict = bool(told["passed"]), str(told["reason"])


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it running. A kernel that hangs may keep the process for a while even then: nobody waits."""
    if child.poll() is None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and without an answer"
    with suppress(ValueError):
        return f"died of {signal.Signals(-code).name}"
    return f"died of signal {-code}"


def main() -> None:
    """What the process does."""
    # Whatever a library prints goes to standard error.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(**words: Any) -> None:
        print(json.dumps(words), file=answer)

    question = json.load(sys.stdin)
    tell(step=_MAKE)
    try:
        _examine(question, lambda step: tell(step=step))
    except Exception as error:
        traceback.print_exc()
        tell(passed=False, reason=_sentence(error))
    else:
        tell(passed=True, reason="")


def _examine(question: dict[str, Any], told: Any) -> None:
    from ..cases import random_weights
    from . import BACKENDS, usable_cores
    from .agreement import check_agreement

    config = decode(WaveNetConfig, question["config"], "question")
    weights = random_weights(config)
    engine = BACKENDS[question["backend"]].make(config, weights, question["dtype"], question["device"])
    check_agreement(engine, weights, told, threads=usable_cores())


def _sentence(error: Exception) -> str:
    from .agreement import DisagreementError

    if isinstance(error, (WavenetFastError, DisagreementError)):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:500]


if __name__ == "__main__":
    main()
