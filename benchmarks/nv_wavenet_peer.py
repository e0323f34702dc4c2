"""nv-wavenet as benchmarks/nv_wavenet_speed.py needs it: compiled from a checkout, and asked through a pipe."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tqdm import tqdm

from wavenet_fast.config import WaveNetConfig

PROGRAM = Path(__file__).with_name("nv_wavenet_speed.cu")
IMPLEMENTATIONS = {"single block": 1, "dual block": 2, "persistent": 3}
"""As its class numbers them."""
FLAGS = ["-std=c++17", "--use_fast_math", "-maxrregcount", "128"]
"""Those of nv-wavenet's Makefile, but for the C++ standard: this CUDA's headers ask for a newer one."""
PATIENCE = 20.0
"""Seconds for one answer. Its kernels wait for each other without end, so one that hangs must be ended from outside."""


@dataclass(frozen=True)
class Binary:
    """A program for one shape and number format."""

    R: int
    S: int
    A: int
    bits: int
    arch: str

    @classmethod
    def of(cls, config: WaveNetConfig, bits: int, arch: str) -> Binary:
        return cls(config.residual_channels, config.skip_channels, config.out_channels, bits, arch)

    @property
    def name(self) -> str:
        return f"nv-wavenet-{self.R}-{self.S}-{self.A}-fp{self.bits}-{self.arch}"

    def command(self, nvcc: str, source: Path, out: Path) -> list[str]:
        sizes = {"R": self.R, "S": self.S, "A": self.A, "BITS": self.bits}
        defines = [f"-DNVW_{name}={value}" for name, value in sizes.items()]
        return [nvcc, f"-arch={self.arch}", *FLAGS, *defines, "-I", str(source), "-o", str(out), str(PROGRAM)]


def digest(source: Path) -> str:
    """Of all that is compiled: nv-wavenet's headers, our program, the flags."""
    found = hashlib.sha256(json.dumps(FLAGS).encode() + PROGRAM.read_bytes())
    for header in sorted(source.glob("*.cuh")):
        found.update(header.name.encode() + header.read_bytes())
    return found.hexdigest()[:16]


def build_all(
    wanted: list[Binary], folder: Path, source: Path | None, nvcc: str, jobs: int | None = None
) -> dict[str, Any]:
    """Compiles those that `folder` has not, each by a compiler of its own; what is known of each by its name: `made_of`
    (`digest`) and `nvcc`, its version. Raises SystemExit with a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None and not (source / "nv_wavenet.cuh").is_file():
        raise SystemExit(f"{source} holds no nv_wavenet.cuh; give --source a checkout of github.com/NVIDIA/nv-wavenet")
    made_of = None if source is None else digest(source)
    missing = [binary for binary in wanted if not _there(folder / binary.name, made_of)]
    if missing and source is None:
        names = ", ".join(binary.name for binary in missing)
        raise SystemExit(
            f"{folder} lacks {names}; give --source, a checkout of github.com/NVIDIA/nv-wavenet, and --nvcc"
        )
    if missing:
        assert source is not None
        version = _version(nvcc)
        with (
            ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool,
            tqdm(total=len(missing), desc="compiling nv-wavenet", disable=None) as bar,
        ):
            for binary, problem in zip(
                missing, pool.map(lambda b: _compile(b, folder, source, nvcc), missing), strict=True
            ):
                if problem:
                    raise SystemExit(f"{binary.name} does not compile: {problem}")
                told = {"made_of": made_of, "nvcc": version}
                (folder / f"{binary.name}.json").write_text(json.dumps(told) + "\n")
                bar.update()
    return {binary.name: _known(folder / binary.name) for binary in wanted}


def _there(path: Path, made_of: str | None) -> bool:
    return path.is_file() and (made_of is None or _known(path).get("made_of") == made_of)


def _known(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.with_name(f"{path.name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return told


def _version(nvcc: str) -> str:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{nvcc} does not run ({error}); give --nvcc the path of CUDA's compiler") from error
    return next((line for line in said.splitlines() if "release" in line), said.strip())


def _compile(binary: Binary, folder: Path, source: Path, nvcc: str) -> str | None:
    """None, or what the compiler said."""
    done = subprocess.run(binary.command(nvcc, source, folder / binary.name), capture_output=True, text=True)
    if done.returncode == 0:
        return None
    said = (done.stderr + done.stdout).splitlines()
    return next((line for line in said if "error" in line), said[-1] if said else f"exit code {done.returncode}")


class Peer:
    """A process of one program, started when it is first asked, and anew when it has ended."""

    def __init__(self, program: Path, config: WaveNetConfig) -> None:
        self.command = [str(program.resolve()), str(config.n_layers), str(max(config.dilations))]
        self.process: subprocess.Popen[str] | None = None
        self.hung: set[int] = set()
        """Implementations that did not answer, and are not asked again."""

    def ask(self, implementation: int, streams: int, per_block: int, samples: int) -> dict[str, Any]:
        """Its answer, `classes` as bytes, or {"error": why it has none}."""
        if implementation in self.hung:
            return {"error": "it gave no answer before, and is not asked again"}
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        process, said, answer = self.process, [], None
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        with suppress(OSError):  # it has ended before it was asked
            process.stdin.write(f"{implementation} {streams} {per_block} {samples}\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                break
            said.append(line.strip())
        late.cancel()
        if answer is None:
            code = process.wait()
            answer = {"error": f"no answer within {PATIENCE:g} s" if code == -SIGKILL else f"exit code {code}"}
            if code == -SIGKILL:
                self.hung.add(implementation)
        if "error" in answer:
            answer["error"] += "".join(f" ({line})" for line in said if "ssert" in line or "not supported" in line)
            return answer
        return answer | {"classes": bytes.fromhex(answer["classes"])}

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
