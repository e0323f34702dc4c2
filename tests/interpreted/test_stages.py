"""Triton's interpreter against the reference, stage by stage: what the kernels say, before any compiler reads them.

It knows no threads, no barriers and no bounds, multiplies bf16 wrongly (the kernels widen it first, `UPCAST`), and adds
in NumPy's order: the laws, bit for bit, are for test_triton_emulated.py."""

from __future__ import annotations

import pytest
from engine_models import MODELS, random_weights

pytest.importorskip("torch", reason="the Triton engine needs PyTorch")
pytest.importorskip("triton", reason="the interpreter is Triton's")

from gpu_checks import check_draws, check_stages, speak
from triton_launches import InterpretedLauncher

from wavenet_fast.backends.triton import TritonEngine


def engine_of(name: str, dtype: str) -> TritonEngine:
    return TritonEngine(MODELS[name], random_weights(MODELS[name]), dtype, "interpreted", InterpretedLauncher())


# In 16 bit what differs is where operands are rounded: in every product, and in what is interpolated ("gaussian").
@pytest.mark.parametrize(
    "name, dtype",
    [(name, "fp32") for name in MODELS] + [(n, d) for n in ("tiny", "gaussian") for d in ("fp16", "bf16")],
)
def test_every_stage_equals_the_reference(name: str, dtype: str) -> None:
    check_stages(engine_of(name, dtype), random_weights(MODELS[name]))


@pytest.mark.parametrize("name", ["tiny", "logistic"])
def test_draws_follow_from_logits_and_uniforms(name: str) -> None:
    engine = engine_of(name, "fp32")
    draws, logits, _ = speak(engine, -(-24 // engine.config.hop_length))
    check_draws(engine.config, draws, logits)
