"""`Vocoder`: a voice made ready to be called with mel spectrograms.

Shape law. A mel is (M, F) or (B, M, F), the sound (F·hop,) or (B, F·hop) float32 in [−1, 1], always exactly F·hop
samples; F = 0 gives an empty array. NumPy in gives NumPy out, torch in gives torch out on the same device. (F, M) only
with layout="tc".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import inputs
from .backends import prepare, usable_cores
from .backends.base import Engine, Plan
from .checkpoint import Checkpoint, load_checkpoint, resolve, save_checkpoint
from .conditioning import lookahead_frames
from .config import MelSpec, WaveNetConfig
from .errors import InputError, ShapeError, StateError
from .fold import vocode_in_pieces
from .inputs import Layout
from .likelihood import check_agreement, utterance_bits
from .mel import frame_count, mel_spectrogram
from .peer_calls import PeerCalls
from .recipe import Recipe, at_rate
from .rng import utterance_seeds
from .sampling import check_temperature
from .shaping import ShapedEngine, shaped
from .streaming import Streaming, check_chunk_frames, stream_frames
from .weights import weight_shapes

Seed = int | Sequence[int] | NDArray[Any]
Progress = Callable[[int, int], None]
MAX_THREADS = 1024


class Vocoder(PeerCalls):
    """A voice on a backend. Immutable: several Python threads may use one at the same time, and so may forked
    processes. Pickling carries the weights along, so that it can be sent to spawned processes.

    backend  "auto", "cuda", "triton", "cpu" or "reference": auto takes the first that works here; `cuda` and `triton`
             only where a GPU is there and the kernels pass a self-test for the model's shape on it, which runs at the
             first use, in a process of its own, and is remembered (`wavenet-fast doctor`). `backend_notes` says what
             was passed over and why, `plan` how a call runs
    device   "auto", "cpu" for cpu and reference, "cuda", "cuda:N" or "emulated" for cuda and triton. `emulated`
             executes the kernels' compiled code on the CPU, for proof: very slow, and never chosen by auto
    dtype    "auto", "fp32", "bf16", "fp16" or "int8". On the cpu backend auto is int8 where the voice records that this
             costs at most 0.02 bits per sample (`wavenet-fast check --write`) and the code is not the portable one,
             else bf16 where the processor has bf16 instructions, else fp32; never decided by timing. On the reference
             backend it is fp32, on cuda and triton bf16.
    threads  at most so many threads per call, 1 … 1024; None for as many as this process may run on. On the cpu backend
             each has streams of its own, or, where a model's weights exceed the second cache and streams are few, a
             share of every layer; a small model uses one thread for one utterance. `doctor` shows the choice.
    strict_mel  a mel that looks like another recipe's is an `InputError` instead of a `MelMismatchWarning`

    Raises `BackendError` where what is asked for does not exist here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        strict_mel: bool = False,
    ) -> None:
        self._threads = _check_threads(threads)
        self._checkpoint = checkpoint
        self._recipe, self._strict_mel = Recipe(checkpoint, strict_mel), strict_mel
        costs = checkpoint.format_costs if dtype == "auto" else None
        weights = {name: checkpoint.weights[name] for name in weight_shapes(checkpoint.config)}
        made = prepare(checkpoint.config, weights, backend, device, dtype, costs)
        self._device, self._notes = made.device, made.notes
        self._engine: Engine | None = shaped(made.engine, checkpoint.weights)

    @classmethod
    def from_pretrained(
        cls,
        voice: str | os.PathLike[str],
        backend: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        strict_mel: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Vocoder:
        """The voice in a checkpoint directory, a bundled one by its name, or "organisation/name" on the Hugging Face
        Hub, where huggingface_hub is installed.

        revision          of a voice on the Hub: a branch, tag or commit
        local_files_only  take only what the Hub's cache on this machine has; the environment variable HF_HUB_OFFLINE
                          does the same

        Raises `CheckpointError`, `ConfigError` and `BackendError`; the other arguments are those of the class."""
        found = resolve(voice, revision, local_files_only)
        return cls(load_checkpoint(found), backend, device, dtype, threads, strict_mel)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write the checkpoint directory that `from_pretrained` reads."""
        self._open()
        save_checkpoint(Path(directory), self._checkpoint)

    # --- mel → sound ------------------------------------------------------------------------------------------------

    def __call__(
        self,
        mel: Any,
        lengths: Any = None,
        seed: Seed = 0,
        temperature: float | None = None,
        speaker: Any = None,
        progress: Progress | None = None,
        layout: Layout = "ct",
        fold: int | None = None,
    ) -> Any:
        """Vocode a mel (M, F) or a batch (B, M, F): (F·hop,) or (B, F·hop) float32 in [−1, 1].

        lengths      frames per utterance, (B,) integers 0 … F (one integer for (M, F)); the result is then the pair
                     (sound, samples per utterance), and the sound is zero beyond each end. What the mel holds beyond
                     its lengths is never read.
        seed         one integer n, which gives utterance b the seed n + b, or one per utterance; 0 … 2⁶⁴−1. An
                     utterance's samples depend on its own mel, seed, speaker and temperature alone.
        temperature  positive: 1 samples what the model learned, less is quieter. None takes the checkpoint's own
                     (`default_temperature`).
        speaker      an id or a vector (P,), or one per utterance, where the voice has speakers
        progress     called as progress(samples done, samples in all); what it raises stops the call
        layout       "tc" where the mel is (F, M) or (B, F, M)
        fold         N > 1 cuts each utterance into up to N pieces that are vocoded side by side, which is faster where
                     threads or wide products are free, and **approximate**: pieces begin in the middle, overlap by up
                     to 0.8 s and are joined by cross-fades where they agree best (`wavenet_fast.fold`). All draw from
                     the utterance's own seed, each at its own positions, so the samples up to the first join are
                     those of the plain call, and the result still depends on nothing but mel, seed, speaker,
                     temperature and N. A short utterance gets fewer pieces. None and 1 are the plain call, exactly

        Raises `ShapeError` for a transposed or mismatched mel and `InputError` for values that cannot be used; warns
        with `MelMismatchWarning` where the mel looks like another recipe's.
        """
        engine = self._open()
        hop = self.hop_length
        values, form = inputs.as_mel(mel, self.n_mels, layout)
        batch, _, width = values.shape
        counts = inputs.as_counts(lengths, batch, width, "lengths")
        seeds = utterance_seeds(seed, batch)
        pieces = inputs.as_fold(fold)
        temperature = self._temperature(temperature)
        speakers = self._speakers(speaker, batch)
        inputs.check_length(counts, hop)
        values = inputs.prepare_mel(values, counts, form.batched)
        self._recipe.check(values, counts)
        sound = np.zeros((batch, width * hop), np.float32)
        if pieces > 1 and counts.any():
            vocode_in_pieces(
                engine, values, counts, seeds, speakers, pieces, temperature, self.threads, progress, sound
            )
        elif counts.any():
            audio, _ = engine.advance(
                engine.start(seeds, speakers), values, counts, np.ones(batch, bool), temperature,
                threads=self.threads, progress=progress,
            )  # fmt: skip
            if audio.shape == sound.shape:
                sound = audio
            else:
                sound[:, : audio.shape[1]] = audio
        if lengths is None:
            return form.give(sound)
        return form.give(sound), form.give(counts * hop)

    def stream(
        self,
        mel: Any,
        chunk_frames: int = 8,
        seed: Seed = 0,
        temperature: float | None = None,
        speaker: Any = None,
        layout: Layout = "ct",
    ) -> Iterator[Any]:
        """A generator of (n,) float32 chunks that together are `self(mel, …)`, bit for bit.

        `mel` is a whole mel (M, F), cut into pieces of `chunk_frames`, or an iterable of frames (M,) or blocks (M, k)
        as they come: each is vocoded when it arrives, in pieces of at most `chunk_frames`. No limit of length; memory
        does not grow. Bad arguments raise here, a bad block when it is reached."""
        chunk_frames = check_chunk_frames(chunk_frames)
        recipe: Recipe | None = self._recipe
        if hasattr(mel, "shape"):
            values, form = inputs.as_mel(mel, self.n_mels, layout)
            if form.batched:
                raise ShapeError(f"got a batch, {tuple(mel.shape)}; stream one mel (M, F), or use voc.streaming(B)")
            frames = np.array([values.shape[-1]])
            self._recipe.check(inputs.prepare_mel(values, frames, batched=False), frames)
            mel, recipe = (mel,), None
        elif not isinstance(mel, Iterable):
            raise InputError(f"mel is {type(mel).__name__}; stream a mel (M, F), or an iterable of blocks (M, k)")
        context = self._context(recipe, 1, seed, temperature, speaker)
        return stream_frames(context, mel, chunk_frames, self.lookahead_frames, layout)

    def streaming(
        self, batch_size: int = 1, seed: Seed = 0, temperature: float | None = None, speaker: Any = None
    ) -> Streaming:
        """A context with `batch_size` lanes, each a stream of its own: see `Streaming`.

        with voc.streaming(batch_size=16) as s:
            sound = s.step(frames)      # (16, M, k) → what is ready, (16, n)
            rest = s.flush()
        """
        return self._context(self._recipe, batch_size, seed, temperature, speaker)

    def _context(
        self, recipe: Recipe | None, batch_size: int, seed: Seed, temperature: float | None, speaker: Any
    ) -> Streaming:
        return Streaming(
            self._open(), recipe, self._speaker_table, self.threads, batch_size, seed, self._temperature(temperature),
            speaker,
        )  # fmt: skip

    # --- sound → mel, likelihood ------------------------------------------------------------------------------------

    def mel(self, wav: Any, sr: int, resample: bool = False) -> Any:
        """The mel of a recording by this voice's own recipe: (N,) → (M, F) or (B, N) → (B, M, F), NumPy or torch.

        `sr` is the recording's sample rate. Another rate than the voice's is an `AudioError`, unless `resample`."""
        self._open()
        wav = at_rate(wav, sr, self.sample_rate, resample)
        weights = self._checkpoint.weights
        return mel_spectrogram(wav, self.mel_spec, weights.get("mel.mean"), weights.get("mel.scale"))

    def copy_synthesis(self, wav: Any, sr: int, resample: bool = False, **options: Any) -> Any:
        """The recording (N,) or (B, N) as this voice says it: `self(self.mel(wav, sr, resample), **options)`."""
        return self(self.mel(wav, sr, resample), **options)

    def nll(self, mel: Any, wav: Any, speaker: Any = None, layout: Layout = "ct") -> Any:
        """How well the voice predicts a recording from its mel: mean bits per sample, teacher-forced. Less is better.

        (M, F) with (N,) gives a float, (B, M, F) with (B, N) a float64 array (B,). Lengths may differ by less than a
        hop, or as the recipe makes them; the shorter counts. Raises `ShapeError` and `InputError`."""
        engine = self._open()
        values, form = inputs.as_mel(mel, self.n_mels, layout)
        sound, sound_form = inputs.as_waveform(wav)
        if form.batched != sound_form.batched or len(values) != len(sound):
            raise ShapeError(f"mel {np.shape(mel)} and waveform {np.shape(wav)}; give (M, F) and (N,), or batches")
        batch, _, frames = values.shape
        check_agreement(sound.shape[1], frames, self.hop_length, frame_count(sound.shape[1], self.mel_spec))
        counts = inputs.as_counts(None, batch, frames, "lengths")
        inputs.check_length(counts, self.hop_length)
        values = inputs.prepare_mel(values, counts, form.batched)
        speakers = self._speakers(speaker, batch)
        self._recipe.check(values, counts)
        if isinstance(engine, ShapedEngine):
            sound, engine = engine.unshaped(sound), engine.inner
        bits = utterance_bits(engine, values, sound, speakers, self.threads)
        return bits if form.batched else float(bits[0])

    # --- what it is -------------------------------------------------------------------------------------------------

    def plan(self, streams: int = 1) -> Plan:
        """How a call with so many utterances would run here, and why: `print(voc.plan(16))`; `details` of the result is
        the same as plain data. On the backend `cuda` that is what its planner decides: kernel, blocks, tiles, homes of
        the weights, and what it passed over; on `cpu`, how threads share the call. No plan changes a sample.
        Raises `InputError` for a number below 1."""
        if isinstance(streams, bool) or not isinstance(streams, (int, np.integer)) or streams < 1:
            raise InputError(f"streams is {streams!r}; give the number of utterances of a call, 1 or more")
        return self._open().explain(int(streams), self.threads)

    @property
    def config(self) -> WaveNetConfig:
        return self._checkpoint.config

    @property
    def mel_spec(self) -> MelSpec:
        """The recipe of the mels this voice listens to."""
        return self._checkpoint.mel

    @property
    def mel_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Mean and standard deviation of the training mels, (M,) each, before any normalisation; None where the
        checkpoint has none."""
        mean, scale = (self._checkpoint.weights.get(f"mel.{name}") for name in ("mean", "scale"))
        return None if mean is None or scale is None else (mean.copy(), scale.copy())

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def n_mels(self) -> int:
        """M."""
        return self.config.n_mels

    @property
    def lookahead_frames(self) -> int:
        """Frames that must be known beyond a sample's own before it can be made."""
        return lookahead_frames(self.config)

    @property
    def default_temperature(self) -> float:
        """The temperature used where none is given: the checkpoint's, else 1."""
        return self._checkpoint.temperature

    @property
    def backend(self) -> str:
        return self._open().name

    @property
    def device(self) -> str:
        return self._device

    @property
    def backend_notes(self) -> tuple[str, ...]:
        """A sentence on each backend that `backend="auto"` passed over for this one: why."""
        return self._notes

    @property
    def dtype(self) -> str:
        """Number format of the weights: fp32, bf16, fp16 or int8."""
        return self._open().dtype

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._open().isa

    @property
    def threads(self) -> int:
        """Threads that a call may use; no call uses more than it has utterances."""
        return usable_cores() if self._threads is None else self._threads

    def close(self) -> None:
        """Let go of the engine. Every later call raises `StateError`; streams that are open may finish."""
        self._engine = None

    def __enter__(self) -> Vocoder:
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c, engine = self.config, self._engine
        running = "closed" if engine is None else f"{engine.name}, {engine.dtype}, {engine.isa}"
        return f"Vocoder({c.sample_rate} Hz, {c.n_mels} mels, hop {c.hop_length}, {c.n_layers} layers; {running})"

    def __reduce__(self) -> Any:
        engine = self._open()
        options = (engine.name, self._device, engine.dtype, self._threads, self._strict_mel)
        return Vocoder, (self._checkpoint, *options)

    # --- shared -----------------------------------------------------------------------------------------------------

    def _open(self) -> Engine:
        if self._engine is None:
            raise StateError("this Vocoder is closed; load the voice again with Vocoder.from_pretrained")
        return self._engine

    def _temperature(self, temperature: float | None) -> float:
        if temperature is None:
            return self.default_temperature
        check_temperature(temperature)
        return float(temperature)

    @property
    def _speaker_table(self) -> NDArray[np.float32] | None:
        return self._checkpoint.weights.get("speakers.weight")

    def _speakers(self, speaker: Any, batch: int) -> NDArray[np.float32] | None:
        return inputs.as_speakers(speaker, batch, self.config.speakers, self._speaker_table)


def _check_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= MAX_THREADS:
        raise InputError(
            f"threads is {threads!r}; give 1 … {MAX_THREADS}, or None for as many as this process may run on"
            f" ({usable_cores()})"
        )
    return int(threads)
