"""The sizes a model has in Triton: channels padded to powers of two, and how much of each matrix is worked on at once.

Nothing here imports triton, so that shapes can be told and tested anywhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from wavenet_fast.config import CategoricalHead, GaussianHead, Linear, LogisticHead, OneHotInput, Stages, WaveNetConfig
from wavenet_fast.sampling import Head, out_channels

from ..tables import depths

MIN_CHANNELS = 16
"""Inner dimension of the smallest product that the compiler takes."""

BLOCK_CLASSES = 512
"""Most outputs of the head that are held in registers; a categorical head with more goes through memory."""


def padded(n: int) -> int:
    """The power of two that holds n channels, at least `MIN_CHANNELS`."""
    return max(MIN_CHANNELS, 1 << (n - 1).bit_length())


def padded_outputs(head: Head) -> int:
    """A, padded so that `stages.prefix_sums` can group it: 16, 32, 64, 256 or 512; more in steps of `BLOCK_CLASSES`
    where the head is categorical, else in powers of two."""
    A = out_channels(head)
    if A > BLOCK_CLASSES and isinstance(head, CategoricalHead):
        return -(-A // BLOCK_CLASSES) * BLOCK_CLASSES
    return padded(A) if A <= 64 else max(256, padded(A))


@dataclass(frozen=True)
class HeadShape:
    """The letters of a head."""

    A: int
    CLASSES: int
    COMPONENTS: int
    HEAD: int
    BLOCK_CLASSES: int

    @classmethod
    def of(cls, head: Head) -> HeadShape:
        A, categorical = padded_outputs(head), isinstance(head, CategoricalHead)
        return cls(
            A=A,
            CLASSES=head.classes if isinstance(head, CategoricalHead) else 1,
            COMPONENTS=1 if isinstance(head, CategoricalHead) else head.components,
            HEAD={CategoricalHead: 0, LogisticHead: 1, GaussianHead: 2}[type(head)],
            BLOCK_CLASSES=min(A, BLOCK_CLASSES) if categorical else A,
        )


@dataclass(frozen=True)
class BlockShape:
    """The letters of one residual block."""

    K: int
    R: int
    HALF: int
    S: int

    @classmethod
    def of(cls, taps: int, residual: int, gate: int, skip: int) -> BlockShape:
        """From K, R, G and S as a model has them."""
        return cls(taps, padded(residual), padded(gate // 2), padded(skip))


@dataclass(frozen=True)
class Shape:
    """A model's letters as the kernels take them (see generate.py); one compiled kernel serves all models of one
    shape."""

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
    TANH: bool
    COMPANDED: bool
    RUNNING: bool
    HOP: int
    UPSAMPLING: int
    BLOCK_CLASSES: int

    @classmethod
    def of(cls, config: WaveNetConfig) -> Shape:
        c = config
        R, HALF, S, H = (
            padded(n) for n in (c.residual_channels, c.gate_channels // 2, c.skip_channels, c.head_channels)
        )
        up = c.conditioning.upsampling
        return cls(
            LAYERS=c.n_layers, K=c.kernel_size, R=R, HALF=HALF, S=S, H=H, SLOTS=sum(depths(c)),
            IN_TAPS=c.input.kernel_size, IN_DEPTH=1 << c.input.kernel_size.bit_length(),
            ONE_HOT=isinstance(c.input, OneHotInput), TANH=c.input.tanh,
            COMPANDED=c.signal.domain == "mulaw", RUNNING=c.skip_rule == "running", HOP=c.hop_length,
            UPSAMPLING=2 if isinstance(up, Stages) else 1 if isinstance(up, Linear) else 0,
            **dataclasses.asdict(HeadShape.of(c.head)),
        )  # fmt: skip

    @property
    def block(self) -> BlockShape:
        return BlockShape(self.K, self.R, self.HALF, self.S)

    def constexprs(self) -> dict[str, int | bool]:
        """By the names of generate.py's constexpr arguments."""
        return dataclasses.asdict(self)
