"""The importers against networks built from what the families document: every stage, and free-running draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks that are compared with are in torch")

from families import KanBayashi, NewR9y9, NvWaveNet, free_running  # noqa: E402
from imports import forced_draws, largest_error, our_sampler, our_stages, same_draws  # noqa: E402

from wavenet_fast.importers import Imported, kan_bayashi, nv_wavenet, r9y9  # noqa: E402

FRAMES, HOP, SEED = 9, 6, 5
NEW = {"sample_rate": 8000, "stacks": 2, "hop_size": 6}
CLASSES = {"input_type": "mulaw-quantize", "quantize_channels": 256}


def state(model: Any) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


class Case(NamedTuple):
    network: Callable[[], Any]
    imported: Callable[[Any], Imported]
    values: bool = False
    past: int = 0
    """How much of silence the network is told to have heard before."""


def new_r9y9(**hparams: Any) -> Callable[[Any], Imported]:
    return lambda m: r9y9.from_state(state(m), NEW | hparams)


def kan(m: Any) -> Imported:
    return kan_bayashi.from_state(state(m), m.conf(), sample_rate=16000)


def nv_config(m: Any) -> dict[str, Any]:
    return {"wavenet_config": {"max_dilation": m.max_dilation, "upsamp_stride": m.stride}, "data_config": {}}


CASES: dict[str, Case] = {
    "r9y9, logistics": Case(lambda: NewR9y9(1, 9), new_r9y9(), True),
    "r9y9, one logistic": Case(lambda: NewR9y9(1, 3), new_r9y9(), True),
    "r9y9, Gaussian": Case(lambda: NewR9y9(1, 2), new_r9y9(output_distribution="Normal"), True),
    "r9y9, Gaussians": Case(lambda: NewR9y9(1, 6), new_r9y9(output_distribution="Normal", input_type="mulaw"), True),
    "r9y9, classes": Case(lambda: NewR9y9(256, 256, pad=2), new_r9y9(**CLASSES)),
    "r9y9, activation": Case(
        lambda: NewR9y9(1, 9, scales=(6,), pad=0, activation="LeakyReLU"),
        new_r9y9(upsample_params={"upsample_scales": [6], "upsample_activation": "LeakyReLU"}), True,
    ),
    "kan-bayashi": Case(KanBayashi, kan, past=40),
    "kan-bayashi, three taps": Case(lambda: KanBayashi(taps=3), kan, past=40),
    "kan-bayashi, held frames": Case(lambda: KanBayashi(factor=0), kan, past=40),
    "nv-wavenet": Case(NvWaveNet, lambda m: nv_wavenet.from_state(state(m), nv_config(m))),
    "nv-wavenet, exported": Case(
        NvWaveNet, lambda m: nv_wavenet.from_state(m.exported(), {"upsamp_stride": m.stride}, conditioning=state(m)),
    ),
}  # fmt: skip


def made(case: Case) -> tuple[Any, Imported, np.ndarray]:
    torch.manual_seed(3)
    network = case.network()
    for name, weight in network.named_parameters():
        if name.endswith("weight_g"):  # or it would be the norm itself
            weight.data *= 1 + 0.2 * torch.rand_like(weight)
    mel = np.random.default_rng(1).standard_normal((7, FRAMES)).astype(np.float32)
    return network.eval(), case.imported(network), mel


@pytest.mark.parametrize("name", CASES)
def test_every_stage_is_its_own(name: str) -> None:
    case = CASES[name]
    network, imported, mel = made(case)
    rng = np.random.default_rng(2)
    drawn = rng.uniform(-1, 1, FRAMES * HOP).astype(np.float32)
    if not case.values:
        drawn = rng.integers(0, imported.config.out_channels, FRAMES * HOP)
    heard = np.concatenate([[network.start] * (case.past + 1), drawn[:-1]])
    theirs = network(heard.astype(np.float32 if case.values else np.int64), mel, case.past)
    theirs = {stage: values[case.past :] for stage, values in theirs.items()}
    if name == "r9y9, one logistic":
        theirs["logits"] = theirs["logits"][:, 1:]
    largest_error(our_stages(imported, mel, drawn), theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_free_running_draws_are_its_own(name: str, backend: str) -> None:
    case = CASES[name]
    network, imported, mel = made(case)
    alone = name == "r9y9, one logistic"
    draw = our_sampler(imported, SEED)
    with_ours = (lambda t, logits: draw(t, logits[1:])) if alone else draw
    theirs, logits = free_running(network, mel, FRAMES * HOP, with_ours, case.past)
    assert len(np.unique(theirs)) > 10
    ours, ours_logits = forced_draws(imported, backend, mel, theirs, SEED)
    largest_error({"logits": ours_logits}, {"logits": logits[:, 1:] if alone else logits})
    same_draws(imported, ours, theirs, ours_logits, SEED)


@pytest.mark.parametrize("table", [False, True])
def test_speakers_of_the_new_generation(table: bool) -> None:
    """Vectors that are given, or the rows of an embedding."""
    torch.manual_seed(5)
    network = NewR9y9(1, 9, speakers=4).eval()
    rows = torch.randn(3, 4)
    weights = state(network) | ({"embed_speakers.weight": rows.numpy()} if table else {})
    imported = r9y9.from_state(weights, NEW)
    assert (imported.config.speakers.channels, imported.config.speakers.count) == (4, 3 if table else 0)
    if table:
        np.testing.assert_array_equal(imported.weights["speakers.weight"], rows.numpy())
    rng, speaker = np.random.default_rng(2), rows[1].numpy()
    mel = rng.standard_normal((7, FRAMES)).astype(np.float32)
    drawn = rng.uniform(-1, 1, FRAMES * HOP).astype(np.float32)
    heard = np.concatenate([[0], drawn[:-1]]).astype(np.float32)
    theirs = network(heard, mel, speaker=speaker)
    largest_error(our_stages(imported, mel, drawn, speaker), theirs)
    _, logits = forced_draws(imported, "cpu", mel, drawn, SEED, speaker)
    largest_error({"logits": logits}, {"logits": theirs["logits"]})


@pytest.mark.parametrize("taps", [2, 3])
def test_what_kan_bayashi_hears_before_the_first_sample(taps: int) -> None:
    """It adds silence for its receptive field, which leaves out the first convolution: the oldest of it has no past of
    its own. From sample taps − 1 on nothing tells of that."""
    case = Case(lambda: KanBayashi(taps=taps), kan)
    network, imported, mel = made(case)
    theirs, logits = free_running(network, mel, FRAMES * HOP, our_sampler(imported, SEED), network.receptive_field - 1)
    _, ours = forced_draws(imported, "reference", mel, theirs, SEED)
    largest_error({"logits": ours}, {"logits": logits}, skip=taps - 1)
    assert np.abs(ours - logits)[: taps - 1].max() > 1e-4
