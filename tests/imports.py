"""What the tests of the importers share: our stages and draws beside those of a family's own network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tolerances import IMPORTED

from wavenet_fast.config import CategoricalHead, OneHotInput
from wavenet_fast.importers import Imported
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import cdf_edge_distance, sample

Stages = Mapping[str, np.ndarray]


def network_weights(imported: Imported) -> dict[str, np.ndarray]:
    from wavenet_fast.weights import weight_shapes

    return {name: np.array(imported.weights[name]) for name in weight_shapes(imported.config)}


def our_stages(
    imported: Imported, mel: np.ndarray, drawn: np.ndarray, speaker: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every stage of the reference where drawn[:t] was heard before sample t. mel (M, F), drawn (T,), speaker (P,)."""
    import torch

    from wavenet_fast.reference import Reference, Trace

    model, trace, c = Reference(imported.config, network_weights(imported)), Trace(), imported.config
    kind = np.int64 if isinstance(c.input, OneHotInput) else np.float32
    heard = np.concatenate([[c.start], drawn[:-1]]).astype(kind)
    with torch.inference_mode():
        vector = None if speaker is None else torch.tensor(speaker)[None]
        conditioning = model.conditioning(torch.tensor(mel)[None], vector, 0, len(drawn))
        model.forward(torch.tensor(heard)[None], conditioning, trace)
    return {name: value[0].numpy() for name, value in trace.items()}


def largest_error(ours: Stages, theirs: Stages, skip: int = 0) -> float:
    """Over the stages that both have, in standard deviations of the stage; the first `skip` samples are left out.
    Asserts that it is within `IMPORTED`."""
    errors = {}
    for name in theirs:
        assert ours[name].shape == theirs[name].shape, (name, ours[name].shape, theirs[name].shape)
        a, b = ours[name][skip:].astype(np.float64), theirs[name][skip:].astype(np.float64)
        errors[name] = float(np.abs(a - b).max() / b.std())
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= IMPORTED, f"{worst}: {errors[worst]:.2e}"
    print(f"\nlargest error {errors[worst]:.1e} standard deviations, in {worst}, of {len(errors)} stages")
    return errors[worst]


def our_sampler(imported: Imported, seed: int) -> Callable[[int, Any], Any]:
    """(t, logits (A,)) → the draw of sample t, for a network that is not ours."""

    def draw(t: int, logits: Any) -> Any:
        return sample(np.asarray(logits, np.float32), uniforms(np.uint64(seed), np.array(t)), imported.config.head)

    return draw


def forced_draws(
    imported: Imported, backend: str, mel: np.ndarray, drawn: np.ndarray, seed: int, speaker: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What a backend draws, step by step, where it has heard `drawn` (T,) instead of its own draws, and its logits."""
    from wavenet_fast.backends.cpu import CpuEngine
    from wavenet_fast.backends.reference import ReferenceEngine

    engine = {"cpu": CpuEngine, "reference": ReferenceEngine}[backend](
        imported.config, network_weights(imported), "fp32"
    )
    samples = mel.shape[1] * imported.config.hop_length
    kind = np.int32 if isinstance(imported.config.head, CategoricalHead) else np.float32
    history = np.zeros((1, samples), kind)
    history[0, : len(drawn)] = drawn
    logits = np.zeros((1, samples, imported.config.out_channels), np.float32)
    state = engine.start(np.array([seed], np.uint64), None if speaker is None else speaker[None])
    made, _ = engine.advance(
        state, mel[None], np.array([mel.shape[1]]), np.array([True]), 1.0, forced=history, logits=logits, raw=True
    )
    return made[0, : len(drawn)], logits[0, : len(drawn)]


def same_draws(imported: Imported, ours: np.ndarray, theirs: np.ndarray, logits: np.ndarray, seed: int) -> None:
    """Asserts that each draw is theirs: classes but where the uniform lies on an edge, values to rounding."""
    if not isinstance(imported.config.head, CategoricalHead):
        np.testing.assert_allclose(ours, theirs, atol=IMPORTED, rtol=0)
        return
    u = uniforms(np.uint64(seed), np.arange(len(ours)))[:, 0]
    assert (cdf_edge_distance(logits, u, between=(ours, theirs)) < IMPORTED).all()
    assert (ours != theirs).mean() < 0.01
