"""The sizes a model has in the CUDA kernels: channels padded to multiples of 16, which are the rows of a tensor-core
product and a whole number of its steps, or of 32 in int8, where a step takes so many."""

from __future__ import annotations

from dataclasses import dataclass

from wavenet_fast.config import CategoricalHead, GaussianHead, Linear, LogisticHead, OneHotInput, Stages, WaveNetConfig

from ..tables import depths

PANEL = 16
"""Rows of one tensor-core product."""
FRAGMENT_BYTES = 512
"""A panel's weights for one step of 32 bytes of inputs."""
STEP_BYTES = 32

OPERAND_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Number format → bytes of an operand."""


def padded(channels: int, dtype: str = "bf16") -> int:
    """The multiple of 16, in int8 of 32, that holds so many channels."""
    unit = max(PANEL, STEP_BYTES // OPERAND_BYTES[dtype])
    return -(-channels // unit) * unit


def steps(inputs: int, dtype: str) -> int:
    """Steps of a product with so many inputs, padded already."""
    return inputs * OPERAND_BYTES[dtype] // STEP_BYTES


@dataclass(frozen=True)
class Shape:
    """A model's letters as the kernels take them; one compiled kernel serves all models of one shape and plan."""

    LAYERS: int
    K: int
    R: int
    HALF: int
    S: int
    H: int
    A: int
    SLOTS: int
    CLASSES: int
    COMPONENTS: int
    HEAD: int
    IN_TAPS: int
    IN_DEPTH: int
    ONE_HOT: bool
    INPUT_ROWS: int
    TANH: bool
    COMPANDED: bool
    SCALED: bool
    RUNNING: bool
    HOP: int
    UPSAMPLING: int

    @classmethod
    def of(cls, config: WaveNetConfig, dtype: str = "bf16") -> Shape:
        """For a number format."""
        c, up, head = config, config.conditioning.upsampling, config.head
        classes, one_hot = head.classes if isinstance(head, CategoricalHead) else 1, isinstance(c.input, OneHotInput)
        R, HALF, S, H = (
            padded(n, dtype) for n in (c.residual_channels, c.gate_channels // 2, c.skip_channels, c.head_channels)
        )
        return cls(
            LAYERS=c.n_layers, K=c.kernel_size, R=R, HALF=HALF, S=S, H=H, A=padded(c.out_channels),
            SLOTS=sum(depths(c)),
            CLASSES=classes,
            COMPONENTS=1 if isinstance(head, CategoricalHead) else head.components,
            HEAD={CategoricalHead: 0, LogisticHead: 1, GaussianHead: 2}[type(head)],
            IN_TAPS=c.input.kernel_size, IN_DEPTH=1 << c.input.kernel_size.bit_length(),
            ONE_HOT=one_hot, INPUT_ROWS=classes if one_hot else 1, TANH=c.input.tanh,
            COMPANDED=c.signal.domain == "mulaw", SCALED=c.residual_scale != 1.0,
            RUNNING=c.skip_rule == "running", HOP=c.hop_length,
            UPSAMPLING=2 if isinstance(up, Stages) else 1 if isinstance(up, Linear) else 0,
        )  # fmt: skip
