"""The backend `cpu`: the native engine of csrc/ behind the contract of `base.Engine`. It checks what comes in, in
sentences; the engine checks sizes once more before it takes a pointer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..conditioning import MAX_STREAM_SAMPLES, context_frames, lookahead_frames, ready_samples
from ..config import CategoricalHead, OneHotInput, WaveNetConfig, encode
from ..errors import BackendError, InputError, ShapeError, StateError
from ..packing import DTYPES, Layout, pack
from ..sampling import check_temperature
from .base import Progress
from .cpu_state import CpuState, checked_seeds

ISA_VARIABLE = "WAVENET_FAST_ISA"
SPLIT_VARIABLE = "WAVENET_FAST_SPLIT"
SPLITS = ("auto", "streams", "rows")

_STATE_VERSION = 2
_FORCED_LIMIT = 2.0  # a decode offset leads a little beyond −1
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
    up to `width` streams side by side."""

    teams: int
    size: int
    width: int


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


class CpuEngine:
    """A model made ready for this processor; immutable. Implements `base.Engine`.

    weights  the tensors of `weight_shapes(config)`, float32
    dtype    "fp32", "bf16", "fp16" or "int8": how weights and the activations that meet them are rounded (packing.py)
    isa      an instruction set; None for `isa_in_use()`
    split    how threads share a call: "streams" gives each its own streams, "rows" gives each a share of the rows of
             every layer, "auto" chooses by model, batch and cores; None for `split_in_use()`. No sample depends on it.

    Raises `BackendError` for an unknown number format, instruction set or split and for weights that do not fit.
    """

    name = "cpu"

    def __init__(
        self,
        config: WaveNetConfig,
        weights: Mapping[str, NDArray[np.float32]],
        dtype: str = "fp32",
        isa: str | None = None,
        split: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise BackendError(f"dtype is {dtype!r}; the cpu backend offers {', '.join(DTYPES)}")
        split = split_in_use() if split is None else _checked_split(split, "split is")
        self.config, self.dtype, self.split = config, dtype, split
        self.isa = isa_in_use() if isa is None else _checked_isa(isa, "isa is")
        self._categorical = isinstance(config.head, CategoricalHead)
        self.ring_dtype = np.dtype({"bf16": np.uint16, "int8": np.int8}.get(dtype, np.float32))
        self.ring_slots = (config.kernel_size - 1) * sum(config.dilations)
        self.scale_slots = self.ring_slots if dtype == "int8" else 0
        packed = pack(config, weights, layouts_of(self.isa), dtype)
        native = {name: array for name, array in packed.items() if name not in _TABLES}
        self._model = _engine.Model(encode(config), dtype, self.isa, native)
        self.ring_channels = self._model.ring_channels
        self._context = context_frames(config)
        self.kept = self._context + lookahead_frames(config)
        self.identity = {
            "format": f"wavenet_fast cpu {_STATE_VERSION}", "model": _fingerprint(config, weights), "dtype": dtype,
        }  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Of the packed matrices that every sample passes (dilated, residual, skip, head), padding included; int8
        without its scales."""
        return self._model.streamed_bytes

    def start(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32] | None = None) -> CpuState:
        """See `base.Engine.start`. Raises `InputError` where the model has speakers and no vectors are given."""
        seeds = np.asarray(seeds)
        if seeds.ndim != 1 or not seeds.size:
            raise ShapeError(f"seeds have shape {seeds.shape}; give (B,), one per stream and at least one")
        return CpuState(self, checked_seeds(seeds, len(seeds)), self.checked_speakers(speakers, len(seeds)))

    def checked_speakers(self, speakers: NDArray[np.float32] | None, batch: int) -> NDArray[np.float32]:
        """(B, P) float32, P = 0 where the model has no speakers."""
        P = self.config.speakers.channels
        if speakers is None and P:
            raise InputError(f"this model has speakers: give a vector of {P} numbers for each of the {batch} streams")
        vectors = np.zeros((batch, 0), np.float32) if speakers is None else np.asarray(speakers, np.float32)
        if vectors.shape != (batch, P):
            raise ShapeError(f"speakers have shape {vectors.shape}; this model needs ({batch}, {P})")
        if not np.isfinite(vectors).all():
            raise InputError("a speaker vector holds NaN or infinity; give finite numbers")
        return np.ascontiguousarray(vectors)

    def plan(self, batch: int, threads: int) -> Plan:
        """How a call of so many streams uses so many threads."""
        return Plan(*_engine.plan(self.weight_bytes, batch, threads, self.split))

    def kept_frames(self, positions: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the received frames streams at these positions still need."""
        first = np.maximum(0, positions // self.config.hop_length - self._context)
        return np.asarray(frames - np.minimum(first, frames))

    def advance(
        self,
        state: CpuState,
        mel: NDArray[np.float32],
        frames: NDArray[np.int64],
        ended: NDArray[np.bool_],
        temperature: float,
        *,
        threads: int = 1,
        forced: NDArray[Any] | None = None,
        logits: NDArray[np.float32] | None = None,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """See `base.Engine.advance`. `threads` ≥ 1: streams are spread over at most so many threads.

        Raises `ShapeError` and `InputError` for arguments that do not fit, `StateError` for frames after the end."""
        with state.exclusively():
            return self._advance(state, mel, frames, ended, temperature, threads, forced, logits, raw, progress, None)

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

    def _advance(
        self,
        state: CpuState,
        mel: NDArray[np.float32],
        frames: NDArray[np.int64],
        ended: NDArray[np.bool_],
        temperature: float,
        threads: int,
        forced: NDArray[Any] | None,
        logits: NDArray[np.float32] | None,
        raw: bool,
        progress: Progress | None,
        stages: dict[str, NDArray[np.float32]] | None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        check_temperature(temperature)
        mel, frames = self._checked_frames(state, mel, frames)
        ended = state.ended | np.asarray(ended, bool)
        counts = ready_samples(self.config, state.frames + frames, ended) - state.positions
        longest = int(counts.max(initial=0))
        history = None if forced is None else self._checked_history(forced, counts, longest)
        self._check_logits(logits, state.batch, longest)
        out = np.zeros((state.batch, longest), np.float32)
        with state.unchanged_on_failure():
            if longest:
                _engine.generate(
                    model=self._model, state=state.native(), mel=mel, frames=frames, ended=ended, counts=counts,
                    temperature=min(max(float(temperature), 1e-37), 3e38), threads=int(threads), split=self.split,
                    forced=history, audio=None if raw else out, raw=out if raw else None, logits=logits, trace=stages,
                    progress=progress,
                )  # fmt: skip
            state.positions += counts
            state.receive(mel, frames)
            state.ended[:] = ended
            if longest and progress is not None:
                progress(int(counts.sum()), int(counts.sum()))
        return (out.astype(np.int32) if raw and self._categorical else out), counts

    def _checked_frames(
        self, state: CpuState, mel: NDArray[np.float32], frames: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        batch, M = state.batch, self.config.n_mels
        if state.engine is not self:
            raise StateError("this stream state belongs to another engine; start it with this one")
        if mel.ndim != 3 or mel.shape[:2] != (batch, M):
            raise ShapeError(f"mel has shape {mel.shape}; {batch} streams of this model need ({batch}, {M}, frames)")
        if mel.dtype != np.float32:
            raise InputError(f"mel is {mel.dtype}; the engine takes float32 in native byte order")
        counts = np.asarray(frames)
        if counts.shape != (batch,) or counts.dtype.kind not in "iu":
            raise ShapeError(f"frames are {counts.dtype} {counts.shape}; give integers ({batch},), one per stream")
        if counts.min() < 0 or counts.max() > mel.shape[2]:
            raise InputError(f"frames lie in {counts.min()} … {counts.max()}; the mel has 0 … {mel.shape[2]} to give")
        if (late := state.ended & (counts > 0)).any():
            raise StateError(f"frames for streams {np.flatnonzero(late).tolist()}, which have ended; reset them first")
        if int((state.frames + counts).max()) > MAX_STREAM_SAMPLES // self.config.hop_length:
            raise InputError(f"a stream of more than {MAX_STREAM_SAMPLES} samples is asked for; reset it first")
        if not mel.flags.aligned or any(stride % mel.itemsize for stride in mel.strides):
            mel = mel.copy()
        return mel, counts.astype(np.int64)

    def _checked_history(self, forced: NDArray[Any], counts: NDArray[np.int64], longest: int) -> NDArray[np.float32]:
        """(B, longest) float32 out of (B, ≥ longest); what lies beyond a stream's own samples is never looked at."""
        c, values = self.config, np.asarray(forced)
        if values.ndim != 2 or len(values) != len(counts) or values.shape[1] < longest:
            raise ShapeError(f"forced has shape {values.shape}; this call makes ({len(counts)}, {longest}) samples")
        history = np.zeros((len(counts), longest), np.float32)
        for b, count in enumerate(counts):
            row = values[b, :count]
            if isinstance(c.input, OneHotInput):
                if row.dtype.kind not in "iu" or (row.size and not (row.min() >= 0 and row.max() < c.out_channels)):
                    raise InputError(f"forced must hold integer classes 0 … {c.out_channels - 1}; use mulaw_encode")
            elif row.dtype.kind != "f" or not (np.abs(row) <= _FORCED_LIMIT).all():
                raise InputError("forced must hold floating-point values in the model's domain, −1 … 1")
            history[b, :count] = row
        return history

    def _check_logits(self, logits: NDArray[np.float32] | None, batch: int, longest: int) -> None:
        if logits is None:
            return
        A = self.config.out_channels
        fits = logits.ndim == 3 and logits.shape[0] == batch and logits.shape[1] >= longest and logits.shape[2] == A
        if not fits or logits.dtype != np.float32 or not logits.flags.c_contiguous or not logits.flags.writeable:
            raise ShapeError(
                f"logits is {logits.dtype} {logits.shape}; this call fills contiguous float32 ({batch}, {longest}, {A})"
            )


def _fingerprint(config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]]) -> str:
    """16 hexadecimal digits that differ whenever the configuration or a weight does."""
    digest = hashlib.blake2b(repr(encode(config)).encode(), digest_size=8)
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], np.float32).data)
    return digest.hexdigest()
