"""The GPU kernels as ops for PyTorch programs; kernels/triton/ops.py says what each takes.

Importing this needs torch and triton; without them it is an `ImportError` that says what to install."""

from .backends.gpu import why_no_kernels

if (_why := why_no_kernels()) is not None:
    raise ImportError(f"wavenet_fast.ops cannot be used here: {_why}")

from .kernels.triton.ops import (
    Ready,
    Streams,
    generate,
    prepare,
    project,
    residual_block,
    residual_block_reference,
    sample,
    start,
)

__all__ = [
    "Ready", "Streams", "generate", "prepare", "project", "residual_block", "residual_block_reference", "sample",
    "start",
]  # fmt: skip
