"""Are the GPU kernels right? Everything that this machine can tell, in one JSON.

    pip install ".[test]"
    python benchmarks/gpu_check.py --json FILE            # some minutes
    python benchmarks/gpu_check.py --full --json FILE     # everything: an hour or more on two cores
    python benchmarks/gpu_check.py --full compile mutants --json FILE  # everything of these parts, of the others a part

On any machine: the kernels are compiled for every target and compared with the recorded table, run by Triton's
interpreter, and their PTX is executed on the CPU: against the reference, under sanitizers, and with every barrier
broken in turn. On a machine with a GPU the same comparisons follow on the device and, if all is right, measurements of
every GPU backend. Exit code 0: everything that could be asked was right. Ctrl-C leaves a file with what was found till
then.

With the newest Triton, in an environment of its own:

    python -m venv newest && newest/bin/pip install ".[test]" && newest/bin/pip install -U triton
    TRITON_DEFAULT_FP_FUSION=1 newest/bin/python benchmarks/gpu_check.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_cuda
import gpu_parts
import gpu_races
from gpu_parts import Finding, Level
from tqdm import tqdm

from wavenet_fast.backends.selftest import sources_hash
from wavenet_fast.doctor import examine

PARTS: dict[str, Callable[[Level], Iterator[Finding]]] = {
    "compile": gpu_parts.compiles,
    "interpreter": gpu_parts.interpreted,
    "executor": gpu_parts.emulated,
    "sanitizers": gpu_races.sanitized,
    "mutants": gpu_races.mutated,
    **gpu_cuda.PARTS,
    "device": gpu_parts.on_device,
}
PACKAGES = ("wavenet-fast", "torch", "triton", "numpy")


class Report:
    """What is found, in a file that is whole at any time."""

    def __init__(self, path: Path | None, levels: dict[str, Level]) -> None:
        self.path = path
        self.told: dict[str, Any] = {
            "about": about(), "levels": levels, "complete": False, "passed": False, "counts": {}, "findings": [],
            "benchmarks": [],
        }  # fmt: skip

    def add(self, part: str, finding: Finding) -> None:
        """Keeps a finding, and says so where it is no pass."""
        told = {"part": part} | {name: value for name, value in asdict(finding).items() if value not in (None, {})}
        self.told["findings"].append(told)
        counts = self.told["counts"].setdefault(part, {"passed": 0, "failed": 0, "skipped": 0})
        counts[finding.verdict] += 1
        if finding.verdict != "passed" or finding.reason:
            tqdm.write(f"{part}: {finding.what} {finding.verdict}: {finding.reason}")
        self.write()

    @property
    def failed(self) -> int:
        return sum(counts["failed"] for counts in self.told["counts"].values())

    def end(self) -> None:
        """All that was wanted has been asked."""
        self.told["complete"] = True
        self.told["passed"] = not self.failed and all(sum(c.values()) for c in self.told["counts"].values())
        self.write()

    def write(self) -> None:
        """In place of what was there, all at once."""
        if self.path is None:
            return
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def about() -> dict[str, Any]:
    """Machine, GPU, and every version that the outcome may depend on."""
    machine = examine()["machine"]
    told: dict[str, Any] = {name: machine[name] for name in ("architecture", "processor", "usable_cores")}
    told |= {"python": platform.python_version(), "kernels": sources_hash(), "command": " ".join(sys.argv)}
    for package in PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            told[package] = None
    import gpu_compile
    import gpu_compile_cuda

    told["compiler"] = gpu_compile.compiler() | gpu_compile_cuda.compiler()
    looked = gpu_parts.gpu.look()
    told["gpu"] = looked if isinstance(looked, str) else {
        "driver": str(looked), "devices": [gpu.name for gpu in looked.gpus],
    }  # fmt: skip
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--full", nargs="*", choices=PARTS, metavar="PART", help="the whole matrix, of these parts or of all"
    )
    size.add_argument("--quick", action="store_true", help="a little of every part: does it run?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--interpreted", choices=("quick", "usual", "full"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.interpreted:
        for finding in gpu_parts.interpreted_here(args.interpreted):
            print(json.dumps(asdict(finding)), flush=True)
        return 0
    if (why := gpu_parts.why_nothing_is_executed()) is not None:
        print(f"The kernels cannot be executed on this machine: {why}", file=sys.stderr)
        return 2
    usual: Level = "quick" if args.quick else "usual"
    full = [] if args.full is None else args.full or list(PARTS)
    levels: dict[str, Level] = {part: "full" if part in full else usual for part in args.parts}
    report = Report(args.json, levels)
    print(f"Triton {report.told['about']['compiler']}, torch {report.told['about']['torch']}")
    try:
        for part in args.parts:
            try:
                for finding in PARTS[part](levels[part]):
                    report.add(part, finding)
            except Exception as error:
                report.add(part, Finding("the part itself", "failed", reason=f"{type(error).__name__}: {error}"))
        # A wrong kernel has no speed.
        if "device" in args.parts and not report.failed:
            for row in gpu_parts.measured(levels["device"]):
                report.told["benchmarks"].append(row)
                report.write()
        report.end()
    except KeyboardInterrupt:
        report.write()
        print("interrupted; what was found is kept", file=sys.stderr)
        return 130
    total = Counter[str]()
    for part, counts in report.told["counts"].items():
        print(f"{part}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
        total.update(counts)
    print("all passed" if report.told["passed"] else f"{total['failed']} failed")
    return 0 if report.told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
