"""r9y9's old generation, from its own package, with weights that tell of every part."""

from __future__ import annotations

import warnings
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "layers": 6, "stacks": 2, "residual_channels": 10, "gate_channels": 16, "skip_out_channels": 12, "kernel_size": 3,
    "dropout": 0.05, "cin_channels": 7, "upsample_conditional_features": True, "upsample_scales": [2, 3],
    "freq_axis_kernel_size": 3,
}  # fmt: skip


def old_model(**changes: Any) -> Any:
    """A `wavenet_vocoder.WaveNet` of these sizes, or others, in evaluation; its biases and norms are not those that it
    is made with."""
    import wavenet_vocoder

    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wavenet_vocoder.WaveNet(**SIZES | changes)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or name.endswith("weight_g"):  # as made they are all 0, or the norm itself
            weight.data += 0.2 * torch.randn_like(weight)
    out = model.last_conv_layers[3]
    (out.weight_g if hasattr(out, "weight_g") else out.weight).data *= 3
    return model.eval()
