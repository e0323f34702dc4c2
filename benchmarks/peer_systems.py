"""The systems of peers.py: each made ready and checked, or left out with a reason."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from common import GateError, Weights, expected_logits, forced_history, gate, generate, logits, standard_mel
from peer_step import LeftOut, Loop, RingStep, Step, check_supported, onnx_step, ring_step

import wavenet_fast as wf
from wavenet_fast.backends.base import Engine
from wavenet_fast.backends.cpu import DTYPES, CpuEngine
from wavenet_fast.backends.reference import ReferenceEngine
from wavenet_fast.config import CategoricalHead, LogisticHead, Stages
from wavenet_fast.errors import BackendError

Run = Callable[[np.ndarray], int]
"""mel (B, M, F) → samples made in all, from fresh streams."""


@dataclass
class Model:
    """What all systems are asked to run."""

    config: wf.WaveNetConfig
    weights: Weights
    threads: int
    gate_frames: int = field(init=False)
    """So many that every ring of every loop has wrapped."""
    mel: np.ndarray = field(init=False)
    expected: dict[str, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        deepest = max(self.config.dilations) * (self.config.kernel_size - 1)
        self.gate_frames = deepest // self.config.hop_length + 2
        self.mel = standard_mel(self.config, self.weights, self.gate_frames)

    def gate(self, name: str, found: np.ndarray, dtype: str = "fp32") -> float:
        if dtype not in self.expected:
            self.expected[dtype] = expected_logits(self.config, self.weights, dtype, self.mel, self.gate_frames)
        return gate(name, found, self.expected[dtype], dtype)


@dataclass
class System:
    """One line of the table, ready to be timed."""

    name: str
    what: str
    """What runs, and how it differs from the model asked for."""
    prepare: Callable[[int], Run]
    """Number of streams → what makes their samples."""
    gate_error: float | None = None
    """Largest logit error over the logits' standard deviation, where the weights are ours."""
    parallel: bool = False
    """Makes all samples of an utterance at once, so that it is timed on long ones."""
    batches: bool = True
    """Is in the batch curve."""


Builder = Callable[[Model], System]


# --- ours -------------------------------------------------------------------------------------------------------


def _engine_run(engine: Engine, threads: int, batch: int) -> Run:
    return partial(generate, engine, threads=threads)


def _native(dtype: str, model: Model) -> System:
    try:
        engine = CpuEngine(model.config, model.weights, dtype)
    except BackendError as error:
        raise LeftOut(str(error)) from None
    name = f"wavenet_fast {dtype}"
    error = model.gate(name, logits(engine, model.mel, model.gate_frames), dtype)
    return System(name, f"the engine, {dtype}, {engine.isa}", partial(_engine_run, engine, model.threads), error)


def _reference(model: Model) -> System:
    engine = ReferenceEngine(model.config, model.weights, "fp32")
    prepare = partial(_engine_run, engine, 1)
    what = "the project's PyTorch model, written to be read, one step a sample; fp32"
    return System("reference step", what, prepare, 0.0, batches=False)


# --- the same weights elsewhere ---------------------------------------------------------------------------------


def _loop(
    model: Model, name: str, what: str, make: Callable[[int], RingStep], batches: bool, grad: Callable[[], object]
) -> System:
    def prepare(batch: int) -> Run:
        loop = Loop(model.config, model.weights, make(batch), batch)

        def run(mel: np.ndarray) -> int:
            with grad():
                return loop.run(mel)

        return run

    samples = model.gate_frames * model.config.hop_length
    found = np.empty((1, samples, model.config.out_channels), np.float32)
    with grad():
        loop = Loop(model.config, model.weights, make(1), 1)
        loop.run(model.mel, forced_history(model.config, samples), found)
    return System(name, what, prepare, model.gate(name, found[0]), batches=batches)


def _eager(model: Model) -> System:
    step = ring_step(Step(model.config, model.weights))
    what = "ring buffers, one batched product for all past taps, inference_mode; our weights, fp32"
    return _loop(model, "PyTorch eager", what, lambda batch: step, True, torch.inference_mode)


def _compiled(model: Model) -> System:
    options = {"cpp_wrapper": True}
    step = torch.compile(ring_step(Step(model.config, model.weights)), fullgraph=True, dynamic=False, options=options)
    what = "torch.compile of the eager step with its ring update, cpp_wrapper; our weights, fp32"
    try:
        return _loop(model, "torch.compile", what, lambda batch: step, False, torch.no_grad)
    except Exception as error:  # whatever a compiler or its absence may raise
        raise LeftOut(f"torch.compile failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from None


def _onnx(model: Model) -> System:
    _need("onnxruntime", "onnxruntime")
    _need("onnx", "onnx")
    _need("onnxscript", "onnxscript")
    check_supported(model.config)
    step = Step(model.config, model.weights)
    make = cache(partial(onnx_step, step, threads=model.threads))
    what = "the same step as an ONNX graph, state in and out by IO binding, rings in torch; our weights, fp32"
    return _loop(model, "ONNX Runtime", what, make, False, torch.inference_mode)


def _need(module: str, package: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ImportError as error:
        if getattr(error, "name", None) == module:
            raise LeftOut(f'{package} is not installed; `pip install ".[bench]"` adds it') from None
        raise LeftOut(f"{package} is installed, but cannot be imported: {error}") from None


# --- other networks ---------------------------------------------------------------------------------------------


def _r9y9(model: Model) -> System:
    c = model.config
    _need("wavenet_vocoder", "wavenet-vocoder")
    from wavenet_vocoder import WaveNet

    stacks = c.dilations.count(1)
    per_stack = c.n_layers // max(stacks, 1)
    if c.dilations != tuple(2 ** (i % per_stack) for i in range(c.n_layers)):
        raise LeftOut("wavenet-vocoder has dilations 1, 2, 4 … in equal cycles only; choose such a model")
    scalar = isinstance(c.head, LogisticHead)
    if not scalar and not isinstance(c.head, CategoricalHead):
        raise LeftOut("wavenet-vocoder 0.1.1 has categorical heads and mixtures of logistics only; choose such a model")
    stages = c.conditioning.upsampling.stages if isinstance(c.conditioning.upsampling, Stages) else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm and backward hooks in their old forms
        net = WaveNet(
            out_channels=c.out_channels, layers=c.n_layers, stacks=stacks, residual_channels=c.residual_channels,
            gate_channels=c.gate_channels, skip_out_channels=c.skip_channels, kernel_size=c.kernel_size,
            cin_channels=c.n_mels, scalar_input=scalar, legacy=False, upsample_conditional_features=bool(stages),
            upsample_scales=[s.scale for s in stages] or None,
        ).eval()  # fmt: skip
        net.make_generation_fast_()

    def run(mel: np.ndarray) -> int:
        frames = torch.from_numpy(mel)
        heard = frames if stages else frames.repeat_interleave(c.hop_length, -1)
        with torch.inference_mode():
            return net.incremental_forward(c=heard, T=mel.shape[2] * c.hop_length).shape[-1]

    _check_r9y9(net, model, scalar)
    differs = ["conditioning projected anew for every sample", "one stream", "random weights, fp32"]
    if c.head_channels != c.skip_channels:
        differs.insert(0, f"a head of {c.skip_channels} hidden channels instead of {c.head_channels}")
    if not math.isclose(c.residual_scale, 0.5**0.5):
        differs.insert(0, "√½ on every residual")
    what = f"r9y9's incremental_forward, weight norm removed; {', '.join(differs)}"
    return System("r9y9 wavenet-vocoder", what, lambda _: run, batches=False)


def _check_r9y9(net: torch.nn.Module, model: Model, scalar: bool) -> None:
    """Its own two ways must agree: all samples at once, and one after the other with the history forced."""
    if scalar:
        return  # incremental_forward then gives draws alone
    c, hop = model.config, model.config.hop_length
    history = torch.from_numpy(forced_history(c, hop))
    fed = torch.nn.functional.one_hot(history, c.out_channels).float().transpose(1, 2)
    mel = torch.from_numpy(model.mel[:, :, :1])
    heard = mel if net.upsample_conv is not None else mel.repeat_interleave(hop, -1)
    with torch.inference_mode():
        expected = net(fed, heard)
        found = net.incremental_forward(c=heard, T=hop, test_inputs=fed, softmax=False, quantize=False)
    gate("wavenet-vocoder", found.numpy(), expected.numpy(), "fp32")


def hifigan_scales(hop: int) -> tuple[int, int, int, int]:
    """Four upsampling factors after HiFi-GAN's (8, 8, 2, 2): two at the end, the rest in two factors as equal as can
    be, the larger first. Raises `LeftOut` where 4 does not divide the hop."""
    if hop % 4:
        raise LeftOut(f"HiFi-GAN's factors end in 2 · 2, which hop {hop} is no multiple of; choose another model")
    second = max(n for n in range(1, math.isqrt(hop // 4) + 1) if hop // 4 % n == 0)
    return hop // 4 // second, second, 2, 2


def _hifigan(name: str, channels: int, model: Model) -> System:
    c = model.config
    _need("transformers", "transformers")
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    scales = hifigan_scales(c.hop_length)
    kernels = [2 * s + s % 2 for s in scales]  # one tap more where the factor is odd, so that the padding is even
    torch.manual_seed(0)
    net = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=c.n_mels, sampling_rate=c.sample_rate, upsample_initial_channel=channels,
            upsample_rates=list(scales), upsample_kernel_sizes=kernels,
            resblock_kernel_sizes=[3, 7, 11], resblock_dilation_sizes=[[1, 3, 5]] * 3, normalize_before=False,
        )
    ).eval()  # fmt: skip

    def run(mel: np.ndarray) -> int:
        with torch.inference_mode():
            return net(torch.from_numpy(mel).transpose(1, 2)).numel()

    if run(model.mel[:, :, :2]) != 2 * c.hop_length:
        raise GateError(f"{name} does not make {c.hop_length} samples a frame; nothing is timed")
    sizes = f"{channels} channels, upsampling by {scales} with kernels {tuple(kernels)} for this hop"
    what = f"generator of transformers, {sizes}; random weights, fp32; not autoregressive: a whole utterance at once"
    return System(name, what, lambda _: run, parallel=True)


BUILDERS: dict[str, Builder] = {
    "reference step": _reference,
    "r9y9 wavenet-vocoder": _r9y9,
    "PyTorch eager": _eager,
    "torch.compile": _compiled,
    "ONNX Runtime": _onnx,
    "HiFi-GAN V1": partial(_hifigan, "HiFi-GAN V1", 512),
    "HiFi-GAN V2": partial(_hifigan, "HiFi-GAN V2", 128),
} | {f"wavenet_fast {dtype}": partial(_native, dtype) for dtype in DTYPES}

PACKAGES = ("numpy", "torch", "onnx", "onnxscript", "onnxruntime", "wavenet-vocoder", "transformers", "wavenet-fast")


def build(model: Model, without: list[str]) -> Iterator[tuple[str, System | str]]:
    """(name, the system or the reason why it is left out), in the table's order."""
    for name, builder in BUILDERS.items():
        if name in without:
            yield name, "not asked for (--without)"
            continue
        try:
            yield name, builder(model)
        except LeftOut as reason:
            yield name, str(reason)
