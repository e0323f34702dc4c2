"""r9y9's old generation against its own code, the package wavenet-vocoder 0.1.1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="r9y9's code needs torch")
wavenet_vocoder = pytest.importorskip("wavenet_vocoder", reason="wavenet-vocoder 0.1.1 is not installed")

from imports import forced_draws, largest_error, our_sampler, our_stages, same_draws  # noqa: E402
from r9y9_old_model import old_model  # noqa: E402

from wavenet_fast.importers import Imported, r9y9  # noqa: E402

HPARAMS = {
    "sample_rate": 8000, "stacks": 2, "hop_size": 6, "log_scale_min": -3.0, "upsample_scales": [2, 3],
    "upsample_conditional_features": True,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixture, running skips": ({"out_channels": 9, "scalar_input": True}, {"legacy": True}),
    "mixture, plain sum": ({"out_channels": 9, "scalar_input": True, "legacy": False}, {"legacy": False}),
    "no weight norm": ({"out_channels": 9, "scalar_input": True, "weight_normalization": False}, {"legacy": True}),
    "classes": ({"out_channels": 256}, {"legacy": True, "input_type": "mulaw-quantize", "quantize_channels": 256}),
    "speakers": ({"out_channels": 9, "scalar_input": True, "gin_channels": 5, "n_speakers": 4}, {"legacy": True}),
    "held frames": (
        {"out_channels": 9, "scalar_input": True, "upsample_conditional_features": False},
        {"legacy": True, "upsample_conditional_features": False},
    ),
}
FRAMES, HOP, SEED = 20, 6, 5


def their_model(changes: dict[str, Any]) -> Any:
    return old_model(**changes)


def imported(model: Any, hparams: dict[str, Any]) -> Imported:
    return r9y9.from_state({k: v.numpy() for k, v in model.state_dict().items()}, HPARAMS | hparams)


def their_stages(model: Any, drawn: np.ndarray, mel: np.ndarray, speaker: int | None, start: int) -> dict[str, Any]:
    """Each stage of its forward pass where sample t was predicted from drawn[:t]."""
    seen: dict[str, Any] = {}

    def keep(name: str, pick: Any) -> Any:
        return lambda _, given, made: seen.__setitem__(name, pick(given, made)[0].detach().clone().numpy().T)

    hooks = [
        (model.first_conv, "embed", lambda given, made: made),
        (model.last_conv_layers[1], "hidden", lambda given, made: made),
        (model.last_conv_layers[3], "logits", lambda given, made: made),
    ]
    last = len(model.conv_layers) - 1
    for i, layer in enumerate(model.conv_layers):
        hooks.append((layer.conv1x1_skip, f"gate.{i}", lambda given, made: given[0]))
        if i < last:
            hooks.append((layer, f"x.{i}", lambda given, made: made[0]))
    handles = [module.register_forward_hook(keep(name, pick)) for module, name, pick in hooks]
    # The first ReLU works in place, so the sum is taken before it.
    handles.append(model.last_conv_layers[0].register_forward_pre_hook(
        lambda _, given: seen.__setitem__("skip", given[0][0].detach().clone().numpy().T)
    ))  # fmt: skip
    if model.scalar_input:
        x = torch.tensor(np.concatenate([[0], drawn[:-1]]), dtype=torch.float32)[None, None]
    else:
        x = torch.nn.functional.one_hot(torch.tensor([start, *drawn[:-1]]), model.out_channels).T[None].float()
    with torch.inference_mode():
        model(x, c=their_mel(model, mel), g=None if speaker is None else torch.tensor([[speaker]]))
    for handle in handles:
        handle.remove()
    return seen


def their_mel(model: Any, mel: np.ndarray) -> Any:
    held = mel if model.upsample_conv is not None else mel.repeat(HOP, axis=1)
    return torch.tensor(held)[None]


@pytest.mark.parametrize("case", CASES)
def test_every_stage_is_its_own(case: str) -> None:
    changes, hparams = CASES[case]
    model = their_model(changes)
    made = imported(model, hparams)
    rng = np.random.default_rng(0)
    mel = rng.random((7, FRAMES), np.float32)
    drawn = (
        rng.uniform(-1, 1, FRAMES * HOP).astype(np.float32)
        if model.scalar_input
        else rng.integers(0, 256, FRAMES * HOP)
    )
    speaker = 2 if made.config.speakers.count else None
    vector = None if speaker is None else made.weights["speakers.weight"][speaker]
    theirs = their_stages(model, drawn, mel, speaker, 127)
    largest_error(our_stages(made, mel, drawn, vector), theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_free_running_draws_are_its_own(case: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `incremental_forward` with our sampler in place of its own makes what we make of the same past."""
    changes, hparams = CASES[case]
    model = their_model(changes)
    made = imported(model, hparams)
    draw, logits = our_sampler(made, SEED), []

    def of_mixture(y: Any, log_scale_min: float) -> Any:
        assert log_scale_min == made.config.head.log_scale_min
        logits.append(y[0, :, 0].numpy())
        return torch.tensor(draw(len(logits) - 1, logits[-1])).reshape(1, 1)

    def of_classes(classes: Any, p: np.ndarray) -> Any:
        logits.append(np.log(p))
        return draw(len(logits) - 1, logits[-1])

    monkeypatch.setattr("wavenet_vocoder.wavenet.sample_from_discretized_mix_logistic", of_mixture)
    monkeypatch.setattr(np.random, "choice", of_classes)
    mel = np.random.default_rng(3).random((7, FRAMES), np.float32)
    speaker = 2 if made.config.speakers.count else None
    with torch.inference_mode():
        out = model.incremental_forward(
            c=their_mel(model, mel), g=None if speaker is None else torch.tensor([[speaker]]), T=FRAMES * HOP,
            log_scale_min=HPARAMS["log_scale_min"],
        )[0]  # fmt: skip
    theirs = (out[0] if model.scalar_input else out.argmax(0)).numpy()
    assert len(np.unique(theirs)) > 20
    vector = None if speaker is None else made.weights["speakers.weight"][speaker]
    ours, ours_logits = forced_draws(made, backend, mel, theirs, SEED, vector)
    same_draws(made, ours, theirs, ours_logits, SEED)
    if model.scalar_input:
        largest_error({"logits": ours_logits}, {"logits": np.array(logits)})
