"""A steady past for engines whose kernels know zero vectors alone: what each layer hears of a stream's first sample, by
the PyTorch reference on the host. It runs once a stream, off the sample loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..config import OneHotInput, WaveNetConfig
from ..errors import BackendError
from ..packing import quantise, to_bf16
from .gpu import INSTALL_TORCH

Array = NDArray[np.float32]


class SteadyPast:
    """Raises `BackendError` where PyTorch is not installed."""

    def __init__(self, config: WaveNetConfig, weights: Mapping[str, Array], dtype: str) -> None:
        try:
            import torch

            from ..reference import Reference
        except ImportError:
            raise BackendError(
                "this model has a steady past, which the GPU backends leave to PyTorch on the processor."
                f" {INSTALL_TORCH}"
            ) from None
        # GPUs round the activations in fp16 too.
        plain = {name: torch.tensor(weight, device="cpu") for name, weight in weights.items()}
        self._config, self._model = config, Reference(config, plain, dtype, dtype)

    def layer_inputs(self, mel: Array, speaker: Array, inputs: Array) -> Array:
        """(L, R): what each layer hears at sample 0. mel (M, n): the frames that sample depends on, from the first;
        speaker (P,); inputs (taps,): what was heard before, oldest first, as `HostState` has it."""
        import torch

        c, model = self._config, self._model
        state = model.initial_state(1)
        heard = torch.from_numpy(inputs.copy())
        heard = heard.long() if isinstance(c.input, OneHotInput) else heard
        state.inputs = heard[None, :-1]
        with torch.inference_mode():
            vector = torch.from_numpy(speaker.copy())[None] if len(speaker) else None
            conditioning = model.conditioning(torch.from_numpy(mel.copy())[None], vector, 0, 1)[:, 0]
            trace: dict[str, torch.Tensor] = {}
            model.step(state, heard[-1:], conditioning, trace)
        names = ["embed", *(f"x.{i}" for i in range(c.n_layers - 1))]
        made: Array = np.concatenate([trace[name].numpy() for name in names])
        return made


def as_operands(x: Array, dtype: str) -> tuple[NDArray[np.generic], Array | None]:
    """(…, R) as the kernels' operands, and in int8 what one unit of each vector is worth."""
    if dtype == "int8":
        return quantise(x)
    if dtype == "bf16":
        return to_bf16(x).reshape(x.shape), None
    return x.astype({"fp32": np.float32, "fp16": np.float16}[dtype]), None
