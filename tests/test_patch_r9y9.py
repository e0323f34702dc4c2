"""`patch` on models of r9y9's old generation: its own package, with our sampler in place of its own, makes the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from tolerances import PATCHED

torch = pytest.importorskip("torch", reason="r9y9's code needs torch")
wavenet_vocoder = pytest.importorskip("wavenet_vocoder", reason="wavenet-vocoder 0.1.1 is not installed")

from r9y9_old_model import old_model  # noqa: E402

from wavenet_fast import InputError, PatchWarning, ShapeError, patch  # noqa: E402
from wavenet_fast.backends import prepare  # noqa: E402
from wavenet_fast.config import CategoricalHead, LogisticHead  # noqa: E402
from wavenet_fast.patching.r9y9_calls import Steps  # noqa: E402
from wavenet_fast.rng import uniforms  # noqa: E402
from wavenet_fast.sampling import sample  # noqa: E402

FRAMES, HOP, MELS, SEED, FLOOR = 9, 6, 7, 11, -3.0
T = FRAMES * HOP
VALUES, CLASSES = {"out_channels": 9, "scalar_input": True}, {"out_channels": 256}
CASES: dict[str, dict[str, Any]] = {
    "values": VALUES,
    "classes": CLASSES,
    "plain sum": {**VALUES, "legacy": False},
    "no weight norm": {**VALUES, "weight_normalization": False},
    "at sample rate": {**VALUES, "upsample_conditional_features": False},
    "one cycle": {**VALUES, "stacks": 1, "layers": 3},
}


def model_of(**changes: Any) -> Any:
    model = old_model(**changes)
    if model.scalar_input:
        model.last_conv_layers[3].bias.data[-3:] += FLOOR  # so that about half of the scales are below the floor
    return model


def mel_of(model: Any, batch: int = 1, frames: int = FRAMES) -> Any:
    mel = torch.rand(batch, MELS, frames, generator=torch.Generator().manual_seed(2))
    return mel if model.upsample_conv is not None else mel.repeat_interleave(HOP, 2)


@pytest.fixture
def our_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package draws as we do, with the uniforms of (SEED + utterance, t). Its calls are counted, so that each is a
    step of one utterance's sound; a test makes one sound."""
    steps = iter(range(10**6))

    def of_mixture(y: Any, log_scale_min: float) -> Any:
        seeds = np.uint64(SEED) + np.arange(len(y), dtype=np.uint64)
        head = LogisticHead(components=y.shape[1] // 3, log_scale_min=log_scale_min)
        drawn = sample(y[:, :, 0].detach().numpy(), uniforms(seeds, np.array(next(steps))), head)
        return torch.tensor(drawn)[:, None]

    def of_classes(classes: Any, p: np.ndarray) -> Any:
        logits = np.log(np.maximum(p, 1e-30))
        return sample(logits, uniforms(np.uint64(SEED), np.array(next(steps))), CategoricalHead(classes=len(classes)))

    monkeypatch.setattr("wavenet_vocoder.wavenet.sample_from_discretized_mix_logistic", of_mixture)
    monkeypatch.setattr(np.random, "choice", of_classes)


@torch.no_grad()
def both(model: Any, **arguments: Any) -> tuple[Any, Any]:
    """What the patched method and the original make of the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PatchWarning)
        with patch(model, strict=True, seed=SEED, dtype="fp32") as patched:
            ours = patched.incremental_forward(**arguments)
    theirs = model.incremental_forward(**arguments)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.device == theirs.device
    return ours.numpy(), theirs.numpy()


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.shape[1] == 1:
        assert theirs.std() > 0.02
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PATCHED)
    else:
        assert len(np.unique(theirs.argmax(1))) > 5
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_it_makes_what_the_original_makes(case: str, our_sampler: None) -> None:
    model = model_of(**CASES[case])
    same(*both(model, c=mel_of(model), T=T, log_scale_min=FLOOR))


def test_conditioning_at_sample_rate_comes_either_way_round(our_sampler: None) -> None:
    model = model_of(**CASES["at sample rate"])
    same(*both(model, c=mel_of(model).mT, T=T, log_scale_min=FLOOR))


def test_a_batch(our_sampler: None) -> None:
    model = model_of(**VALUES)
    # Without test_inputs the package takes any c for one utterance; the newer generation does not.
    ours, theirs = both(model, c=mel_of(model, 3), T=T, test_inputs=torch.zeros(3, 1, 1), log_scale_min=FLOOR)
    assert ours.shape == (3, 1, T) and np.abs(ours[0] - ours[1]).max() > 0.01
    same(ours, theirs)
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        assert np.array_equal(model.incremental_forward(c=mel_of(model, 3), T=T, log_scale_min=FLOOR), ours)


@pytest.mark.parametrize("kind", ["values", "classes"])
@pytest.mark.parametrize("heard", [1, 20, T])
@pytest.mark.parametrize("turned", [False, True])
def test_test_inputs_are_heard(kind: str, heard: int, turned: bool, our_sampler: None) -> None:
    model, rng = model_of(**CASES[kind]), np.random.default_rng(3)
    if kind == "values":
        given = torch.tensor(rng.uniform(-0.9, 0.9, (1, 1, heard)), dtype=torch.float32)
    else:
        classes = torch.tensor(rng.integers(0, 256, (1, heard)))
        given = torch.nn.functional.one_hot(classes, 256).mT.float()
    given = given.mT.contiguous() if turned else given
    ours, theirs = both(model, c=mel_of(model), T=T, test_inputs=given, log_scale_min=FLOOR)
    same(ours, theirs)
    if heard == T:
        same(*both_without_T(model, given))


@torch.no_grad()
def both_without_T(model: Any, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """With T=None, as long as the test inputs; the draws of our sampler go on, so only shapes and history count."""
    with patch(model, strict=True, seed=SEED, dtype="fp32"):
        first = model.incremental_forward(c=mel_of(model), T=T, test_inputs=given, log_scale_min=FLOOR)
        second = model.incremental_forward(c=mel_of(model), T=None, test_inputs=given, log_scale_min=FLOOR)
    return first.numpy(), second.numpy()


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_initial_input_is_heard_first(kind: str, our_sampler: None) -> None:
    model = model_of(**CASES[kind])
    if kind == "values":
        first = torch.full((1, 1, 1), 0.7)
    else:
        first = torch.zeros(1, 1, 256)
        first[:, :, 3] = 1
    same(*both(model, c=mel_of(model), T=T, initial_input=first, log_scale_min=FLOOR))
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        plain = model.incremental_forward(c=mel_of(model), T=T, log_scale_min=FLOOR)
        other = model.incremental_forward(c=mel_of(model), T=T, log_scale_min=FLOOR, initial_input=first)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("table", [True, False])
def test_speakers(table: bool, our_sampler: None) -> None:
    model = model_of(**VALUES, gin_channels=5, n_speakers=4, use_speaker_embedding=table)
    g = torch.tensor([[2]]) if table else torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    same(*both(model, c=mel_of(model), g=g, T=T, log_scale_min=FLOOR))
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        one = model.incremental_forward(c=mel_of(model), g=g, T=T)
        if not table:
            assert torch.equal(one, model.incremental_forward(c=mel_of(model), g=g[:, :, None], T=T))
        two = model.incremental_forward(c=mel_of(model).repeat(2, 1, 1), g=g, T=T)
        torch.testing.assert_close(two[:1], one, rtol=0, atol=PATCHED)
        assert (two[0] - two[1]).abs().max() > 0.01
        assert not torch.equal(one, model.incremental_forward(c=mel_of(model), g=g + 1, T=T))


def test_generation_code_as_people_have_it(our_sampler: None) -> None:
    """make_generation_fast_, T as a NumPy integer, positional arguments."""
    model = model_of(**VALUES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.make_generation_fast_()
    first, T_ = torch.zeros(1, 1, 1), np.int64(T)
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        ours = model.incremental_forward(first, mel_of(model), None, T_, None, lambda x: x, True, True, FLOOR)
    with torch.no_grad():
        theirs = model.incremental_forward(first, mel_of(model), None, T_, None, lambda x: x, True, True, FLOOR)
    same(ours.numpy(), theirs.numpy())


def test_tqdm_sees_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, whole = model_of(**VALUES), [], []

    def bar(steps: Any) -> Any:
        whole.append(steps)
        for step in steps:
            seen.append(step)
            yield step
        seen.append("closed")

    with patch(model, strict=True), torch.no_grad():
        model.incremental_forward(c=mel_of(model, 2), T=T, tqdm=bar)
        assert whole == [range(T)] and seen == [*range(T), "closed"]

        def stop(steps: Any) -> Any:
            yield 0
            raise KeyboardInterrupt

        # While sound is made, not when it is all there.
        monkeypatch.setattr(Steps, "finish", lambda self: pytest.fail("was not stopped"))
        with pytest.raises(KeyboardInterrupt):
            model.incremental_forward(c=mel_of(model), T=T, tqdm=stop)


def test_steps_follow_the_progress_of_all_streams() -> None:
    seen: list[int] = []
    steps = Steps(lambda whole: (seen.append(t) for t in whole), 10, 3)
    for done, reached in ((0, 0), (8, 2), (9, 3), (6, 3), (29, 9), (30, 10)):
        steps(done, 30)
        assert seen == list(range(reached))


def test_seeds() -> None:
    model = model_of(**VALUES)
    c = mel_of(model)

    def make() -> Any:
        with torch.no_grad():
            return model.incremental_forward(c=c, T=T)

    with patch(model):
        torch.manual_seed(3)
        first, second = make(), make()
        torch.manual_seed(3)
        assert torch.equal(make(), first) and not torch.equal(first, second)
    with patch(model, seed=4, dtype="fp32"):
        fixed = make()
        assert torch.equal(make(), fixed) and not torch.equal(fixed, first)
    with patch(model, seed=4, threads=1, dtype="fp32", backend="reference"):
        np.testing.assert_allclose(make(), fixed, rtol=0, atol=PATCHED)


def test_the_number_format_is_the_vocoder_s_unless_asked_for() -> None:
    model = model_of(**VALUES)
    formats: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            "wavenet_fast.patching.live.prepare",
            lambda config, weights, backend, device, dtype: formats.append(dtype) or prepare(config, weights, "cpu"),
        )
        for options in ({}, {"dtype": "bf16"}):
            with patch(model, strict=True, **options), torch.no_grad():
                assert model.incremental_forward(c=mel_of(model), T=T).shape == (1, 1, T)
    assert formats == ["auto", "bf16"]


def test_weights_count_as_they_are_at_the_call() -> None:
    model = model_of(**VALUES)
    c = mel_of(model)
    with patch(model, strict=True, seed=SEED, dtype="fp32"), torch.no_grad():
        before = model.incremental_forward(c=c, T=T)
        model.conv_layers[2].conv.weight_v.data.mul_(-1)
        assert not torch.equal(model.incremental_forward(c=c, T=T), before)
        model.conv_layers[2].conv.weight_v.data.mul_(-1)
        assert torch.equal(model.incremental_forward(c=c, T=T), before)


def test_it_is_undone_at_exit() -> None:
    model = model_of(**VALUES)
    original = model.incremental_forward
    with patch(model) as same_model:
        assert same_model is model
        outer = model.incremental_forward
        assert outer != original and outer.__name__ == "incremental_forward"
        with patch(model, seed=1):
            assert model.incremental_forward is not outer
        assert model.incremental_forward is outer
    assert model.incremental_forward == original and "incremental_forward" not in vars(model)
    with pytest.raises(ZeroDivisionError), patch(model):
        raise ZeroDivisionError
    assert model.incremental_forward == original


UNSUPPORTED = {
    "no class": (CLASSES, {"quantize": False}, "feed back what is no class"),
    "soft inputs": (CLASSES, {"initial_input": torch.full((1, 1, 256), 1 / 256)}, "not one-hot"),
    "loud inputs": (VALUES, {"test_inputs": torch.full((1, 1, 4), 3.0)}, "beyond ±2"),
    "no mel": (VALUES, {"c": None}, "no conditioning"),
    "a voice that changes": ({**VALUES, "gin_channels": 5, "use_speaker_embedding": False},
                             {"g": torch.linspace(0, 1, 5 * T).reshape(1, 5, T)}, "g changes"),
    "no voice": ({**VALUES, "gin_channels": 5, "use_speaker_embedding": False}, {"g": None}, "g is None"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_is_not_possible_is_left_to_the_original_with_one_warning(what: str) -> None:
    changes, arguments, words = UNSUPPORTED[what]
    model = model_of(**changes)
    arguments = {"c": mel_of(model), "T": T, **arguments}
    with torch.no_grad(), pytest.warns(PatchWarning, match=words) as told, patch(model):
        made = [model.incremental_forward(**arguments) for _ in range(2)]
        assert all(len(y) == 1 and y.shape[2] == T for y in made)
    assert len([w for w in told if issubclass(w.category, PatchWarning)]) == 1
    assert told[0].filename == __file__
    with torch.no_grad(), patch(model, strict=True), pytest.raises(InputError, match=words):
        model.incremental_forward(**arguments)


def test_errors_of_the_original_stay_its_own() -> None:
    model = model_of(**VALUES)
    with patch(model):
        with pytest.raises(TypeError, match="colour"):
            model.incremental_forward(colour=3)
        model.train()
        with pytest.raises(RuntimeError, match="eval mode"), pytest.warns(PatchWarning, match=r"model\.eval\(\)"):
            model.incremental_forward(c=mel_of(model), T=T)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"T": T + 1}, ShapeError, f"c is .*{T}.* T is {T + 1}"),
        ({"c": torch.rand(1, MELS + 1, FRAMES)}, ShapeError, f"needs \\(B, {MELS}, {T}\\)"),
        ({"c": torch.full((1, MELS, FRAMES), float("nan"))}, InputError, "NaN"),
        ({"test_inputs": torch.zeros(2, 1, 3)}, ShapeError, "test_inputs is for 2 utterances, and c for 1"),
        ({"initial_input": torch.zeros(1, 2, 3)}, ShapeError, "initial_input has shape"),
        ({"T": None}, InputError, "T is None"),
    ],
)
def test_bad_arguments_are_sentences(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = model_of(**VALUES)
    with patch(model), torch.no_grad(), pytest.raises(error, match=words):
        model.incremental_forward(**{"c": mel_of(model), "T": T, **arguments})


def test_models_that_cannot_be_imported_are_left_alone() -> None:
    unconditioned = model_of(**VALUES, cin_channels=-1, upsample_conditional_features=False)
    with pytest.warns(PatchWarning, match="trained without a mel"), patch(unconditioned):
        assert "incremental_forward" not in vars(unconditioned)
    with pytest.raises(InputError, match="trained without a mel"), patch(unconditioned, strict=True):
        pass


def test_a_skip_rule_that_nothing_tells_is_asked_for(our_sampler: None) -> None:
    model = model_of(**VALUES)
    del model.legacy
    with pytest.raises(InputError, match="--skip-rule"), patch(model, strict=True):
        pass
    with patch(model, strict=True, seed=SEED, dtype="fp32", skip_rule="running"), torch.no_grad():
        ours = model.incremental_forward(c=mel_of(model), T=T, log_scale_min=FLOOR)
    model.legacy = True
    with torch.no_grad():
        same(ours.numpy(), model.incremental_forward(c=mel_of(model), T=T, log_scale_min=FLOOR).numpy())


def test_other_models_are_refused() -> None:
    for other, words in (
        (torch.nn.Linear(3, 3), "Linear has no method that can be replaced"),
        (torch.nn.DataParallel(model_of(**VALUES)), r"wrapped in a DataParallel; patch what is inside, model\.module"),
        (3, "int has no method"),
    ):
        with pytest.raises(InputError, match=words), patch(other):
            pass
