"""`patch` on r9y9's newer generation, kan-bayashi's WaveNet and ESPnet's copy, against the networks' own arithmetic."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest
from tolerances import PATCHED

torch = pytest.importorskip("torch", reason="models in memory are PyTorch's")

from generating import SEED, GeneratingEspnet, GeneratingKanBayashi, GeneratingR9y9  # noqa: E402

from wavenet_fast import InputError, PatchWarning, ShapeError, patch  # noqa: E402

FRAMES, HOP, MELS = 9, 6, 7
T = FRAMES * HOP


def prepared(model: Any) -> Any:
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if name.endswith("weight_g"):  # or it would be the norm itself
            weight.data *= 1 + 0.2 * torch.rand_like(weight)
    return model.eval()


def mel(batch: int = 1, frames: int = FRAMES) -> Any:
    return torch.randn(batch, MELS, frames, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(1)
    warnings.simplefilter("error", PatchWarning)


# --- r9y9, new generation -------------------------------------------------------------------------------------------

R9Y9 = {
    "logistics": lambda: GeneratingR9y9(1, 9),
    "one logistic": lambda: GeneratingR9y9(1, 3),
    "gaussian": lambda: GeneratingR9y9(1, 2, distribution="Normal"),
    "gaussians": lambda: GeneratingR9y9(1, 6, distribution="Normal"),
    "classes": lambda: GeneratingR9y9(256, 256, pad=2),
    "activation": lambda: GeneratingR9y9(1, 9, scales=(6,), pad=0, activation="LeakyReLU"),
}


@pytest.mark.parametrize("name", R9Y9)
def test_r9y9_makes_what_it_makes_itself(name: str) -> None:
    model = prepared(R9Y9[name]())
    c = mel(2, FRAMES + 2 * model.pad)  # real frames beyond both ends, not copies
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        ours = model.incremental_forward(c=c, T=T)
    theirs = model.incremental_forward(c=c, T=T)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if model.scalar_input:
        assert theirs.std() > 0.02
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PATCHED)
    else:
        assert len(theirs.argmax(1).unique()) > 5
        np.testing.assert_array_equal(ours, theirs)


def test_r9y9_with_speaker_vectors() -> None:
    model, g = prepared(GeneratingR9y9(1, 9, speakers=5)), torch.randn(1, 5)
    c = mel(1, FRAMES + 2)
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        ours = model.incremental_forward(c=c, g=g, T=T)
    np.testing.assert_allclose(ours, model.incremental_forward(c=c, g=g, T=T), rtol=0, atol=PATCHED)


def test_the_floor_counts_only_where_the_code_clamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer code's sampler has `clamp_log_scale`, which is off; that of earlier code clamps."""
    import generating

    model, c = prepared(GeneratingR9y9(1, 9)), mel(1, FRAMES + 2)
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        plain = model.incremental_forward(c=c, T=T)
        assert torch.equal(model.incremental_forward(c=c, T=T, log_scale_min=2.0), plain)
        monkeypatch.setattr(
            generating, "sample_from_discretized_mix_logistic",
            lambda y, b, t, log_scale_min=-7.0: generating.drawn(
                y, generating.LogisticHead(components=3, log_scale_min=log_scale_min), b, t
            ),
        )  # fmt: skip
        floored = model.incremental_forward(c=c, T=T, log_scale_min=0.5)
    assert not torch.equal(floored, plain)
    np.testing.assert_allclose(floored, model.incremental_forward(c=c, T=T, log_scale_min=0.5), rtol=0, atol=PATCHED)


# --- kan-bayashi and ESPnet -----------------------------------------------------------------------------------------

KAN = {
    "deconvolution": GeneratingKanBayashi,
    "three taps": lambda: GeneratingKanBayashi(taps=3),
    "at sample rate": lambda: GeneratingKanBayashi(factor=0),
}


def features(model: Any, batch: int = 1) -> Any:
    h = mel(batch)
    return h if model.factor else h.repeat_interleave(HOP, 2)


@pytest.mark.parametrize("name", KAN)
@pytest.mark.parametrize("method", ["generate", "fast_generate"])
@pytest.mark.parametrize("mode", ["sampling", "argmax"])
def test_kan_bayashi_makes_what_it_makes_itself(name: str, method: str, mode: str) -> None:
    model = prepared(KAN[name]())
    arguments = (torch.tensor([[model.start]]), features(model), T - 1)
    with patch(model, strict=True, seed=SEED, dtype="fp32"):
        ours = getattr(model, method)(*arguments, mode=mode)
    theirs = getattr(model, method)(*arguments, mode=mode)
    assert isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype == np.int64
    assert mode == "argmax" or len(np.unique(theirs)) > 5
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("known", [1, 2, 10, 15, 16, 25])
@pytest.mark.parametrize("taps", [2, 3])
def test_what_was_said_before_is_heard(known: int, taps: int) -> None:
    """x of any length and any class, below and beyond the receptive field of 15 or 29."""
    model = prepared(GeneratingKanBayashi(taps=taps))
    x = torch.randint(0, model.classes, (1, known))
    with patch(model, strict=True, seed=SEED, dtype="fp32"):
        ours = model.fast_generate(x, mel(), T - known)
    np.testing.assert_array_equal(ours, model.fast_generate(x, mel(), T - known))


def test_the_oldest_sample_that_is_heard_has_no_past() -> None:
    """One layer, whose receptive field is two samples: what lies before them, zeros or silence, is heard in the first
    convolution alone."""
    model = prepared(GeneratingKanBayashi())
    for name in ("dil_sigmoid", "dil_tanh", "aux_1x1_sigmoid", "aux_1x1_tanh", "skip_1x1", "res_1x1"):
        setattr(model, name, getattr(model, name)[:1])
    model.depth = model.repeat = model.dilation_depth = model.dilation_repeat = 1
    assert model.receptive_field == 2
    for classes in torch.randint(0, model.classes, (20, 1, 2)):
        with patch(model, strict=True, seed=SEED, dtype="fp32"):
            ours = model.fast_generate(classes, mel(), 3)
        np.testing.assert_array_equal(ours, model.fast_generate(classes, mel(), 3))


def test_a_batch_comes_shortest_first() -> None:
    model, lengths = prepared(GeneratingKanBayashi()), [40, 25, 33]
    x, h, given = torch.full((3, 1), model.start), mel(3), list(lengths)
    with patch(model, strict=True, seed=SEED, dtype="fp32"):
        ours = model.batch_fast_generate(x, h, given)
    assert given == lengths and [len(y) for y in ours] == [25, 33, 40]
    for a, b in zip(ours, model.batch_fast_generate(x, h, lengths), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("factor, samples", [(6, T - 1), (0, T - 1), (0, T + 9)])
def test_espnet_makes_what_it_makes_itself(factor: int, samples: int) -> None:
    model = prepared(GeneratingEspnet(factor=factor))
    x, h = torch.tensor([model.start]), features(model)[0].T
    with patch(model, strict=True, seed=SEED, dtype="fp32"):
        assert model.fast_generate is None
        ours = model.generate(x, h, samples, interval=20)
    np.testing.assert_array_equal(ours, model.generate(x, h, samples))


def test_progress_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = prepared(GeneratingKanBayashi())
    with patch(model, strict=True, seed=SEED, dtype="fp32"), caplog.at_level(logging.INFO):
        model.fast_generate(torch.tensor([[model.start]]), mel(), 50, intervals=20)
    told = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in told] == ["20/50", "40/50"]


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"mode": "greedy"}, InputError, "mode is 'greedy'; possible are sampling, argmax"),
        ({"h": mel(1, 3)}, ShapeError, "h is for 18 samples, and 53 are to be heard"),
        ({"h": mel(2)}, ShapeError, r"h has shape \(2, 7, 54\) at sample rate; give \(1, 7, samples\)"),
        ({"x": torch.zeros(2, 1, dtype=torch.int64)}, ShapeError, r"x has shape \(2, 1\) for 1 utterances"),
        ({"h": mel() * float("nan")}, InputError, "NaN"),
    ],
)
def test_bad_arguments_are_sentences(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    model = prepared(GeneratingKanBayashi())
    given = {"x": torch.tensor([[model.start]]), "h": mel(), "n_samples": T - 1, **changes}
    with patch(model), pytest.raises(error, match=words):
        model.fast_generate(**given)


def test_nothing_to_make_is_left_to_the_original() -> None:
    model = prepared(GeneratingKanBayashi())
    with patch(model), pytest.warns(PatchWarning, match="no samples are asked for"):
        assert len(model.fast_generate(torch.tensor([[model.start]]), mel(), 0)) == 0
