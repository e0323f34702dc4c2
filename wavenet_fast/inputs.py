"""The shape law, and what else is checked of arrays before they reach an engine.

Canonical are (M, F) and (B, M, F) for mels, (N,) and (B, N) for waveforms. Nothing is guessed and nothing is clamped:
another axis order, integers, NaN or infinity end in a sentence. Floating point of any width, byte order and memory
layout is converted to float32; torch tensors are taken from their device, and answers go back to it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .config import Speakers
from .errors import InputError, ShapeError

Layout = Literal["ct", "tc"]
MAX_CALL_SAMPLES = 2**31 - 1
"""Samples of one utterance in one call; longer sound is streamed."""


@dataclass(frozen=True)
class Form:
    """How the caller's array came, so that the answer leaves the same way."""

    batched: bool
    device: Any = None
    """The torch device of a tensor; None for NumPy."""

    def give(self, array: NDArray[Any]) -> Any:
        """(B, …) → the caller's kind of array, without the batch axis where none came in."""
        if not self.batched:
            array = array[0]
        if self.device is None:
            return array
        return sys.modules["torch"].as_tensor(array, device=self.device)


def as_mel(mel: Any, n_mels: int, layout: Layout = "ct") -> tuple[NDArray[np.floating[Any]], Form]:
    """A mel (M, F) or (B, M, F) as (B, M, F), still in the caller's float type: `prepare_mel` converts and checks its
    values, `check_length` its size.

    With layout "tc" the caller's axes are (F, M) and (B, F, M). Raises `ShapeError` for another rank or number of
    bands, `InputError` for anything but floating point."""
    if layout not in ("ct", "tc"):
        raise InputError(f'layout is {layout!r}; "ct" is (bands, frames), "tc" is (frames, bands)')
    values, device = _floating(mel, "the mel")
    want = f"({n_mels}, F)" if layout == "ct" else f"(F, {n_mels})"
    if values.ndim not in (2, 3):
        raise ShapeError(f"the mel has shape {values.shape}; give {want} or a batch (B, {want[1:]}")
    bands, frames = (-2, -1) if layout == "ct" else (-1, -2)
    if values.shape[bands] != n_mels:
        raise ShapeError(_explain_bands(values.shape, n_mels, want, layout, values.shape[frames] == n_mels))
    form = Form(values.ndim == 3, device)
    if layout == "tc":
        values = values.swapaxes(-1, -2)
    return values if form.batched else values[None], form


def _explain_bands(shape: tuple[int, ...], n_mels: int, want: str, layout: Layout, transposed: bool) -> str:
    batch = "" if len(shape) == 2 else f" or (B, {want[1:]}"
    said = f"got a mel of shape {shape}; this checkpoint wants {want}{batch}."
    if not transposed:
        return f"{said} It has {n_mels} mel bands: extract the mel with voc.mel(wav, sr), or by the recipe voc.mel_spec"
    other = "tc" if layout == "ct" else "ct"
    turned = "mel.T" if len(shape) == 2 else "mel.swapaxes(1, 2)"
    return f'{said} It looks transposed: pass {turned} or layout="{other}" (--layout {other})'


def as_waveform(wav: Any, mask: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.float32], Form]:
    """A waveform (N,) or (B, N) as float32 (B, N), checked to be finite; with `mask` (B,) only where it is True."""
    values, device = _floating(wav, "the waveform", " of full scale ±1 (16-bit integers: divide by 32768)")
    if values.ndim not in (1, 2):
        raise ShapeError(f"the waveform has shape {values.shape}; give (samples,) or (batch, samples)")
    form = Form(values.ndim == 2, device)
    values = _narrow(values if form.batched else values[None])
    if mask is not None and len(mask) != len(values):
        raise ShapeError(f"got sound for {len(values)} streams; this context has {len(mask)} lanes")
    bad = ~np.isfinite(values) & (True if mask is None else mask[:, None])
    if bad.any():
        b, n = np.argwhere(bad)[0]
        where = f"utterance {b}, sample {n}" if form.batched else f"sample {n}"
        raise InputError(f"the waveform holds {values[b, n]} at {where}; only finite numbers can be used")
    return values, form


def _floating(data: Any, name: str, hint: str = "") -> tuple[NDArray[Any], Any]:
    """Any array-like as a NumPy array of floating point, and the torch device it came from (None for NumPy)."""
    torch = sys.modules.get("torch")
    device = None
    if torch is not None and isinstance(data, torch.Tensor):
        device = data.device
        if device.type == "meta" or data.layout != torch.strided:
            kind = "a meta tensor, without values" if device.type == "meta" else f"a tensor of layout {data.layout}"
            raise InputError(f"{name} is {kind}; give a dense tensor (tensor.to_dense()) or a NumPy array")
        if not data.is_floating_point():
            raise InputError(f"{name} is {data.dtype}; give floating point{hint}")
        data = data.detach().resolve_conj().resolve_neg().cpu()
        # NumPy has no bfloat16 and no 8-bit floats.
        data = (data if data.dtype in (torch.float32, torch.float64) else data.float()).numpy()
    array = _array(data, name)
    if array.dtype.kind != "f":
        raise InputError(f"{name} is {array.dtype}; give floating point{hint}")
    return array, device


def _array(data: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"{name} is no array: {error}; give a NumPy array or a torch tensor") from None


def _narrow(values: NDArray[Any]) -> NDArray[np.float32]:
    """Float32, native byte order, C order; copies only where it must. What exceeds float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def as_counts(counts: Any, batch: int, limit: int, name: str) -> NDArray[np.int64]:
    """Frames per utterance: integers 0 … limit, one per utterance, as int64 (B,); None gives `limit` to all."""
    if counts is None:
        return np.full(batch, limit, np.int64)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(counts, torch.Tensor):
        counts = counts.detach().cpu().numpy()
    array = np.atleast_1d(_array(counts, name))
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{name} holds {array.dtype}; give whole numbers of frames, one per utterance")
    if array.shape != (batch,):
        raise ShapeError(f"{name} has shape {array.shape}; give one number of frames per utterance, ({batch},)")
    for b, value in enumerate(array):
        if not 0 <= value <= limit:
            raise InputError(f"{name}[{b}] is {value}; the mel has {limit} frames, so 0 … {limit} are possible")
    return array.astype(np.int64)


def as_fold(fold: Any) -> int:
    """The pieces an utterance may be cut into: a positive integer; None is 1."""
    if fold is None:
        return 1
    if isinstance(fold, (bool, np.bool_)) or not isinstance(fold, (int, np.integer)) or fold < 1:
        raise InputError(
            f"fold is {fold!r}; it is the number of pieces that an utterance is cut into, 1 (not cut, exact) or more"
        )
    return int(fold)


def check_length(counts: NDArray[np.int64], hop: int) -> None:
    """Raises `InputError` where an utterance of one call is longer than `MAX_CALL_SAMPLES`."""
    longest = int(counts.max(initial=0))
    if longest * hop > MAX_CALL_SAMPLES:
        raise InputError(
            f"the mel has {longest} frames of {hop} samples; one call makes at most {MAX_CALL_SAMPLES} samples of an"
            f" utterance, {MAX_CALL_SAMPLES // hop} frames: use voc.stream, which has no limit"
        )


def check_primed(n_samples: int, n_frames: int, hop: int, ahead: int, held: int) -> None:
    """Raises `ShapeError` unless the samples are whole frames, and the frames are what they depend on beyond the `held`
    ones that streams received before."""
    n, rest = divmod(n_samples, hop)
    if rest:
        raise ShapeError(
            f"the waveform has {n_samples} samples; a stream goes on at the beginning of a frame, so give whole frames"
            f" of {hop} samples: {n * hop} or {(n + 1) * hop}"
        )
    if n_frames != n + ahead - held:
        raise ShapeError(
            f"got {n_frames} frames for {n_samples} samples; give {n + ahead - held}: these are {n} frames of {hop}"
            f" samples, which depend on {ahead} more (lookahead_frames); the streams hold {held} of those already"
        )


def prepare_mel(mel: NDArray[Any], counts: NDArray[np.int64], batched: bool = True) -> NDArray[np.float32]:
    """(B, M, F) as contiguous float32. Raises `InputError` with the first bad frame and band unless all counted frames
    are finite; the others do not matter."""
    values = _narrow(mel)
    for b, count in enumerate(counts):
        part = values[b, :, :count]
        if np.isfinite(part).all():
            continue
        frame = int(np.argmax(~np.isfinite(part).all(axis=0)))
        band = int(np.argmax(~np.isfinite(part[:, frame])))
        where = f"utterance {b}, frame {frame}, band {band}" if batched else f"frame {frame}, band {band}"
        given = mel[b, band, frame]
        why = "which float32 cannot hold" if np.isfinite(given) else "and only finite numbers can be vocoded"
        raise InputError(f"the mel holds {given} at {where}, {why}; look at what made it (a log of zero, a division?)")
    return values


def as_mask(mask: Any, batch: int, name: str = "mask") -> NDArray[np.bool_]:
    """Booleans (B,), one per stream; None means all of them."""
    if mask is None:
        return np.ones(batch, bool)
    array = _array(mask, name)
    if array.dtype != bool or array.shape != (batch,):
        raise InputError(f"{name} is {array.dtype} {array.shape}; give one True or False per stream, ({batch},)")
    return array.copy()


def as_speakers(
    speaker: Any, batch: int, speakers: Speakers, table: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """The speaker vectors (B, P) of a call, or None for a voice without speakers.

    `speaker` is an id, one id per utterance, a vector (P,) or one per utterance (B, P). `table` (count, P)."""
    P, count = speakers.channels, speakers.count
    if not P:
        if speaker is not None:
            raise InputError(f"speaker is {speaker!r}, but this voice has one speaker only; leave speaker out")
        return None
    ids = f"a speaker id 0 … {count - 1}, " if count else ""
    ways = f"give {ids}a vector of width {P}, or one per utterance"
    if speaker is None:
        raise InputError(f"this voice has speakers: {ways}")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(speaker, torch.Tensor):
        speaker = _floating(speaker, "speaker")[0] if speaker.is_floating_point() else speaker.detach().cpu().numpy()
    given = _array(speaker, "speaker")
    if given.dtype.kind in "iu" and given.ndim <= 1:
        if table is None:
            raise InputError(f"speaker is {speaker!r}, but this voice has no table of speakers; {ways}")
        if given.ndim and given.shape != (batch,):
            raise ShapeError(f"got {given.size} speaker ids for {batch} utterances; {ways}")
        if given.size and not 0 <= given.min() <= given.max() < count:
            raise InputError(f"speaker is {speaker!r}; this voice has speakers 0 … {count - 1}")
        return np.ascontiguousarray(np.broadcast_to(table[given], (batch, P)), np.float32)
    if given.dtype.kind != "f":
        raise InputError(f"speaker is {speaker!r} ({given.dtype}); {ways}")
    if given.shape not in ((P,), (batch, P)):
        raise ShapeError(f"speaker has shape {given.shape}; {ways}: ({P},) or ({batch}, {P})")
    vectors = _narrow(np.broadcast_to(given, (batch, P)))
    if not np.isfinite(vectors).all():
        raise InputError("speaker holds NaN or infinity; a speaker vector needs finite numbers")
    return vectors
