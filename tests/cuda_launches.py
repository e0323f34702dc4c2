"""Emulated GPUs for tests of the CUDA kernels: one whose memory is as unfriendly as it may be, one that records its
launches so that other programs can run them again, and cuts of a model other than the planner's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from engine_models import random_mel, random_weights, small
from numpy.typing import NDArray
from wavenet_fast.kernels.cuda.arrays import HostArray
from wavenet_fast.kernels.cuda.compile import compile_kernel
from wavenet_fast.kernels.cuda.device import Kernel
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice
from wavenet_fast.kernels.cuda.layout import Layout

from wavenet_fast.backends.cuda import CudaEngine
from wavenet_fast.config import CategoricalHead, Conditioning, Linear, OneHotInput, WaveNetConfig
from wavenet_fast.emulated import Program
from wavenet_fast.emulated.program import Stats

SAMPLE_LOOPS = ("streaming_weights", "resident")
STATE = ("rings", "inputs", "filters")
ORDERS = 4
_NONSENSE = 1 << 29


# --- cuts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How a model is laid over an emulated GPU, whatever the batch. `teams` of a pipeline, 0 for `streaming_weights`,
    of `team` blocks each; `alone`: the last one owns the head and no layer. `first`: the teams' first layers, where
    these are not to be dealt out evenly. `hop`: "cluster" or "grid". `used`, `out_in_l2`: see `Layout`."""

    teams: int = 0
    hop: str = "cluster"
    tile: int = 8
    tiles: int = 1
    pipelines: int = 1
    in_registers: bool = False
    head_in_l2: bool = False
    input_shared: bool = True
    alone: bool = False
    team: int = 1
    first: tuple[int, ...] = ()
    chain: int = 8
    residual: int = 4
    skip: int = 4
    stages: int = 8
    used: int = 0
    out_in_l2: int = 0

    def __str__(self) -> str:
        kind = f"{self.teams}x{self.team}-{self.hop}" if self.teams else "streaming"
        changed = [
            f.name
            for f in fields(self)[2:]
            if f.name != "team" and f.name != "first" and getattr(self, f.name) != f.default
        ]
        return "-".join([kind, *(f"{name}{int(getattr(self, name))}" for name in changed)])

    def layout(self, engine: CudaEngine) -> Layout:
        s = engine.model.shape
        chain, skip = min(self.chain, s.HALF // 8), min(self.skip, s.S // 16)
        if not self.teams:
            return Layout(
                s, engine.dtype, "streaming_weights", self.tile, chain, skip, stages=self.stages, used=self.used
            )
        owners = self.teams - self.alone
        assert owners <= s.LAYERS, "every block has a layer or the head"
        even = [block * s.LAYERS // owners for block in range(owners + 1)] + [s.LAYERS] * self.alone
        return Layout(
            s, engine.dtype, "resident", self.tile, chain, skip, self.tiles, self.first or tuple(even), self.team,
            self.hop == "cluster", self.in_registers, self.in_registers, self.head_in_l2,
            self.input_shared, residual=min(self.residual, s.R // 16), used=self.used, out_in_l2=self.out_in_l2,
        )  # fmt: skip


def laid(engine: CudaEngine, cut: Cut, **options: Any) -> CudaEngine:
    """The engine, from now on cut like this; `options` as for `Model.generate`."""
    generate = type(engine.model).generate

    if "patience" in options:
        engine.patience = options.pop("patience")

    def cut_like_this(_layout: Layout, _pipelines: int, *rest: Any, **more: Any) -> Any:
        return generate(engine.model, cut.layout(engine), cut.pipelines, *rest, **more, **options)

    engine.model.generate = cut_like_this  # type: ignore[method-assign]
    return engine


# --- a few samples ------------------------------------------------------------------------------------------------

# The last samples hear the first ones through a ring, and two columns of conditioning are interpolated. Of two chain
# warps each has a share of every product of a layer and of the past that is fetched, but only one of the first product
# of the head.
FEW = small(
    hop_length=3, dilations=(1, 2, 1, 1, 2), residual_channels=20, gate_channels=36, skip_channels=24, head_channels=12,
    input=OneHotInput(kernel_size=2), head=CategoricalHead(classes=21), conditioning=Conditioning(upsampling=Linear()),
)  # fmt: skip
# Two tiles of streams at once. A block with one layer, one with so many that what its warps use by turns comes round
# again, and the head alone.
_UNEVEN = Cut(3, tiles=2, alone=True, chain=2, residual=2, skip=2, first=(0, 1, 5, 5))
FEW_CUTS = {
    "streaming_weights": (Cut(chain=2, skip=2, stages=4, pipelines=2), 80),
    "cluster": (_UNEVEN, 90),
    "grid": (replace(_UNEVEN, hop="grid", input_shared=False), 80),
    # One tile: between two of them what is exchanged for one orders the rings of the other.
    "teams": (replace(_UNEVEN, hop="grid", tiles=1, pipelines=2, team=2), 80),
}
_FEW = 14


def say_few(device: EmulatedDevice, cut: Cut, dtype: str = "bf16", frames: int = 2, **options: Any) -> Any:
    """Fourteen streams of `FEW`, of which one ends early: draws, logits and the state after."""
    engine = laid(CudaEngine(FEW, random_weights(FEW), dtype, device), cut, **options)
    state = engine.start(np.arange(_FEW, dtype=np.uint64), None)
    logits = np.full((_FEW, frames * FEW.hop_length, FEW.out_channels), np.nan, np.float32)
    counts = np.array([frames - (b == 3) for b in range(_FEW)])
    mel = random_mel(FEW, frames, _FEW)
    draws, _ = engine.advance(state, mel, counts, np.ones(_FEW, bool), 1.0, logits=logits, raw=True)
    return draws, logits, state


# --- hostile memory ---------------------------------------------------------------------------------------------


class HostileDevice(EmulatedDevice):
    """Same results, bit for bit, or `AssertionError`: NaN and nonsense in everything that a sample loop must not read,
    and a watch on everything that it must not write. `launched`: how many launches there were of each kernel."""

    def __init__(self, config: WaveNetConfig, capability: int = 90, **options: Any) -> None:
        super().__init__(capability, **options)
        self.launched: dict[str, int] = {}
        self._reach, self._in_taps = config.kernel_size - 1, config.input.kernel_size

    def launch(
        self, kernel: Kernel, grid: Sequence[int], block: Sequence[int], call: Mapping[str, Any], **options: Any
    ) -> None:
        self.launched[kernel.name] = self.launched.get(kernel.name, 0) + 1
        if kernel.name not in SAMPLE_LOOPS:
            return super().launch(kernel, grid, block, call, **options)
        call = self._with_nonsense(call)
        kept = {name: np.array(call[name]) for name in STATE}
        watched = list(self._poison(call))
        before = [part.copy() for part in watched]
        super().launch(kernel, grid, block, call, **options)
        for part, was in zip(watched, before, strict=True):
            assert part.tobytes() == was.tobytes(), f"{kernel.name} wrote where nothing of its own is"
        self._restore(call, kept)

    def _with_nonsense(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The call with copies of what is read only, spoilt for streams that have no place in this launch and beyond
        the end of those that have one."""
        counts, last, here = np.array(call["counts"]), np.array(call["last_column"]), _here(call)
        spoilt = {name: np.array(call[name]) for name in ("counts", "positions", "first_q", "last_column", "projected")}
        spoilt["forced"] = None if call["forced"] is None else np.array(call["forced"])
        for b in range(len(counts)):
            if b not in here:
                for name in ("counts", "positions", "first_q", "last_column"):
                    spoilt[name][b] = _NONSENSE
            spoilt["projected"][b, last[b] + 1 if b in here else 0 :] = np.nan
            if spoilt["forced"] is not None:
                spoilt["forced"][b, counts[b] if b in here else 0 :] = np.nan
        return {**call, **{name: None if a is None else self.upload(a) for name, a in spoilt.items()}}

    def _poison(self, call: Mapping[str, Any]) -> Iterator[NDArray[Any]]:
        """Spoils outputs and state, and gives the parts that must be as they are when the launch ends."""
        outputs = [np.asarray(call[name]) for name in _outputs(call)]
        state = [np.asarray(call[name]) for name in STATE]
        counts, here = np.asarray(call["counts"]), _here(call)
        for b in range(len(counts)):
            if b in here:
                for output in outputs:
                    output[b] = np.nan
                    yield output[b, counts[b] :]
                for slots, _ in self._unread(call, b):
                    state[0][b, slots] = _nan(state[0].dtype)
                ahead = np.arange(state[1].shape[1] - self._in_taps)
                state[1][b, (int(np.asarray(call["positions"])[b]) + ahead) % state[1].shape[1]] = np.nan
            else:
                yield from (output[b] for output in outputs)
                for array in state:
                    array[b] = _nan(array.dtype)
                    yield array[b : b + 1]

    def _restore(self, call: Mapping[str, Any], kept: Mapping[str, NDArray[Any]]) -> None:
        counts, here = np.asarray(call["counts"]), _here(call)
        for b in range(len(counts)):
            if b not in here:
                for name in STATE:
                    np.asarray(call[name])[b] = kept[name][b]
                continue
            for slots, ahead in self._unread(call, b):
                unwritten = slots[ahead >= counts[b]]
                np.asarray(call["rings"])[b, unwritten] = kept["rings"][b, unwritten]

    def _unread(self, call: Mapping[str, Any], b: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """For each layer the slots of its ring that hold nothing which a tap will meet, and how many samples from now
        each is written."""
        position = int(np.asarray(call["positions"])[b])
        for dilation, first, slots in np.asarray(call["layers"]).tolist():
            ahead = np.arange(slots - self._reach * dilation)
            yield first + (position + ahead) % slots, ahead


def _here(call: Mapping[str, Any]) -> set[int]:
    """Streams with a place."""
    return set(np.asarray(call["places"]).ravel().tolist()) - {-1}


def _outputs(call: Mapping[str, Any]) -> list[str]:
    names = ["audio", "draws", "logits", *(name for name in call if name.endswith("_trace"))]
    return [name for name in names if call[name] is not None]


def _nan(dtype: np.dtype[Any]) -> Any:
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).max


# --- recorded launches ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """One launch as it was asked for, with a copy of everything that it is given, and its PTX."""

    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    call: Mapping[str, Any]
    options: Mapping[str, Any]
    ptx: str

    def run(self, program: Program, seed: int = 0) -> dict[str, NDArray[Any]]:
        """On a copy of its arguments, by this program, which was made of `ptx`: what it leaves for the host."""
        return self._run(program, seed)[0]

    def run_orders(self, program: Program) -> list[dict[str, NDArray[Any]]]:
        """`run` with threads in several orders: of the two copies that a compiler makes of a poll, the one before a
        loop and the one within, each has to be the one that finds what it waits for."""
        return [self.run(program, seed) for seed in range(ORDERS)]

    def reached(self) -> set[int]:
        """Lines of the PTX that `run_orders` executes."""
        program = Program(self.ptx, count="lines")
        runs = [self._run(program, seed)[1].instructions for seed in range(ORDERS)]
        return {int(line) for counts in runs for line, count in counts.items() if count}

    def _run(self, program: Program, seed: int) -> tuple[dict[str, NDArray[Any]], Stats]:
        call = _copied(self.call)
        stats = program.launch(
            self.kernel.name, self.grid, self.block, [self.kernel.call.for_emulator(call)], seed=seed, **self.options
        )
        return {name: np.asarray(call[name]) for name in (*STATE, *_outputs(call), "abort")}, stats


class Recorder(EmulatedDevice):
    """Runs what it is told to, and keeps the last launch of every kernel."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.launches: dict[str, Recorded] = {}
        self._texts: dict[int, str] = {}

    def load(self, name: str, headers: Mapping[str, str]) -> Kernel:
        kernel = super().load(name, headers)
        self._texts[id(kernel)] = compile_kernel(name, headers, self.capability, "ptx", sources=self._sources).text
        return kernel

    def launch(
        self, kernel: Kernel, grid: Sequence[int], block: Sequence[int], call: Mapping[str, Any], **options: Any
    ) -> None:
        kept = {name: options[name] for name in ("shared", "cluster") if name in options}
        self.launches[kernel.name] = Recorded(
            kernel, tuple(grid), tuple(block), _copied(call), kept, self._texts[id(kernel)]
        )
        super().launch(kernel, grid, block, call, **options)


def _copied(call: Mapping[str, Any]) -> dict[str, Any]:
    device = EmulatedDevice()
    return {
        name: device.upload(np.asarray(value)) if isinstance(value, HostArray) else value
        for name, value in call.items()
    }
