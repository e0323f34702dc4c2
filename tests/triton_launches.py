"""Launches of kernels, recorded while an engine is at work, to be run again by other programs: mutants, sanitizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from wavenet_fast.kernels.triton import generate
from wavenet_fast.kernels.triton.launch import KERNELS, EmulatedLauncher, compile_for
from wavenet_fast.kernels.triton.tuning import Options

from wavenet_fast.emulated import Program


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for, with a copy of everything it is given."""

    name: str
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Options
    capability: int

    @property
    def ptx(self) -> str:
        text: str = compile_for(self.name, self.arguments, self.options, self.capability).asm["ptx"]
        return text

    def run(self, program: Program) -> dict[str, Tensor]:
        """On a copy of the arguments, by this program, which was made of `ptx`; returns what they are afterwards."""
        launcher, arguments = EmulatedLauncher(self.capability), _copied(self.arguments)
        launcher._programs[self.ptx] = program
        launcher.run(self.name, self.grid, arguments, self.options)
        return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


class InterpretedLauncher:
    """Kernels through Triton's interpreter: TRITON_INTERPRET=1 must have been set before triton was imported."""

    device = torch.device("cpu")
    capability, upcast = 90, True

    def run(self, name: str, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Any) -> None:
        KERNELS[name][grid](**arguments)


class Recorder(EmulatedLauncher):
    """Runs what it is told to, and keeps the last `Launch` of every kernel."""

    def __init__(self, capability: int = 90, mode: Any = "plain", seed: int = 0) -> None:
        super().__init__(capability, mode, seed)
        self.launches: dict[str, Launch] = {}

    def run(self, name: str, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Options) -> None:
        self.launches[name] = Launch(name, grid, _copied(arguments), options, self.capability)
        super().run(name, grid, arguments, options)


def _copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _copy(x: Tensor) -> Tensor:
    """With the same strides; what lies between is zero."""
    room = torch.zeros(1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)), dtype=x.dtype)
    return room.as_strided(x.shape, x.stride()).copy_(x)


def own_barriers(ptx: str) -> list[int]:
    """Lines of the PTX with a barrier that stands in generate.py itself, as `tl.debug_barrier()`."""
    source = Path(generate.__file__)
    ours = {n for n, line in enumerate(source.read_text().splitlines(), 1) if "tl.debug_barrier()" in line}
    number_of = dict(re.findall(r'^\s*\.file\s+(\d+)\s+".*?([^/"]+)"', ptx, re.M))
    files = {number for number, name in number_of.items() if name == source.name}
    at, found = ("", 0), []
    for number, line in enumerate(ptx.splitlines(), 1):
        words = line.split()
        if words[:1] == [".loc"]:
            at = words[1], int(words[2])
        if "bar.sync" in line and at[0] in files and at[1] in ours:
            found.append(number)
    return found
