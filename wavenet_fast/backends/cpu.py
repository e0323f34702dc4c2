"""The backend `cpu`: the native engine of csrc/ behind the contract of `base.Engine`. What comes in is checked by
`host_engine`, in sentences; the engine checks sizes once more before it takes a pointer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..config import WaveNetConfig, encode
from ..errors import BackendError
from ..packing import DTYPES, Layout, pack
from .base import Plan as Explained
from .cpu_state import CpuState
from .host_engine import Call, HostEngine

ISA_VARIABLE = "WAVENET_FAST_ISA"
SPLIT_VARIABLE = "WAVENET_FAST_SPLIT"
SPLITS = ("auto", "streams", "rows")

_STATE_VERSION = 2
_TABLES = ("speakers.weight",)  # looked up in Python; the engine is given vectors


# --- instruction sets -------------------------------------------------------------------------------------------


def isas_built() -> list[str]:
    """Instruction sets compiled in, best last."""
    return [isa["name"] for isa in _engine.isas()]


def isas_possible() -> list[str]:
    """Instruction sets that this processor has, best last. "portable16" is the 16-lane logic for tests."""
    return [isa["name"] for isa in _engine.isas() if isa["available"]]


def isa_in_use() -> str:
    """The one that new engines take: what the environment variable WAVENET_FAST_ISA names, else the best.

    Raises `BackendError` where the variable names one that is unknown or that this processor does not have."""
    wanted = os.environ.get(ISA_VARIABLE, "")
    if not wanted:
        return str([isa["name"] for isa in _engine.isas() if isa["available"] and isa["automatic"]][-1])
    return _checked_isa(wanted, f"{ISA_VARIABLE} is")


def _checked_isa(wanted: str, given: str) -> str:
    possible = ", ".join(isas_possible())
    for isa in _engine.isas():
        if isa["name"] == wanted and isa["available"]:
            return wanted
        if isa["name"] == wanted:
            raise BackendError(
                f"{given} {wanted!r}, which needs {isa['needs']}; this processor does not have it. Possible here: "
                f"{possible}"
            )
    raise BackendError(f"{given} {wanted!r}, which is no instruction set of this engine. Possible here: {possible}")


class Plan(NamedTuple):
    """How a call uses its threads: `teams` groups of `size` threads each, which split the rows of every layer and make
    up to `width` streams side by side, the older taps of their layers for up to `ahead` samples at once."""

    teams: int
    size: int
    width: int
    ahead: int

    def __str__(self) -> str:
        ahead = f", older taps up to {self.ahead} samples ahead" * (self.ahead > 1)
        if self.size > 1:
            return f"the rows of every layer over {self.size} threads{ahead}"
        teams, width = "s" * (self.teams > 1), "s" * (self.width > 1)
        return f"{self.teams} thread{teams} with {self.width} stream{width}{ahead}"


def split_in_use() -> str:
    """What the environment variable WAVENET_FAST_SPLIT says, else "auto". Raises `BackendError` for unknown words."""
    return _checked_split(os.environ.get(SPLIT_VARIABLE) or "auto", f"{SPLIT_VARIABLE} is")


def _checked_split(wanted: str, given: str) -> str:
    if wanted not in SPLITS:
        raise BackendError(f"{given} {wanted!r}; the cpu backend offers {', '.join(SPLITS)}")
    return wanted


def layouts_of(isa: str) -> dict[str, Layout]:
    """Number format → how the instruction set wants its matrices."""
    described = next(i for i in _engine.isas() if i["name"] == isa)
    return {dtype: Layout(*sizes) for dtype, sizes in described["layouts"].items()}


# --- engine -----------------------------------------------------------------------------------------------------


class CpuEngine(HostEngine[CpuState]):
    """A model made ready for this processor; immutable. Implements `base.Engine`.

    weights  the tensors of `weight_shapes(config)`, float32
    dtype    "fp32", "bf16", "fp16" or "int8": how weights and the activations that meet them are rounded (packing.py)
    isa      an instruction set; None for `isa_in_use()`
    split    how threads share a call: "streams" gives each its own streams, "rows" gives each a share of the rows of
             every layer, "auto" chooses by model, batch and cores; None for `split_in_use()`. No sample depends on it.
    ahead    for how many samples the products of a layer's older taps are made at once, as far as its dilation and the
             streams of a call allow; None leaves it to the plan. No sample depends on it.

    Raises `BackendError` for an unknown number format, instruction set or split, for `ahead` below 1 and for weights
    that do not fit.
    """

    name = "cpu"

    def __init__(
        self,
        config: WaveNetConfig,
        weights: Mapping[str, NDArray[np.float32]],
        dtype: str = "fp32",
        isa: str | None = None,
        split: str | None = None,
        ahead: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise BackendError(f"dtype is {dtype!r}; the cpu backend offers {', '.join(DTYPES)}")
        split = split_in_use() if split is None else _checked_split(split, "split is")
        super().__init__(config, weights, dtype, f"cpu {_STATE_VERSION}")
        self.split = split
        if ahead is not None and (type(ahead) is not int or ahead < 1):
            raise BackendError(f"ahead is {ahead!r}; give a number of samples from 1 on, or None")
        self.ahead = min(ahead or 0, max(config.dilations))
        self.isa = isa_in_use() if isa is None else _checked_isa(isa, "isa is")
        self.ring_dtype = np.dtype({"bf16": np.uint16, "int8": np.int8}.get(dtype, np.float32))
        self.scale_slots = self.ring_slots if dtype == "int8" else 0
        packed = pack(config, weights, layouts_of(self.isa), dtype)
        native = {name: array for name, array in packed.items() if name not in _TABLES}
        self._model = _engine.Model(encode(config), dtype, self.isa, native)
        self.ring_channels = self._model.ring_channels

    @property
    def weight_bytes(self) -> int:
        """Of the packed matrices that every sample passes (dilated, residual, skip, head), padding included; int8
        without its scales."""
        return self._model.streamed_bytes

    def _new_state(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32]) -> CpuState:
        return CpuState(self, seeds, speakers)

    def _run(self, state: CpuState, call: Call) -> None:
        _engine.generate(
            model=self._model, state=state.native(), mel=call.mel, frames=call.frames, ended=call.ended,
            counts=call.counts, temperature=call.temperature, threads=call.threads, split=self.split,
            ahead=self.ahead, forced=call.forced, audio=call.audio, raw=call.raw, logits=call.logits, trace=call.stages,
            progress=call.progress,
        )  # fmt: skip

    def plan(self, batch: int, threads: int) -> Plan:
        """How a call of so many streams uses so many threads."""
        plan = Plan(*_engine.plan(self.weight_bytes, batch, threads, self.split, self.ahead))
        return plan._replace(ahead=min(plan.ahead, max(self.config.dilations)))

    def explain(self, streams: int, threads: int) -> Explained:
        plan = self.plan(streams, threads)
        return Explained(f"cpu, {self.dtype}, {self.isa}: {plan}", plan._asdict())

    def trace(
        self, mel: NDArray[np.float32], forced: NDArray[Any], seed: int = 0, speaker: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Every stage of one utterance under forced history, for tests; all of it is kept in memory.

        mel (M, F), forced (F·hop,) → conditioning (T, L, G), embed (T, R), gate.i (T, G/2), x.i (T, R), skip (T, S),
        hidden (T, H) before its ReLU, logits (T, A), all float32; names as in `reference.Reference`."""
        c, T = self.config, mel.shape[-1] * self.config.hop_length
        L, half = c.n_layers, c.gate_channels // 2
        shapes = {
            "conditioning": (T, L, 2 * half), "embed": (T, c.residual_channels), "gate": (T, L, half),
            "x": (T, L - 1, c.residual_channels), "skip": (T, c.skip_channels), "hidden": (T, c.head_channels),
            "logits": (T, c.out_channels),
        }  # fmt: skip
        stages = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        state = self.start(np.array([seed], np.uint64), None if speaker is None else np.asarray(speaker)[None])
        frames, ended = np.array([mel.shape[-1]]), np.array([True])
        self._advance(state, mel[None], frames, ended, 1.0, 1, np.asarray(forced)[None], None, True, None, stages)
        gate, x = stages.pop("gate"), stages.pop("x")
        stages |= {f"gate.{i}": gate[:, i] for i in range(L)}
        stages |= {f"x.{i}": x[:, i] for i in range(L - 1)}
        return stages
