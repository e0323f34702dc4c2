"""What does `wavenet-fast convert` cost in time and memory? A file of r9y9's old generation with random weights in the
shape of the published LJSpeech checkpoint, 99 MB, is converted by the command itself.

    pip install ".[bench]"
    python benchmarks/convert_cost.py --rounds 5 --json benchmarks/results/convert.json

Memory is looked at about a hundred times a second: the proportional set sizes (Linux) of the command and of the process
that reads the pickle, together, so that pages which both use count once. This process has no PyTorch by then, whose
pages would be shared with it: the file is made by another.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


def make_checkpoint(path: Path, layers: int) -> None:
    """As r9y9's train.py leaves it, without the optimizer's state."""
    import torch
    from wavenet_vocoder import WaveNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = WaveNet(
            out_channels=30, layers=layers, stacks=4, residual_channels=512, gate_channels=512, skip_out_channels=256,
            kernel_size=3, cin_channels=80, upsample_conditional_features=True, upsample_scales=[4, 4, 4, 4],
            scalar_input=True,
        )  # fmt: skip
    torch.save({"state_dict": network.state_dict(), "optimizer": None, "global_step": 1_000_000}, path)


def family(process: int) -> list[int]:
    """A process and those it has started."""
    found = [process]
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass  # it has just ended
    return found


def memory_of(process: int) -> int:
    """Bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def convert(file: Path, watched: bool) -> tuple[float, int]:
    """(seconds, most bytes at once or 0): being watched takes time, so each is another run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "wavenet_fast", "convert", file, Path(folder, "voice"), "--hparams", "autovc"]
        began, most = time.perf_counter(), 0
        with subprocess.Popen([str(word) for word in command], cwd=folder, stdout=subprocess.DEVNULL) as process:
            while watched and process.poll() is None:
                most = max(most, sum(map(memory_of, family(process.pid))))
                time.sleep(0.005)
            if process.wait():
                raise SystemExit("the command failed; nothing was measured")
        return time.perf_counter() - began, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--make", type=Path, default=None, help="only make the file")
    args = parser.parse_args()
    if args.make:
        return make_checkpoint(args.make, args.layers)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkpoint_step001000000_ema.pth")
        subprocess.run([sys.executable, __file__, "--make", file, "--layers", str(args.layers)], check=True)
        size = file.stat().st_size
        seconds = [convert(file, watched=False)[0] for _ in range(args.rounds)]
        peaks = [convert(file, watched=True)[1] for _ in range(args.rounds)]
    from common import machine, versions

    result: dict[str, Any] = {
        "about": {
            "command": shlex.join(["python", "benchmarks/convert_cost.py", *sys.argv[1:]]), "machine": machine(),
            "versions": versions("numpy", "torch", "safetensors", "wavenet-vocoder", "wavenet-fast"),
        },
        "file_bytes": size, "seconds": seconds, "median_seconds": statistics.median(seconds), "peak_bytes": peaks,
        "peak_over_file": max(peaks) / size,
    }  # fmt: skip
    print(
        f"{size / 1e6:.0f} MB: {result['median_seconds']:.2f} s, at most {max(peaks) / 1e6:.0f} MB,"
        f" {result['peak_over_file']:.2f} times the file"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
