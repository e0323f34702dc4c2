"""nv-wavenet's Python interface over the CUDA kernels of this project: a script that was written for its module
`nv_wavenet` changes one import.

    from wavenet_fast.compat import nv_wavenet
    wavenet = nv_wavenet.NVWaveNet(**model.export_weights())
    samples = wavenet.infer(cond_input, nv_wavenet.Impl.AUTO)       # (2R, B, L, T) → int32 classes (B, T)

Conditioning comes as there: projected to every layer and at sample rate. It is brought into the kernels' order window
by window, so that beside `cond_input` itself only a window of `WINDOW_BYTES` is held, whatever T. Everything is queued
on torch's current stream, and no tensor of a GPU leaves it. Arithmetic: docs/nv-wavenet.md.
"""

from __future__ import annotations

import enum
import math
import operator
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    raise ImportError(
        "wavenet_fast.compat.nv_wavenet takes and gives torch tensors, and PyTorch is not installed; "
        '`pip install "wavenet-fast[torch,cuda]"` adds it'
    ) from None

from ..backends.base import Progress
from ..backends.cuda import device_for, patience_cycles
from ..errors import BackendError, InputError, ShapeError
from ..kernels.cuda.device import Device
from ..kernels.cuda.launches import Heard, Launch, Made, Streams
from ..kernels.cuda.model import OPERANDS, Model
from ..rng import utterance_seeds
from ..sampling import check_temperature
from .nv_tensors import LISTS, check_dense, doubling, listed, network_of, whole_numbers

WINDOW_BYTES = 64 << 20
"""Of conditioning in the kernels' order: the samples of one launch, at least one."""
LAUNCH_PRODUCTS = 1 << 33
"""Multiply-adds of one stream in one launch, about: in between, progress is told and Ctrl-C heard."""


class Impl(enum.IntEnum):
    """Which kernel runs; no sample depends on it. AUTO leaves it to the planner. SINGLE_BLOCK: `streaming_weights`, one
    thread block for each tile of streams. DUAL_BLOCK: `resident` on two blocks; PERSISTENT: `resident` on as many as
    hold the model. Where the model does not fit so, the planner chooses."""

    AUTO = 0
    SINGLE_BLOCK = 1
    DUAL_BLOCK = 2
    PERSISTENT = 3


_ASKED: dict[Impl, dict[str, Any]] = {
    Impl.AUTO: {},
    Impl.SINGLE_BLOCK: {"variant": "streaming_weights"},
    Impl.DUAL_BLOCK: {"variant": "resident", "blocks": 2},
    Impl.PERSISTENT: {"variant": "resident"},
}


class NVWaveNet:
    """A WaveNet as nv-wavenet's wrapper takes it, of any sizes; immutable, packed and uploaded once per device.

    embedding_prev, embedding_curr  (A, R): what x[t−2] and x[t−1] add to the first layer's input; embedding_prev may be
                       zeros
    conv_out_weight    (H, S) and conv_end_weight (A, H): the head after the ReLU of all skips; there H = A
    dilate_weights     L tensors (2R, R, K), rows of the tanh first, the newest tap last; there K = 2
    dilate_biases      L tensors (2R,)
    max_dilation       dilations are 1, 2, 4 … up to it, then from 1 again
    res_weights        L − 1 tensors (R, R), res_biases (R,): the last layer has none
    skip_weights       L tensors (S, R), skip_biases (S,)
    use_embed_tanh     whether the sum of the embeddings goes through tanh

    By keyword, beyond the original:

    dilations          of each layer, instead of those that max_dilation says
    conv_out_bias      (H,) and conv_end_bias (A,); none if left out
    start              the class that is heard before the first sample; None for 128, or A // 2 of fewer classes
    dtype              "fp32" as there, or "fp16", "bf16" or "int8": of weights and of the activations that meet them
    device             None for the GPU of the first `cond_input`; "cuda", "cuda:N" or a torch.device; "emulated" or
                       "emulated:sm_N" executes the kernels on the CPU for proof, and is very slow

    Weights are copied; tensors may lie anywhere and have any floating-point type, and 1×1 convolutions may have a last
    axis of one tap. Raises `ShapeError`, `InputError`, `ConfigError` for what does not fit, in sentences."""

    def __init__(
        self,
        embedding_prev: Any,
        embedding_curr: Any,
        conv_out_weight: Any,
        conv_end_weight: Any,
        dilate_weights: Sequence[Any],
        dilate_biases: Sequence[Any],
        max_dilation: int,
        res_weights: Sequence[Any],
        res_biases: Sequence[Any],
        skip_weights: Sequence[Any],
        skip_biases: Sequence[Any],
        use_embed_tanh: bool,
        *,
        dilations: Sequence[int] | None = None,
        conv_out_bias: Any = None,
        conv_end_bias: Any = None,
        start: int | None = None,
        dtype: str = "fp32",
        device: str | torch.device | Device | None = None,
    ) -> None:
        if not isinstance(dtype, str) or dtype not in OPERANDS:
            raise BackendError(f"dtype is {dtype!r}; the cuda kernels offer {', '.join(OPERANDS)}")
        if not isinstance(use_embed_tanh, (bool, int, np.bool_)):
            raise InputError(f"use_embed_tanh is {use_embed_tanh!r}; give True or False")
        given = (dilate_weights, dilate_biases, res_weights, res_biases, skip_weights, skip_biases)
        lists = {name: listed(name, tensors) for name, tensors in zip(LISTS, given, strict=True)}
        layers = len(lists["dilate_weights"])
        spread = doubling(layers, max_dilation) if dilations is None else whole_numbers(dilations)
        self.config, self._weights = network_of(
            {
                "embedding_prev": embedding_prev, "embedding_curr": embedding_curr,
                "conv_out_weight": conv_out_weight, "conv_end_weight": conv_end_weight,
            },
            lists, {"conv_out_bias": conv_out_bias, "conv_end_bias": conv_end_bias}, spread, bool(use_embed_tanh),
        )  # fmt: skip
        c = self.config
        self.R, self.S, self.A, self.num_layers = c.residual_channels, c.skip_channels, c.out_channels, c.n_layers
        self.max_dilation, self.use_embed_tanh, self.dtype = max_dilation, use_embed_tanh, dtype
        self.start = _checked_start(start, self.A)
        self._where = _opened(device)
        self._models: dict[int | None, Model] = {}
        self._lock = threading.Lock()

    def infer(
        self,
        cond_input: torch.Tensor,
        implementation: int = Impl.AUTO,
        *,
        seed: int | Sequence[int] | None = None,
        temperature: float = 1.0,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Classes (B, T), int32, on the device of `cond_input`.

        cond_input      (2R, B, L, T), rows of the tanh first: what each layer's convolution is added to. float32 or a
                        16-bit type, any strides, on the GPU where the kernels run; T at least 1
        implementation  an `Impl`
        seed            one integer n, which gives stream b the seed n + b, or one per stream. None draws them from
                        torch's generator: other samples each call, repeatable with torch.manual_seed
        temperature     divides the logits
        progress        called as progress(samples done, samples in all); what it raises stops the call

        A stream's samples depend on its own conditioning, seed and temperature alone. Waits for the GPU, so it cannot
        be part of a CUDA graph. Raises `ShapeError`, `InputError` and `BackendError`, in sentences."""
        return self.stream(seed=seed, temperature=temperature, implementation=implementation)(cond_input, progress)

    def stream(
        self, *, seed: int | Sequence[int] | None = None, temperature: float = 1.0, implementation: int = Impl.AUTO
    ) -> Stream:
        """Streams that are made piece by piece; arguments as in `infer`. Pieces change no sample."""
        check_temperature(temperature)
        return Stream(self, seed, min(max(float(temperature), 1e-37), 3e38), _checked_implementation(implementation))

    def model(self, tensor: torch.Tensor) -> Model:
        """The weights on the device that a tensor is for. Raises `BackendError` where the kernels cannot run there."""
        index = tensor.device.index if tensor.is_cuda else None
        if self._where is None and index is None:
            raise BackendError(
                f"cond_input lies on {tensor.device}, and these kernels run on NVIDIA GPUs; give its .cuda(). On a "
                'CPU, NVWaveNet(…, device="emulated") executes them for proof, very slowly; a Vocoder with backend '
                '"cpu" makes speech there'
            )
        if self._where is not None:
            index = getattr(self._where, "index", None)
            wanted = "cpu" if index is None else f"cuda:{index}"
            if str(tensor.device) != wanted:
                raise BackendError(
                    f"cond_input lies on {tensor.device}, and this NVWaveNet runs on {wanted}; give its .to({wanted!r})"
                )
        with self._lock:
            if index not in self._models:
                where = self._where or device_for(f"cuda:{index}")
                self._models[index] = Model(self.config, self._weights, self.dtype, where)
            return self._models[index]


class Stream:
    """B streams of an `NVWaveNet`, made piece by piece: call it with one piece of conditioning after the other.

    `positions`: samples made so far. After an error begin a new one: what it remembers is then of no use. One call at a
    time."""

    def __init__(self, wavenet: NVWaveNet, seed: Any, temperature: float, implementation: Impl) -> None:
        self._wavenet, self._seed, self._temperature = wavenet, seed, temperature
        self._implementation = implementation
        self._model: Model | None = None
        self._batch = 0
        self.positions = 0

    @torch.no_grad()
    def __call__(self, cond_input: torch.Tensor, progress: Progress | None = None) -> torch.Tensor:
        """The next T samples of every stream; as `NVWaveNet.infer`, and every piece for as many streams."""
        self._check(cond_input)
        model = self._wavenet.model(cond_input)
        _, B, _, T = cond_input.shape
        n = self._window(model, B, T)
        _check_finite(cond_input, n)
        if self._model is None:
            self._begin(model, B)
        elif self._model is not model or self._batch != B:
            raise ShapeError(
                f"this piece is for {B} streams on {cond_input.device}; the ones before were for {self._batch}, maybe "
                "on another GPU; go on with as many on the same, or begin a new stream"
            )
        s, half = model.shape, self._wavenet.config.gate_channels // 2
        # Zeros remain where channels are padded. One window after the other goes through the same memory: copies of
        # torch and launches are queued on one CUDA stream, where none overtakes another.
        room = torch.zeros(B, n, s.LAYERS, s.HALF, 2, dtype=torch.float32, device=cond_input.device)
        draws = torch.empty(B, n, dtype=torch.float32, device=cond_input.device)
        samples = torch.empty(B, T, dtype=torch.int32, device=cond_input.device)
        by_gate = cond_input.view(2, half, B, -1, T).permute(2, 4, 3, 1, 0)  # (B, T, L, half, 2), strided
        before: Launch | None = None
        for done in range(0, T, n):
            count = min(n, T - done)
            room[:, :count, :, :half].copy_(by_gate[:, done : done + count])
            now = self._launch(model, room, draws, count)
            samples[:, done : done + count].copy_(draws[:, :count])
            if before is not None:
                before.check()
                if progress is not None:
                    progress(B * done, B * T)
            before = now
        assert before is not None
        before.check()
        if progress is not None:
            progress(B * T, B * T)
        return samples

    def _begin(self, model: Model, batch: int) -> None:
        if self._seed is None:
            seeds = torch.randint(2**63 - 1, (batch,), dtype=torch.int64, device="cpu").numpy().astype(np.uint64)
        else:
            seeds = utterance_seeds(self._seed, batch)
        device, s = model.device, model.shape
        self._rings = device.zeros((batch, s.SLOTS, model.ring_row), model.operand)
        self._inputs = device.upload(np.full((batch, s.IN_DEPTH), self._wavenet.start, np.float32))
        self._filters = device.zeros((batch,), np.float32)
        self._seeds, self._model, self._batch = device.upload(seeds), model, batch

    def _launch(self, model: Model, room: torch.Tensor, draws: torch.Tensor, count: int) -> Launch:
        device, batch = model.device, self._batch
        per_stream = np.full(batch, count, np.int32)
        heard = Heard(
            device.view(room), device.zeros((batch,), np.int32), device.upload(np.full(batch, count - 1, np.int32))
        )
        made = Made(device.empty(tuple(draws.shape), np.float32), device.view(draws))
        positions = device.upload(np.full(batch, self.positions, np.int64))
        streams = Streams(self._rings, self._inputs, self._filters, positions, self._seeds)
        self.positions += count
        plan = _plan(model, batch, self._implementation)
        return model.generate(
            plan.layout(model.shape), plan.pipelines, streams, per_stream, heard, made, self._temperature,
            patience=patience_cycles(None, device), trusted=True,
        )  # fmt: skip

    def _window(self, model: Model, batch: int, T: int) -> int:
        """Samples of a launch."""
        s = model.shape
        column = 4 * batch * s.LAYERS * s.HALF * 2
        products = s.LAYERS * s.HALF * (2 * s.K * s.R + s.R + s.S) + s.H * (s.S + s.A)
        return int(max(1, min(WINDOW_BYTES // column, LAUNCH_PRODUCTS // products, T)))

    def _check(self, cond_input: Any) -> None:
        if not isinstance(cond_input, torch.Tensor):
            raise InputError(f"cond_input is of type {type(cond_input).__name__}; give a torch tensor")
        check_dense("cond_input", cond_input)
        c, shape = self._wavenet.config, tuple(cond_input.shape)
        wanted = (c.gate_channels, c.n_layers)
        if len(shape) != 4 or (shape[0], shape[2]) != wanted or not math.prod(shape):
            raise ShapeError(
                f"cond_input has shape {shape}; this network needs ({wanted[0]}, streams, {wanted[1]}, samples), with "
                "at least one stream and one sample"
            )
        if cond_input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"cond_input is {cond_input.dtype}; give float32 (.float()), float16 or bfloat16")


def _plan(model: Model, batch: int, implementation: Impl) -> Any:
    try:
        return model.plan(batch, **_ASKED[implementation])
    except BackendError:
        if implementation == Impl.AUTO:
            raise
        return model.plan(batch)


def _check_finite(cond_input: torch.Tensor, window: int) -> None:
    """Window by window, so that what is held for it stays small, before anything is made."""
    limits = [torch.stack(torch.aminmax(part)) for part in torch.split(cond_input, window, dim=3)]
    if not torch.isfinite(torch.stack(limits)).all():
        raise InputError("cond_input holds NaN or infinity; give finite numbers")


def _opened(device: Any) -> Device | None:
    if device is None or hasattr(device, "upload"):
        where: Device | None = device
        return where
    name = str(device) if isinstance(device, torch.device) else device
    if not isinstance(name, str) or re.fullmatch(r"cuda(:\d{1,4})?|emulated(:sm_\d{1,4})?", name) is None:
        raise BackendError(f'device is {name!r}; possible are "cuda", "cuda:N", "emulated" and "emulated:sm_N"')
    return device_for(name)


def _checked_implementation(value: Any) -> Impl:
    try:
        return Impl(operator.index(value))
    except (TypeError, ValueError):
        names = ", ".join(f"Impl.{member.name}" for member in Impl)
        raise InputError(f"implementation is {value!r}; possible are {names}") from None


def _checked_start(start: Any, classes: int) -> int:
    if start is None:
        return 128 if classes > 128 else classes // 2
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or not 0 <= start < classes:
        raise InputError(f"start is {start!r}; possible are the classes 0 … {classes - 1}")
    return int(start)
