"""The backend `reference`: the PyTorch model behind the contract of `base.Engine`. Slow, and right.

Every stream runs alone, one sample at a time, and hears conditioning that is computed frame by frame from a window
whose extent depends on the frame alone. Hence no bit can depend on batch, slot, chunking or threads.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conditioning import context_frames, lookahead_frames, ready_samples
from ..config import CategoricalHead, OneHotInput, WaveNetConfig, encode
from ..errors import StateError
from ..reference import Reference
from ..reference import State as NetworkState
from ..rng import uniforms
from ..sampling import sample
from ..signal import fed_back, sound_of, to_waveform
from .base import Plan, Progress, as_array, check_beginning, check_identity

_STATE_VERSION = 1


class Stream:
    """One utterance in the making: everything that its next sample depends on."""

    def __init__(self, model: Reference, seed: int, speaker: NDArray[np.float32] | None) -> None:
        c = model.config
        self.seed, self.speaker = seed, speaker
        self.network: NetworkState = model.initial_state(1)
        kind = torch.int64 if isinstance(c.input, OneHotInput) else torch.float32
        self.newest = torch.tensor([c.start], dtype=kind, device="cpu")
        self.memory = 0.0
        """The de-emphasis filter's last output, before the gain."""
        self.mel = np.zeros((c.n_mels, 0), np.float32)
        """Frames kept: those waiting, and before them as much context as the conditioning network looks back."""
        self.frames = 0
        """Frames received since the beginning; the last ones of them are in `mel`."""
        self.ended = False

    @property
    def position(self) -> int:
        """Samples generated."""
        return self.network.t


class ReferenceState:
    """The streams of one batch; implements `base.State`."""

    def __init__(self, engine: ReferenceEngine, streams: list[Stream]) -> None:
        self._engine = engine
        self.streams = streams

    @property
    def batch(self) -> int:
        return len(self.streams)

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.array([s.position for s in self.streams], np.int64)

    @property
    def frames(self) -> NDArray[np.int64]:
        return np.array([s.frames for s in self.streams], np.int64)

    @property
    def ended(self) -> NDArray[np.bool_]:
        return np.array([s.ended for s in self.streams], bool)

    def reset(
        self,
        mask: NDArray[np.bool_],
        seeds: NDArray[np.uint64] | None = None,
        speakers: NDArray[np.float32] | None = None,
    ) -> None:
        for b in np.flatnonzero(mask):
            old = self.streams[b]
            seed = old.seed if seeds is None else int(seeds[b])
            speaker = old.speaker if speakers is None else speakers[b]
            self.streams[b] = Stream(self._engine.model, seed, speaker)

    def begin_at(self, first: NDArray[np.int64], mel: NDArray[np.float32]) -> None:
        check_beginning(first, mel, (self.batch, *self._engine.window), self.frames)
        for b in np.flatnonzero(first):
            stream, ahead = self.streams[b], lookahead_frames(self._engine.config)
            stream.network.t, stream.frames = int(first[b]) * self._engine.config.hop_length, int(first[b]) + ahead
            stream.mel = mel[b, :, mel.shape[2] - self._engine.kept_frames(stream) :].copy()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {**self._engine.identity, "batch": self.batch}
        for b, s in enumerate(self.streams):
            arrays = {
                "seed": np.uint64(s.seed), "position": s.position, "memory": s.memory, "frames": s.frames,
                "ended": s.ended, "newest": s.newest.numpy().copy(), "inputs": s.network.inputs.numpy().copy(),
                "mel": s.mel.copy(), "speaker": np.zeros(0, np.float32) if s.speaker is None else s.speaker.copy(),
            }  # fmt: skip
            rings = {f"ring.{i}": ring.numpy().copy() for i, ring in enumerate(s.network.rings)}
            state |= {f"stream.{b}.{name}": np.asarray(value) for name, value in (arrays | rings).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        check_identity(state, own)
        streams = [self._restored(b, state, own) for b in range(self.batch)]
        self.streams = streams

    def _restored(self, b: int, state: Mapping[str, Any], own: Mapping[str, Any]) -> Stream:
        """Stream b out of a state dictionary, every array checked against the one it replaces."""

        def array(name: str) -> NDArray[Any]:
            key = f"stream.{b}.{name}"
            value, mine = as_array(state[key], key), own[key]
            shape = (*mine.shape[:-1], value.shape[-1]) if name == "mel" and value.ndim == 2 else mine.shape
            if value.dtype != mine.dtype or value.shape != shape:
                raise StateError(f"stream.{b}.{name} is {value.dtype} {value.shape}, not {mine.dtype} {mine.shape}")
            return value

        # Torch's own memory everywhere: the alignment of a product's operands may decide how it adds.
        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(array(name).copy()).clone()

        vector = array("speaker").copy()
        speaker = None if self.streams[b].speaker is None else vector
        stream = Stream(self._engine.model, int(array("seed")), speaker)
        rings = [tensor(f"ring.{i}") for i in range(len(stream.network.rings))]
        position, frames = int(array("position")), int(array("frames"))
        stream.network = NetworkState(position, rings, tensor("inputs"))
        stream.newest, stream.memory = tensor("newest"), float(array("memory"))
        stream.mel, stream.frames, stream.ended = array("mel").copy(), frames, bool(array("ended"))
        config = self._engine.config
        due = ready_samples(config, frames, stream.ended)
        if position != due or stream.mel.shape[1] != self._engine.kept_frames(stream):
            raise StateError(f"stream.{b} is at sample {position} of {frames} frames: the state is damaged")
        classes = torch.cat([stream.newest, stream.network.inputs[0]])
        if isinstance(config.input, OneHotInput) and not ((classes >= -1) & (classes < config.out_channels)).all():
            raise StateError(f"stream.{b} heard classes that do not exist: the state is damaged")
        return stream


class ReferenceEngine:
    """A model made ready; immutable. Implements `base.Engine`."""

    name, isa = "reference", "torch"

    def __init__(self, config: WaveNetConfig, weights: Mapping[str, NDArray[np.float32]], dtype: str = "fp32") -> None:
        self.config, self.dtype = config, dtype
        # Torch's own memory: it is aligned, and arrays of a checkpoint are read-only, which torch warns about.
        self.model = Reference(
            config, {name: torch.tensor(weight, device="cpu") for name, weight in weights.items()}, dtype
        )
        self._categorical = isinstance(config.head, CategoricalHead)
        self._lookahead, self._context = lookahead_frames(config), context_frames(config)
        self.window = config.n_mels, self._context + self._lookahead
        digest = hashlib.sha256(repr(encode(config)).encode())
        for tensor in self.model.weights.values():
            digest.update(tensor.numpy().tobytes())
        self.identity = {
            "format": f"wavenet_fast reference {_STATE_VERSION}", "model": digest.hexdigest()[:16], "dtype": dtype,
        }  # fmt: skip

    def explain(self, streams: int, threads: int) -> Plan:
        return Plan(f"reference, {self.dtype}: one stream after the other, one sample after the other")

    def start(self, seeds: NDArray[np.uint64], speakers: NDArray[np.float32] | None = None) -> ReferenceState:
        vectors = [None] * len(seeds) if speakers is None else list(speakers)
        return ReferenceState(self, [Stream(self.model, int(s), v) for s, v in zip(seeds, vectors, strict=True)])

    @torch.inference_mode()
    def advance(
        self,
        state: ReferenceState,
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
        # Copies move forward; they take the place of the streams only when the whole call has succeeded.
        streams = copy.deepcopy(state.streams)
        ready = np.zeros(state.batch, np.int64)
        for b, stream in enumerate(streams):
            self._receive(stream, mel[b, :, : frames[b]], bool(ended[b]))
            ready[b] = ready_samples(self.config, stream.frames, stream.ended) - stream.position
        audio = np.zeros((state.batch, int(ready.max(initial=0))), np.float32)
        drawn = np.zeros(audio.shape, np.int32 if self._categorical else np.float32)
        done, total = 0, int(ready.sum())
        for b, stream in enumerate(streams):
            for n in range(0, int(ready[b]), self.config.hop_length):
                piece = slice(n, n + self.config.hop_length)
                fed = None if forced is None else forced[b, piece]
                drawn[b, piece] = self._frame(stream, temperature, fed, None if logits is None else logits[b, piece])
                audio[b, piece] = self._sound(stream, drawn[b, piece], fed)
                done += self.config.hop_length
                if progress is not None:
                    progress(done, total)
            self._forget(stream)
        state.streams = streams
        return (drawn if raw else audio), ready

    def _receive(self, stream: Stream, mel: NDArray[np.float32], ended: bool) -> None:
        if stream.ended and mel.shape[1]:
            raise StateError("frames for a stream that has ended; reset it first")
        stream.mel = np.concatenate([stream.mel, mel], axis=1)
        stream.frames += mel.shape[1]
        stream.ended |= ended

    def kept_frames(self, stream: Stream) -> int:
        """How many of the received frames a stream still needs between calls."""
        first = max(0, stream.position // self.config.hop_length - self._context)
        return stream.frames - min(first, stream.frames)

    def _forget(self, stream: Stream) -> None:
        kept = self.kept_frames(stream)
        stream.mel = stream.mel[:, stream.mel.shape[1] - kept :].copy()

    def _frame(
        self, stream: Stream, temperature: float, forced: NDArray[Any] | None, logits: NDArray[np.float32] | None
    ) -> NDArray[Any]:
        """The draws of one frame, (hop,): what the samples are before they become sound."""
        c, hop = self.config, self.config.hop_length
        conditioning = self._conditioning(stream, stream.position // hop)
        u = uniforms(np.uint64(stream.seed), np.arange(stream.position, stream.position + hop))
        drawn = np.zeros(hop, np.int32 if self._categorical else np.float32)
        for i in range(hop):
            out = self.model.step(stream.network, stream.newest, conditioning[i]).numpy()[0]
            if logits is not None:
                logits[i] = out
            drawn[i] = sample(out, u[i], c.head, temperature)
            heard = fed_back(drawn[i], c) if forced is None else forced[i]
            stream.newest = torch.tensor([heard], dtype=stream.newest.dtype, device="cpu")
        return drawn

    def _sound(self, stream: Stream, drawn: NDArray[Any], forced: NDArray[Any] | None) -> NDArray[np.float32]:
        """One frame of draws (hop,) as sound, each on top of the past that was heard."""
        c = self.config
        if forced is None:
            sound, stream.memory = to_waveform(drawn, c, stream.memory)
            return sound
        sound, stream.memory = sound_of(drawn, forced, c, stream.memory)
        return sound

    def _conditioning(self, stream: Stream, frame: int) -> torch.Tensor:
        """(hop, 1, L, G) for the samples of one frame, from the frames it depends on and no others.

        The window's extent follows from the frame (and the utterance's end) alone, so its products always have the
        same shape, and the same bits come out whenever the frames arrive."""
        hop = self.config.hop_length
        first = max(0, frame - self._context)
        last = min(frame + self._lookahead + 1, stream.frames)
        kept = stream.frames - stream.mel.shape[1]
        window = torch.from_numpy(stream.mel[None, :, first - kept : last - kept].copy()).clone()
        speaker = None if stream.speaker is None else torch.from_numpy(stream.speaker.copy()).clone()[None]
        start = (frame - first) * hop
        return self.model.conditioning(window, speaker, start, start + hop).transpose(0, 1).contiguous()
