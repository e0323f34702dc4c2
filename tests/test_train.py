"""The trainer: its fast forward and backward equal the reference's, its loss equals the sampler's likelihood, and a
run can be stopped, resumed and loaded."""

import json
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch, which the test extra installs")
torch.set_num_threads(1)  # small tensors: more threads only wait for one another

from wavenet_fast import train  # noqa: E402
from wavenet_fast.checkpoint import load_checkpoint  # noqa: E402
from wavenet_fast.config import (  # noqa: E402
    CategoricalHead,
    Conditioning,
    FrameConv,
    GaussianHead,
    Hold,
    Linear,
    LogisticHead,
    MelSpec,
    RepeatStage,
    ScalarInput,
    Signal,
    Stages,
    WaveNetConfig,
    encode,
)
from wavenet_fast.errors import AudioError, CheckpointError, ConfigError, ShapeError  # noqa: E402
from wavenet_fast.melfile import write_mel  # noqa: E402
from wavenet_fast.sampling import nll_bits  # noqa: E402

HOP = 10
SPEC = MelSpec(sample_rate=8000, n_fft=64, hop_length=HOP, win_length=40, n_mels=5, fmax=4000.0)


def small_config(**changes) -> WaveNetConfig:
    base = WaveNetConfig(
        sample_rate=8000,
        hop_length=HOP,
        n_mels=5,
        dilations=(1, 3, 7),
        kernel_size=3,
        residual_channels=6,
        gate_channels=10,
        skip_channels=7,
        head_channels=9,
        skip_scale=0.5,
        residual_scale=0.7,
        head=CategoricalHead(classes=12),
        conditioning=Conditioning(standardise=True, network=(FrameConv(channels=8, kernel_size=3, activation="relu"),)),
    )
    return msgspec.structs.replace(base, **changes)


def utterances(config: WaveNetConfig, count: int = 2, frames: int = 40) -> list[train.Utterance]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        n = frames * config.hop_length
        if isinstance(config.head, CategoricalHead):
            sound = rng.integers(0, config.head.classes, n + 1)
        else:
            sound = rng.uniform(-1, 1, n + 1).astype(np.float32)
        mel = rng.standard_normal((frames, config.n_mels)).astype(np.float32)
        made.append(train.Utterance(f"u{i}", sound[:-1], sound[1:], mel))
    return made


def busy_trainer(config: WaveNetConfig) -> train.Trainer:
    """A trainer whose weights are all non-zero, so that no gradient is hidden behind a zero output layer."""
    trainer = train.Trainer(
        config, SPEC, train.Schedule(segments=2, segment_frames=5, products="fp32", compile=False), utterances(config)
    )
    with torch.no_grad():
        for w in trainer.weights.values():
            if w.requires_grad:
                w.add_(torch.randn_like(w) * 0.5)
    return trainer


UPSAMPLING = {
    "hold": Conditioning(standardise=True, upsampling=Hold()),
    "hold-earlier": Conditioning(upsampling=Hold(), offset=-1),
    "linear": Conditioning(upsampling=Linear(frame_centre=0.0)),
    "linear-half": Conditioning(upsampling=Linear(frame_centre=0.5), offset=-1),
}


@pytest.mark.parametrize("upsampling", UPSAMPLING)
@pytest.mark.parametrize("rule", ["sum", "running"])
def test_fast_forward_and_gradients_equal_the_reference(upsampling, rule):
    """Two segments in one row against the reference on each alone: logits and every gradient."""
    config = small_config(conditioning=UPSAMPLING[upsampling], skip_rule=rule)
    trainer = busy_trainer(config)
    batch = train.cut_segments(trainer.utterances, [(0, 6), (1, 11)], 5, trainer.model.margin, config)
    trained = {n: w for n, w in trainer.weights.items() if w.requires_grad}

    samples = batch.target.shape[1]
    fast = trainer.model.segment_logits(batch)[:, -samples:]
    total, count = trainer.model.loss(batch)
    fast_grads = torch.autograd.grad(total / count, list(trained.values()))

    plain = trainer.model.plain_segment_logits(batch)[:, -samples:]
    plain_loss = train.bits(plain[batch.counted], batch.target[batch.counted], config).mean()
    plain_grads = torch.autograd.grad(plain_loss, list(trained.values()))

    assert fast.std() > 0.3 and count == batch.counted.sum()
    torch.testing.assert_close(total / count, plain_loss)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=2e-5)
    for name, a, b in zip(trained, fast_grads, plain_grads, strict=True):
        assert b.abs().max() > 0, name
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * float(b.abs().max() + 1), msg=name)


def test_one_layer_and_no_biases():
    from wavenet_fast.config import Biases

    off = Biases(**dict.fromkeys(Biases.__struct_fields__, False))
    config = small_config(dilations=(2,), biases=off)
    trainer = busy_trainer(config)
    batch = train.cut_segments(trainer.utterances, [(0, 6)], 5, trainer.model.margin, config)
    samples = batch.target.shape[1]
    fast, plain = trainer.model.segment_logits(batch), trainer.model.plain_segment_logits(batch)
    torch.testing.assert_close(fast[:, -samples:], plain[:, -samples:], rtol=1e-5, atol=2e-5)


def test_segments_line_up_with_the_recording():
    """History is the target one sample earlier; the context has no target; nothing counts beyond the end."""
    config = small_config()
    us = utterances(config)
    batch = train.cut_segments(us, [(0, 0), (1, 38)], 5, 2, config)
    context = -(-(config.receptive_field - 1) // HOP) * HOP
    history = batch.history.view(2, -1).numpy()
    assert history.shape == (2, context + 5 * HOP) and batch.target.shape == batch.counted.shape == (2, 5 * HOP)
    np.testing.assert_array_equal(history[0, context:], us[0].history[: 5 * HOP])
    np.testing.assert_array_equal(batch.target[0].numpy(), us[0].target[: 5 * HOP])
    assert batch.counted[0].all() and batch.counted[1].tolist() == [True] * (2 * HOP) + [False] * (3 * HOP)


@pytest.mark.parametrize("head", [LogisticHead(components=4), GaussianHead(components=1), GaussianHead(components=3)])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_loss_of_continuous_heads_is_the_likelihood(head, spread):
    config = small_config(head=head, input=ScalarInput(), signal=Signal(levels=256), conditioning=UPSAMPLING["hold"])
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((500, config.out_channels)) * spread).astype(np.float32)
    target = np.clip(rng.standard_normal(500), -1, 1).astype(np.float32)
    ours = train.bits(torch.from_numpy(logits), torch.from_numpy(target), config).numpy()
    np.testing.assert_allclose(ours, nll_bits(logits, target, head, 256), rtol=2e-3, atol=2e-3)


def test_learned_upsampling_trains():
    config = small_config(
        conditioning=Conditioning(upsampling=Stages(stages=(RepeatStage(scale=HOP, kernel_size=5, image=True),)))
    )
    trainer = busy_trainer(config)
    assert np.isfinite(trainer.step(0.5))


def test_orthogonalised_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in [(3, 20, 50), (2, 50, 20)]:
        values = torch.linalg.svdvals(train.orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    import soundfile

    rng = np.random.default_rng(0)
    for i in range(4):
        t = np.arange(1200) / 8000
        wav = 0.4 * np.sin(2 * np.pi * (200 + 50 * i) * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(tmp_path / f"r{i}.wav", wav, 8000)
    return tmp_path


def plan_file(folder: Path, **training) -> Path:
    path = folder / "plan.json"
    rates = {"matrix_rate": 0.02, "vector_rate": 0.01}
    schedule = train.Schedule(segments=2, segment_frames=20, validation_files=1, compile=False, **rates, **training)
    path.write_text(json.dumps({"model": encode(small_config()), "mel": encode(SPEC), "training": encode(schedule)}))
    return path


def test_a_run_learns_saves_resumes_and_loads(recordings, tmp_path):
    out, said = tmp_path / "voice", []
    first, _ = train.run(recordings, out, plan_file(tmp_path, steps=60), minutes=60, threads=1, say=said.append)
    assert first < np.log2(12) - 0.3, said
    voice = load_checkpoint(out)
    assert voice.config == small_config() and voice.mel == SPEC
    plan = plan_file(tmp_path, steps=90)
    second, _ = train.run(recordings, out, plan, minutes=60, resume=True, threads=1, say=said.append)
    assert second <= first and any("resumed" in line for line in said)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [60, 90]
    with pytest.raises(ConfigError, match="leave out --from"):
        train.run(recordings, out, plan, resume=True, start_from=out)
    changed = json.loads(plan.read_text())
    changed["mel"]["fmin"] = 50.0
    plan.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="another model or mel"):
        train.run(recordings, out, plan, minutes=60, resume=True)
    (out / "training.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="no state of a training"):
        train.run(recordings, out, plan, minutes=60, resume=True)
    with pytest.raises(CheckpointError, match="--resume"):
        train.run(recordings, out, plan, minutes=60)


def test_a_run_can_begin_with_another_voice(recordings, tmp_path):
    """The first step of a run that starts from a trained voice is near that voice's loss, not at log₂ A."""
    plan = plan_file(tmp_path, steps=60)
    best, _ = train.run(recordings, tmp_path / "first", plan, minutes=60, threads=1, say=lambda line: None)
    again = plan_file(tmp_path, steps=1)
    second, _ = train.run(
        recordings, tmp_path / "second", again, minutes=60, threads=1, say=lambda line: None,
        start_from=tmp_path / "first",
    )  # fmt: skip
    assert abs(second - best) < 0.1
    other = json.loads(again.read_text())
    other["model"]["skip_channels"] = 8
    again.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="another network"):
        train.run(recordings, tmp_path / "third", again, minutes=1, start_from=tmp_path / "first")


def test_a_mel_beside_the_recording_is_used(recordings):
    given = np.full((5, 120), -3.0, np.float32)
    np.save(recordings / "r1.npy", given)
    loaded = list(train.load_utterances(recordings, small_config(), SPEC, False))
    np.testing.assert_array_equal(loaded[1].mel, given.T)
    assert loaded[0].mel.std() > 0.1
    other = msgspec.structs.replace(SPEC, fmin=50.0)
    write_mel(recordings / "r1.npz", given, other)
    with pytest.raises(AudioError, match=r"fmin is 50\.0, wanted 0\.0"):
        list(train.load_utterances(recordings, small_config(), SPEC, False))
    (recordings / "r1.npz").unlink()
    np.save(recordings / "r1.npy", given[:, :60])
    with pytest.raises(ShapeError, match=r"r1\.wav: 60 frames"):
        list(train.load_utterances(recordings, small_config(), SPEC, False))


def test_refusals_are_sentences(recordings, tmp_path):
    plan = plan_file(tmp_path)
    with pytest.raises(AudioError, match=r"no \.wav"):
        train.run(tmp_path / "nowhere", tmp_path / "o", plan, minutes=1)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train.run(recordings, tmp_path / "o", plan, minutes=1, resume=True)
    with pytest.raises(ConfigError, match="minutes"):
        train.run(recordings, tmp_path / "o", plan, minutes=0)
    parts = json.loads(plan.read_text())
    for field, value, word in [("decay", 0, "decay"), ("ema", 1, "ema"), ("products", "fp8", "products")]:
        plan.write_text(json.dumps(parts | {"training": {field: value}}))
        with pytest.raises(ConfigError, match=word):
            train.run(recordings, tmp_path / "o", plan, minutes=1)
    parts["model"]["speakers"] = {"channels": 3}
    plan.write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match="one speaker"):
        train.run(recordings, tmp_path / "o", plan, minutes=1)
    plan.write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        train.run(recordings, tmp_path / "o", plan, minutes=1)
    assert not (tmp_path / "o").exists()


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_the_compiled_loss_and_its_gradients_equal_the_plain_ones():
    trainer = busy_trainer(small_config())
    trained = [w for w in trainer.weights.values() if w.requires_grad]
    said = []
    fast = train.compiled(trainer.model.loss, said.append)
    for start in (6, 30):  # the second segment reaches beyond the recording's end
        batch = train.cut_segments(trainer.utterances, [(0, start), (1, 38)], 5, trainer.model.margin, trainer.config)
        (total, count), (plain, _) = fast(batch), trainer.model.loss(batch)
        torch.testing.assert_close(total, plain)
        for a, b in zip(torch.autograd.grad(total, trained), torch.autograd.grad(plain, trained), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * float(b.abs().max() + 1))
        assert count == 7 * HOP
    assert not said


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch):
    trainer = busy_trainer(small_config())
    batch = train.cut_segments(trainer.utterances, [(0, 6), (1, 11)], 5, trainer.model.margin, trainer.config)
    tried, said = [], []

    def broken(batch):
        tried.append(batch)
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: broken)
    loss = train.compiled(trainer.model.loss, said.append)
    assert loss(batch)[0] == loss(batch)[0] == trainer.model.loss(batch)[0]
    assert len(tried) == len(said) == 1 and "no C++ compiler)" in said[0]


def test_bf16_products_follow_fp32():
    """Logits of 16-bit products lie within a few roundings of the exact ones, and are not the exact ones."""
    config = small_config()
    trainer = busy_trainer(config)
    batch = train.cut_segments(trainer.utterances, [(0, 6), (1, 11)], 5, trainer.model.margin, config)
    exact = trainer.model.segment_logits(batch)
    rounded = train.TrainingModel(config, trainer.weights, torch.bfloat16).segment_logits(batch).float()
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-4 < error < 0.05


def test_validation_covers_every_recording_with_whole_steps():
    trainer = busy_trainer(small_config())
    seen = []
    loss = trainer.averaged_loss

    def watched(batch):
        assert batch.target.shape == (2, 5 * HOP)
        seen.append(loss(batch))
        return seen[-1]

    trainer.averaged_loss = watched
    score = trainer.validate(utterances(trainer.config, count=3, frames=31), share=0.5)
    # Frames 0, 10, 20 of each recording are beginnings (30 would count one frame of five); five steps of two.
    assert [int(count) for _, count in seen] == [2 * 5 * HOP] * 5
    assert score == pytest.approx(sum(float(t) for t, _ in seen) / sum(int(c) for _, c in seen))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_ends_a_run_with_a_usable_voice(recordings, tmp_path):
    """It is sent from within the run, after step 20; the voice is there, and the run goes on where it was."""
    out, plan, steps = tmp_path / "voice", plan_file(tmp_path), []

    def watch(done, total, recent):
        assert 0 < done < total == 60 and 0 < recent < 9
        steps.append(done)
        if len(steps) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    _, stopped = train.run(recordings, out, plan, minutes=60, threads=1, say=lambda line: None, watch=watch)
    assert stopped == signal.SIGINT and len(steps) == 20
    assert load_checkpoint(out).config == small_config()
    _, stopped = train.run(
        recordings, out, plan_file(tmp_path, steps=25), minutes=60, resume=True, threads=1, say=lambda line: None,
    )  # fmt: skip
    assert stopped is None and json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 25
