"""Train a voice: `wavenet-fast train --data DIR --out DIR`. Plain PyTorch, one file, made for a few CPU cores.

The order of the file is the order of a step: plan → recordings → segments → network → loss → optimiser → the loop that
validates and saves. Many small steps beat few large ones at a fixed number of samples, so a step is a few short
segments. Each begins with enough left context to fill the receptive field; the context carries no loss.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio import read_audio, read_mel
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import (
    CategoricalHead,
    Linear,
    LogisticHead,
    MelSpec,
    OneHotInput,
    Record,
    Stages,
    WaveNetConfig,
    decode,
    encode,
)
from .errors import AudioError, CheckpointError, ConfigError, ShapeError
from .likelihood import check_agreement
from .mel import frame_count, mel_spectrogram
from .recipe import recipe_differences
from .reference import Reference
from .signal import fed_back, to_model_domain
from .strict_json import parse
from .weights import weight_shapes

LN2 = math.log(2.0)

Say = Callable[[str], None]
"""Takes a line for the user."""
Watch = Callable[[float, float, float], None]
"""Called after each step with the minutes trained, the minutes in all, and the bits per sample of late."""
Loss = Callable[["Segments"], tuple[Tensor, Tensor]]
"""The bits and the number of a step's samples."""


# --- plan -------------------------------------------------------------------------------------------------------

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Schedule(Record, frozen=True, kw_only=True):
    """How to train; the field `training` of the file given as --config."""

    segments: Count = 4
    """Segments in a step."""
    segment_frames: Count = 16
    """Frames that carry loss in each of them."""
    matrix_rate: Positive = 0.006
    """Learning rate of the matrices, which take orthogonalised steps (Muon)."""
    matrix_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Weight decay of the matrices, times their rate. Every orthogonalised step has the same size, however small the
    gradient: without decay the weights grow until the gates saturate."""
    vector_rate: Positive = 2e-3
    """Learning rate of everything else (Adam)."""
    warmup: Share = 0.02
    """The share of the time in which the rates rise from zero."""
    decay: Share = 0.9
    """The share of the time, at its end, in which they fall to zero."""
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.999
    """Of the averaged weights, which are the ones validated and saved, what a step keeps."""
    validation_files: Count = 20
    """The last so many files in sorted order are never trained on."""
    validate_every: Positive = 5.0
    """Minutes between validations, each of which also saves."""
    steps: Count | None = None
    """End after so many steps, if the minutes have not ended before."""
    products: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the operands of large products; sums, weights and their averages are always fp32. `auto` is bf16
    where the processor multiplies it natively."""
    compile: bool = True
    """Fuse what stands between products with `torch.compile`; it takes a minute and a C++ compiler at the start."""
    resample: bool = False
    """Convert recordings at another sample rate, which are an error otherwise."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of the first weights and of the choice of segments."""


def read_plan(path: Path | None) -> tuple[WaveNetConfig, MelSpec, Schedule]:
    """The file given as --config: JSON with `model`, `mel` and, if wanted, `training`; the voice's own where None."""
    if path is None:
        path = Path(__file__).parent / "voices" / "nsh-ru" / "training.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); --config wants a JSON file") from None
    plan = parse(data, str(path))
    if not isinstance(plan, dict) or not {"model", "mel"} <= plan.keys() <= {"model", "mel", "training"}:
        raise ConfigError(f'{path}: wants an object with "model", "mel" and, if wanted, "training"')
    config = decode(WaveNetConfig, plan["model"], f"{path}: model")
    if config.speakers.channels:
        raise ConfigError(f"{path}: model.speakers: this trainer makes voices of one speaker; leave the field out")
    spec = decode(MelSpec, plan["mel"], f"{path}: mel")
    return config, spec, decode(Schedule, plan.get("training", {}), f"{path}: training")


# --- recordings -------------------------------------------------------------------------------------------------


@dataclass
class Utterance:
    """One recording as the model sees it: `target` (F·hop,) in the model's domain, `history` (F·hop,) what is heard as
    the newest past sample when target[t] is predicted (`config.start` at t = 0), `mel` (F, M)."""

    name: str
    history: np.ndarray
    target: np.ndarray
    mel: np.ndarray

    @classmethod
    def of(cls, name: str, wav: np.ndarray, mel: np.ndarray, config: WaveNetConfig) -> Utterance:
        """From a waveform (F·hop,) and its mel (M, F)."""
        target = to_model_domain(wav, config)
        heard = fed_back(target, config)
        history = np.concatenate([np.asarray([config.start], heard.dtype), heard[:-1]])
        return cls(name, history, target, np.ascontiguousarray(mel.T))


def load_utterances(data: Path, config: WaveNetConfig, spec: MelSpec, resample: bool) -> Iterator[Utterance]:
    """Every WAV and FLAC file below `data`, sorted. A .npz or .npy mel of the same stem is used instead of the
    extracted one: that is how mels predicted by a text-to-spectrogram model under teacher forcing are used. Raises
    `AudioError` for what cannot be read and `ShapeError` for a mel that is not as long as its recording."""
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in {".wav", ".flac"})
    if not files:
        raise AudioError(f"{data}: no .wav or .flac file below it; --data wants a folder of recordings")
    for path in files:
        wav, _ = read_audio(path, config.sample_rate, resample=resample)
        mel = _mel_beside(path, spec)
        if mel is None:
            mel = mel_spectrogram(wav, spec)
        try:
            check_agreement(len(wav), mel.shape[1], config.hop_length, frame_count(len(wav), spec))
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from None
        frames = min(mel.shape[1], len(wav) // config.hop_length)
        if not frames:
            raise AudioError(f"{path}: has {len(wav)} samples, less than one frame of {config.hop_length}; remove it")
        yield Utterance.of(path.stem, wav[: frames * config.hop_length], mel[:, :frames], config)


def _mel_beside(path: Path, spec: MelSpec) -> np.ndarray | None:
    for suffix in (".npz", ".npy"):
        if (beside := path.with_suffix(suffix)).exists():
            found = read_mel(beside)
            if found.spec is not None and found.spec != spec:
                raise AudioError(
                    f"{beside}: its mel recipe is not the configuration's: {recipe_differences(found.spec, spec)}"
                )
            if found.mel.shape[0] != spec.n_mels:
                raise AudioError(f"{beside}: has {found.mel.shape[0]} bands; the configuration wants {spec.n_mels}")
            return found.mel
    return None


@dataclass
class Segments:
    """One step's worth of sound, segments one after the other. `history` (N,), with N = segments · (context + samples
    that may count); `mel` (segments, M, frames + 2·margin); `target` and `counted` (segments, samples that may count),
    `counted` False beyond a recording's end."""

    history: Tensor
    target: Tensor
    mel: Tensor
    counted: Tensor


def cut_segments(
    utterances: list[Utterance], starts: list[tuple[int, int]], frames: int, margin: int, config: WaveNetConfig
) -> Segments:
    """Segments of `frames` counted frames that begin at (utterance, frame), each after its context, whole frames that
    fill the receptive field. Where a recording has not begun yet, its first sample and frame stand."""
    hop = config.hop_length
    context = -(-(config.receptive_field - 1) // hop)
    history, target, mels, counted = [], [], [], []
    for index, first in starts:
        u = utterances[index]
        t = np.arange((first - context) * hop, (first + frames) * hop)
        inside = np.clip(t, 0, len(u.target) - 1)
        history.append(u.history[inside])
        target.append(u.target[inside[context * hop :]])
        counted.append(t[context * hop :] < len(u.target))
        at = np.arange(first - context - margin, first + frames + margin)
        mels.append(u.mel[np.clip(at, 0, len(u.mel) - 1)].T)
    return Segments(
        torch.from_numpy(np.concatenate(history)),
        torch.from_numpy(np.stack(target)),
        torch.from_numpy(np.stack(mels)),
        torch.from_numpy(np.stack(counted)),
    )


# --- network ----------------------------------------------------------------------------------------------------


def gated_stack(
    x: Tensor,
    rows: Tensor,
    interp: Tensor,
    dilated: Tensor,
    residual: Tensor,
    residual_bias: Tensor,
    skip: Tensor,
    dilations: tuple[int, ...],
    residual_scale: float,
) -> Tensor:
    """All residual layers over one row of samples: (N, R) → skip sum (N, S), in the number format of `skip`.

    A dilated convolution is one product, its taps side by side; the skips of all layers are one product at the end.
    The residual stream and the gates are float32, products take the format of the matrices. Written for
    `torch.compile`, which fuses all that stands between two products.

    `rows` (blocks, W, L, G): per-layer conditioning of the W frames around each block of hop samples; `interp`
    (hop, W): how a block's samples mix them. `dilated` (L, K·R, G), `residual` (L−1, G/2, R),
    `residual_bias` (L−1, R), `skip` (L·G/2, S).
    """
    (N, R), (blocks, W, L, G) = x.shape, rows.shape
    K = dilated.shape[1] // R
    gates = []
    for i, dilation in enumerate(dilations):
        now = x.to(dilated.dtype)
        taps = torch.cat([F.pad(now, (0, 0, (K - 1 - k) * dilation, 0))[:N] for k in range(K)], dim=1)
        z = (taps @ dilated[i]).view(blocks, -1, G)
        for j in range(W):
            z = z + interp[:, j, None] * rows[:, j, i, None]
        a, b = z.view(N, G).chunk(2, dim=-1)
        gates.append((torch.tanh(a) * torch.sigmoid(b)).to(dilated.dtype))
        if i + 1 < L:
            x = (x + (gates[i] @ residual[i] + residual_bias[i])) * residual_scale
    return torch.cat(gates, dim=1) @ skip


class TrainingModel(Reference):
    """The reference with a faster forward for one long row of segments, its products in `product_dtype`."""

    def __init__(
        self, config: WaveNetConfig, weights: Mapping[str, Tensor], product_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(config, weights)
        self.product_dtype = product_dtype
        if not isinstance(config.conditioning.upsampling, Stages):
            self.first_frame, self.interp = self._interpolation()

    @property
    def margin(self) -> int:
        """Frames of mel beyond a segment's ends that its conditioning may look at: the convolutions' reach, and two for
        an offset of a sample and the frame that `linear` leans towards."""
        up = self.config.conditioning.upsampling
        reach = sum(stage.kernel_size // stage.scale + 1 for stage in up.stages) if isinstance(up, Stages) else 0
        return 2 + reach + sum(conv.kernel_size // 2 for conv in self.config.conditioning.network)

    def loss(self, batch: Segments) -> tuple[Tensor, Tensor]:
        """Bits and number of the samples that count."""
        logits = self.segment_logits(batch)[:, -batch.target.shape[1] :].flatten(0, 1)
        each = bits(logits.float(), batch.target.flatten(), self.config)
        return (each * batch.counted.flatten()).sum(), batch.counted.sum()

    def segment_logits(self, batch: Segments) -> Tensor:
        """(segments, context + counted, A): as `forward`, but the segments follow one another in a single row. What
        leaks from one segment into the next reaches only the context there, which carries no loss."""
        if isinstance(self.config.conditioning.upsampling, Stages):
            return self.plain_segment_logits(batch)
        c, w, to = self.config, self.weights, self.product_dtype
        rows = self._project(self.features(batch.mel).transpose(1, 2), None)
        m, n = self.margin, rows.shape[1]
        near = range(self.first_frame, self.first_frame + self.interp.shape[1])
        rows = torch.stack([rows[:, m + j : n - m + j] for j in near], dim=2).flatten(0, 1)
        if c.biases.dilated:
            rows = rows + torch.stack([w[f"layers.{i}.dilated.bias"] for i in range(c.n_layers)])
        inner = range(c.n_layers - 1)
        residual = torch.zeros(0, c.gate_channels // 2, c.residual_channels)
        biases = torch.zeros(len(inner), c.residual_channels)
        if inner:
            residual = torch.stack([w[f"layers.{i}.residual.weight"].T for i in inner])
        if inner and c.biases.residual:
            biases = torch.stack([w[f"layers.{i}.residual.bias"] for i in inner])
        scales = self._skip_scales()
        dilated = torch.stack([w[f"layers.{i}.dilated.weight"].permute(2, 1, 0) for i in range(c.n_layers)])
        total = gated_stack(
            self._embed_all(batch.history[None])[0],
            rows,
            self.interp,
            dilated.flatten(1, 2).to(to),
            residual.to(to),
            biases,
            torch.cat([w[f"layers.{i}.skip.weight"].T * s for i, s in enumerate(scales)]).to(to),
            c.dilations,
            c.residual_scale,
        )
        if c.biases.skip:
            total = total + torch.stack([w[f"layers.{i}.skip.bias"] * s for i, s in enumerate(scales)]).sum(0)
        # Rounded before the ReLU, so that backward sees the sign in what the product keeps anyway.
        hidden = self._head_product(F.relu(total.to(to)), "head.hidden")
        return self._head_product(F.relu(hidden.to(to)), "head.out").view(len(batch.mel), -1, c.out_channels)

    def plain_segment_logits(self, batch: Segments) -> Tensor:
        """The reference's own forward in fp32, a segment per row; learned upsampling, which works at sample rate, has
        no other."""
        count, m, hop = batch.mel.shape[0], self.margin, self.config.hop_length
        frames = batch.mel.shape[2]
        cond = self.conditioning(batch.mel, None, m * hop, (frames - m) * hop)
        return self.forward(batch.history.view(count, -1), cond)

    def _head_product(self, x: Tensor, name: str) -> Tensor:
        """A 1×1 convolution of x (N, channels) in the products' format; the bias is added in fp32."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        y = x.to(self.product_dtype) @ weight.T.to(self.product_dtype)
        return y if bias is None else y + bias

    def _skip_scales(self) -> list[float]:
        """The share of each layer's skip in the sum; the running rule is a weighted sum."""
        c = self.config
        if c.skip_rule == "sum":
            return [c.skip_scale] * c.n_layers
        return [c.skip_scale ** (c.n_layers - max(i, 1)) for i in range(c.n_layers)]

    def _interpolation(self) -> tuple[int, Tensor]:
        """(first, (hop, W)): each sample of a block mixes the W frames from `first` on, counted from the block's."""
        c = self.config
        hop, up = c.hop_length, c.conditioning.upsampling
        t = np.arange(hop) + c.conditioning.offset
        position = t / hop - (up.frame_centre if isinstance(up, Linear) else 0.0)
        left = np.floor(position).astype(int)
        share = position - left if isinstance(up, Linear) else np.zeros(hop)
        table = np.zeros((hop, left.max() - left.min() + 2), np.float32)
        column = left - left.min()
        table[np.arange(hop), column] = 1 - share
        table[np.arange(hop), column + 1] = share
        return int(left.min()), torch.from_numpy(table)


# --- loss -------------------------------------------------------------------------------------------------------


def bits(logits: Tensor, target: Tensor, config: WaveNetConfig) -> Tensor:
    """−log₂ likelihood of each sample: (N, A), (N,) → (N,). `sampling.nll_bits` in differentiable form."""
    head = config.head
    if isinstance(head, CategoricalHead):
        return F.cross_entropy(logits, target, reduction="none") / LN2
    n = head.components
    parts = logits.view(-1, 3, n) if n > 1 else F.pad(logits.view(-1, 2, 1), (0, 0, 1, 0))
    weight, mean, log_scale = parts.unbind(1)
    if head.log_scale_min is not None:
        log_scale = log_scale.clamp_min(head.log_scale_min)
    half = 1 / (config.signal.levels - 1)
    z = (target[:, None] - mean) * torch.exp(-log_scale)
    step = half * torch.exp(-log_scale)
    if isinstance(head, LogisticHead):
        # σ(z+s) − σ(z−s) = e^(2s)−1 over (1+e^(z+s))(1+e^(s−z)), in logarithms: stable for any z and s.
        lower, upper = -F.softplus(z - step), -F.softplus(-(z + step))
        middle = upper + lower + torch.log(-torch.expm1(-2 * step))
    else:
        lower, upper = torch.special.log_ndtr(-(z - step)), torch.special.log_ndtr(z + step)
        density = -0.5 * z * z - 0.5 * math.log(2 * math.pi) + torch.log(2 * step)
        far = torch.special.log_ndtr(-(z.abs() - step))
        mass = far + torch.log(-torch.expm1((torch.special.log_ndtr(-(z.abs() + step)) - far).clamp_max(-1e-6)))
        middle = torch.where(step > 1e-2, mass, density)
    edge = 1 - half
    at_end = torch.where(target[:, None] >= edge, lower, torch.where(target[:, None] <= -edge, upper, middle))
    return -torch.logsumexp(F.log_softmax(weight, -1) + at_end, -1) / LN2


# --- optimiser --------------------------------------------------------------------------------------------------


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight takes orthogonalised steps: those of the residual layers and the head's first. Not the input and
    output tables; and not the conditioning, of which a step sees some seventy frames where the others see thousands of
    samples: most directions of such a gradient are noise, to which orthogonalising would give the same weight."""
    inside = not name.startswith(("input.", "conditioning.", "head.out.")) and ".conditioning." not in name
    return inside and len(shape) >= 2 and min(shape[0], math.prod(shape[1:])) > 1


class Muon:
    """Momentum whose step is replaced by the nearest orthogonal matrix (K. Jordan, "Muon", 2024), batched over
    matrices of one shape. Convolutions count as (out, in·taps)."""

    def __init__(self, parameters: list[Tensor], product_dtype: torch.dtype, momentum: float = 0.95) -> None:
        self.parameters, self.product_dtype, self.momentum = parameters, product_dtype, momentum
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, rate: float, decay: float = 0.0) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(self.parameters):
            groups.setdefault((p.shape[0], p[0].numel()), []).append(i)
        for (rows, columns), members in groups.items():
            steps = []
            for i in members:
                grad, buffer = self.parameters[i].grad, self.buffers[i]
                assert grad is not None
                buffer.lerp_(grad, 1 - self.momentum)
                steps.append(grad.lerp(buffer, self.momentum).view(rows, columns))
            update = orthogonalised(torch.stack(steps).to(self.product_dtype)).float() * max(1.0, rows / columns) ** 0.5
            for i, u in zip(members, update, strict=True):
                self.parameters[i].mul_(1 - rate * decay).sub_(u.view_as(self.parameters[i]), alpha=rate)


def orthogonalised(x: Tensor) -> Tensor:
    """(…, m, n) → singular values near 1, by five Newton–Schulz steps with Jordan's quintic coefficients."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


# --- the loop ---------------------------------------------------------------------------------------------------


class Trainer:
    """Everything that a training run holds. `state_dict` has all of it but the generator of segments, which a resumed
    run seeds anew from the step it has reached."""

    def __init__(
        self,
        config: WaveNetConfig,
        spec: MelSpec,
        schedule: Schedule,
        utterances: list[Utterance],
        say: Say = print,
    ) -> None:
        self.config, self.spec, self.schedule, self.utterances = config, spec, schedule, utterances
        frames = np.concatenate([u.mel for u in utterances])
        self.mel_mean, self.mel_scale = frames.mean(0), np.maximum(frames.std(0), 1e-3)
        torch.manual_seed(schedule.seed)
        self.weights = {
            name: initial_weight(name, shape, config).requires_grad_() for name, shape in weight_shapes(config).items()
        }
        if config.conditioning.standardise:
            self.weights["mel.mean"] = torch.from_numpy(self.mel_mean)
            self.weights["mel.scale"] = torch.from_numpy(self.mel_scale)
        trained = {n: w for n, w in self.weights.items() if w.requires_grad}
        self.model = TrainingModel(config, self.weights, format_of_products(schedule.products))
        self.muon = Muon([w for n, w in trained.items() if is_matrix(n, w.shape)], self.model.product_dtype)
        self.adam = torch.optim.Adam(
            [w for n, w in trained.items() if not is_matrix(n, w.shape)], betas=(0.9, 0.99), fused=True
        )
        self.averages = {n: w.detach().clone() for n, w in self.weights.items()}
        self.averaged_model = TrainingModel(config, self.averages, self.model.product_dtype)
        self.loss: Loss = self.model.loss
        self.averaged_loss: Loss = self.averaged_model.loss
        if schedule.compile:
            self.loss, self.averaged_loss = compiled(self.loss, say), compiled(self.averaged_loss, say)
        self.step_count, self.minutes, self.best = 0, 0.0, math.inf
        self.rng = np.random.default_rng(schedule.seed)
        self.lengths = np.asarray([len(u.mel) for u in utterances], np.float64)

    def step(self, progress: float) -> float:
        """One optimiser step at `progress` 0 … 1 through the schedule; the mean bits per sample of its segments."""
        s = self.schedule
        level = min(1.0, progress / s.warmup if s.warmup else 1.0) * min(1.0, (1 - progress) / s.decay)
        chosen = self.rng.choice(len(self.utterances), s.segments, p=self.lengths / self.lengths.sum())
        # At least half a segment lies within its recording.
        last = [max(1, len(self.utterances[i].mel) - s.segment_frames // 2) for i in chosen]
        starts = [(int(i), int(self.rng.integers(0, end))) for i, end in zip(chosen, last, strict=True)]
        batch = cut_segments(self.utterances, starts, s.segment_frames, self.model.margin, self.config)
        total, count = self.loss(batch)
        loss = total / count
        self.adam.zero_grad()
        for p in self.muon.parameters:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for g in self.adam.param_groups for p in g["params"]], 1.0)
        for group in self.adam.param_groups:
            group["lr"] = s.vector_rate * level
        self.adam.step()
        self.muon.step(s.matrix_rate * level, s.matrix_decay)
        self.step_count += 1
        # A shorter memory at first, so that the beginning is soon forgotten.
        keep = min(s.ema, (1 + self.step_count) / (10 + self.step_count))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averages.values()), [w.detach() for w in self.weights.values()], 1 - keep)
        return float(loss.detach())

    def start_from(self, voice: Checkpoint) -> None:
        """Take over the weights of a voice with the same network; the mel statistics stay those of the recordings."""
        if voice.config != self.config:
            raise ConfigError("the voice to start from has another network; train with its configuration")
        with torch.no_grad():
            for name, w in self.weights.items():
                if w.requires_grad:
                    w.copy_(torch.from_numpy(np.array(voice.weights[name])))
                    self.averages[name].copy_(w)

    @torch.no_grad()
    def validate(self, held_out: list[Utterance], share: float = 1 / 3) -> float:
        """Bits per sample of the averaged weights on evenly spread segments of the held-out recordings, which cover
        `share` of them. The loss is compiled for the shape of a step, so the first segments fill up the last step."""
        s = self.schedule
        stride = s.segment_frames / share
        starts = [
            (i, int(k * stride))
            for i, u in enumerate(held_out)
            for k in range(max(1, math.ceil((len(u.mel) - s.segment_frames // 2) / stride)))
        ]
        bits_sum, samples = 0.0, 0
        for at in range(0, len(starts), s.segments):
            chosen = [starts[i % len(starts)] for i in range(at, at + s.segments)]
            total, count = self.averaged_loss(
                cut_segments(held_out, chosen, s.segment_frames, self.model.margin, self.config)
            )
            bits_sum, samples = bits_sum + float(total), samples + int(count)
        return bits_sum / samples

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": {n: w.detach() for n, w in self.weights.items()},
            "averages": self.averages,
            "model": json.dumps(encode(self.config)),
            "mel": json.dumps(encode(self.spec)),
            "momentum": self.muon.buffers,
            "adam": self.adam.state_dict(),
            "step": self.step_count,
            "minutes": self.minutes,
            "best": self.best,
        }

    def resume(self, file: Path) -> None:
        """Go on from a `state_dict` in a file. Raises `CheckpointError` for what is no such file, or one of another
        network or recipe."""
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
            same = state["model"] == json.dumps(encode(self.config)) and state["mel"] == json.dumps(encode(self.spec))
        except Exception as error:
            raise CheckpointError(f"{file}: is no state of a training ({type(error).__name__}); begin anew") from None
        if not same:
            raise CheckpointError(f"{file}: belongs to another model or mel; resume with the --config it began with")
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(state["weights"][name])
                self.averages[name].copy_(state["averages"][name])
            for buffer, saved in zip(self.muon.buffers, state["momentum"], strict=True):
                buffer.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.step_count, self.minutes, self.best = state["step"], state["minutes"], state["best"]
        self.rng = np.random.default_rng([self.schedule.seed, self.step_count])


def format_of_products(products: str) -> torch.dtype:
    """The format of `Schedule.products` on this processor."""
    if products == "auto":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[products]


def compiled(loss: Loss, say: Say) -> Loss:
    """`loss` through `torch.compile`; where that does not work (no C++ compiler, say), `loss` itself after a word."""
    fast = torch.compile(loss, dynamic=False)
    chosen: Loss | None = None

    def call(batch: Segments) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        if chosen is None:
            try:
                result = fast(batch)
                chosen = fast
                return result
            except Exception as error:  # whatever it is: where the fault is ours, the plain call raises it again
                why = (str(error).strip() or repr(error)).splitlines()[0]
                say(f"torch.compile does not work here; training runs without it, at about half the speed ({why})")
                chosen = loss
        return chosen(batch)

    return call


def initial_weight(name: str, shape: tuple[int, ...], config: WaveNetConfig) -> Tensor:
    """Zero biases, an input table of unit width, and matrices that keep the variance of what passes through; the
    output layer starts at zero, so training begins at log₂ A bits."""
    if name.endswith(".bias") or name.startswith("head.out."):
        return torch.zeros(shape)
    if name == "input.weight" and isinstance(config.input, OneHotInput):
        return torch.randn(shape) * 0.5
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
    weight: Tensor = torch.randn(shape) / math.sqrt(fan_in)
    if ".residual." in name or ".skip." in name:
        weight = weight * 0.5
    return weight


def run(
    data: Path,
    out: Path,
    plan: Path | None = None,
    minutes: float | None = None,
    resume: bool = False,
    resample: bool = False,
    threads: int | None = None,
    start_from: Path | None = None,
    say: Say = print,
    watch: Watch | None = None,
) -> tuple[float, int | None]:
    """Train on the recordings below `data` for `minutes` in all (earlier sittings included; 180 where None).

    `out` becomes a checkpoint directory with the averaged weights that did best on the held-out files, beside
    `training.pt` from which `resume` continues, and `log.jsonl`. Ctrl-C and SIGTERM finish the step, save and return.
    `plan` is the file that `read_plan` reads. `start_from`, a checkpoint directory of the same network, gives the first
    weights: another speaker, or more time for a voice whose `training.pt` is gone.
    Returns the best validation, in bits per sample, and the number of the signal that ended the training, if one did.
    Raises `ConfigError`, `AudioError`, `ShapeError`, `CheckpointError`.
    """
    minutes = 180.0 if minutes is None else minutes
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes: is {minutes}; must be above 0 and finite")
    state_file = out / "training.pt"
    if resume and start_from is not None:
        raise ConfigError("--resume continues weights of its own; leave out --from, or begin in a new --out")
    if resume and not state_file.exists():
        raise CheckpointError(f"{state_file}: not there, so there is nothing to resume; leave out --resume")
    if not resume and (out / "model.safetensors").exists():
        raise CheckpointError(f"{out}: already holds a voice; continue it with --resume, or give another --out")
    config, spec, schedule = read_plan(plan)
    if threads:
        torch.set_num_threads(threads)
    utterances = list(load_utterances(data, config, spec, resample or schedule.resample))
    if len(utterances) <= schedule.validation_files:
        raise AudioError(
            f"{data}: {len(utterances)} recordings; {schedule.validation_files} are held out for validation, so more"
            " are needed (or a smaller training.validation_files)"
        )
    train, held_out = utterances[: -schedule.validation_files], utterances[-schedule.validation_files :]
    hours = sum(len(u.mel) for u in train) * spec.hop_length / spec.sample_rate / 3600
    say(f"{len(train)} recordings, {hours:.2f} h; {len(held_out)} held out")
    trainer = Trainer(config, spec, schedule, train, say)
    if resume:
        trainer.resume(state_file)
        say(f"resumed at step {trainer.step_count}, minute {trainer.minutes:.0f}, best {trainer.best:.4f} bits")
    elif start_from is not None:
        trainer.start_from(load_checkpoint(start_from))
        say(f"began with the weights of {start_from}")
    with _StopOnSignal() as stop:
        _train_until(trainer, held_out, minutes, out, stop, say, watch)
    return trainer.best, stop.signal


def _train_until(
    trainer: Trainer,
    held_out: list[Utterance],
    minutes: float,
    out: Path,
    stop: _StopOnSignal,
    say: Say,
    watch: Watch | None,
) -> None:
    """Steps with a validation and a save every `validate_every` minutes, and at the end."""
    began, before = time.monotonic(), trainer.minutes
    next_check = before + trainer.schedule.validate_every
    running: float | None = None
    steps = trainer.schedule.steps or math.inf
    while stop.signal is None and trainer.minutes < minutes and trainer.step_count < steps:
        loss = trainer.step(max(trainer.minutes / minutes, trainer.step_count / steps))
        if not math.isfinite(loss):
            raise ConfigError("training: the loss is no longer finite; lower training.matrix_rate and vector_rate")
        running = loss if running is None else 0.99 * running + 0.01 * loss
        trainer.minutes = before + (time.monotonic() - began) / 60
        if watch is not None:
            watch(trainer.minutes, minutes, running)
        if trainer.minutes >= next_check and trainer.minutes < minutes:
            save(trainer, held_out, out, running, say)
            next_check = trainer.minutes + trainer.schedule.validate_every
    save(trainer, held_out, out, running, say)


def save(trainer: Trainer, held_out: list[Utterance], out: Path, running: float | None, say: Say) -> None:
    """Validate; write `training.pt` always and the voice when it is the best so far."""
    out.mkdir(parents=True, exist_ok=True)
    score = trainer.validate(held_out)
    better = score < trainer.best
    trainer.best = min(score, trainer.best)
    temporary = out / "training.pt.part"
    torch.save(trainer.state_dict(), temporary)
    temporary.replace(out / "training.pt")
    if better:
        save_voice(trainer, out, score)
    line = {"step": trainer.step_count, "minutes": round(trainer.minutes, 2), "train_bits": running, "bits": score}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    say(
        f"minute {trainer.minutes:6.1f}  step {trainer.step_count:6d}  validation {score:.4f} bits per sample"
        + ("  (best, saved)" if better else "")
    )


def save_voice(trainer: Trainer, out: Path, score: float) -> None:
    weights = {name: w.numpy().copy() for name, w in trainer.averages.items()}
    weights["mel.mean"], weights["mel.scale"] = trainer.mel_mean, trainer.mel_scale
    info = {
        "provenance": {
            "trained_by": "wavenet-fast train",
            "steps": trainer.step_count,
            "minutes": round(trainer.minutes, 1),
            "validation_bits": round(score, 4),
            "training": encode(trainer.schedule),
        }
    }
    save_checkpoint(out, Checkpoint(config=trainer.config, mel=trainer.spec, weights=weights, info=info))


class _StopOnSignal:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after its step. A second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: signals are its caller's business
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
