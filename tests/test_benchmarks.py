"""The benchmarks run, and what they time computes what it says. Nothing here looks at a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from common import GateError, expected_logits, forced_history, gate, standard_mel
from engine_models import MODELS, random_weights, small
from peer_step import LeftOut, Loop, Step, ring_step
from peer_systems import BUILDERS, Model, hifigan_scales

from wavenet_fast.backends.cpu import DTYPES
from wavenet_fast.cases import case
from wavenet_fast.config import (
    Conditioning,
    FrameConv,
    Linear,
    LogisticHead,
    RepeatStage,
    ScalarInput,
    Stages,
    TransposedStage,
)
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "peers.py"
STEPS = {
    "tiny": case("tiny"),
    "odd": case("odd"),
    "running": small(skip_rule="running", skip_scale=0.8, residual_scale=0.7),
    "logistic": small(input=ScalarInput(tanh=True), head=LogisticHead(components=3), skip_scale=0.5),
    "one logistic": small(input=ScalarInput(), head=LogisticHead(components=1, log_scale_min=-3.0)),
    "learned upsampling": small(
        conditioning=Conditioning(
            network=(FrameConv(channels=7, kernel_size=3),),
            upsampling=Stages(
                stages=(TransposedStage(scale=3, kernel_size=5, crop=1), RepeatStage(scale=2, kernel_size=3))
            ),
        )
    ),
    "interpolation": small(conditioning=Conditioning(upsampling=Linear(frame_centre=0.5), offset=-1)),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one quick run of peers.py writes; its picture lies beside."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("peers")
    files = {"--json": folder / "peers.json", "--plot": folder / "peers.png"}
    options = [str(word) for pair in files.items() for word in pair]
    command = [sys.executable, str(SCRIPT), "--case", "tiny", "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    told: dict[str, Any] = json.loads(files["--json"].read_text(encoding="utf-8"))
    for name in BUILDERS:
        assert name in done.stdout
    return told


@pytest.mark.parametrize("name", BUILDERS)
def test_a_quick_run_measures_every_system_or_says_why_not(result: dict[str, Any], name: str) -> None:
    if name in result["left_out"]:
        assert not name.startswith(("wavenet_fast", "reference", "PyTorch"))
        pytest.skip(result["left_out"][name])
    row = result["one_stream"][name]
    assert row["median_samples_per_second"] > 0
    assert len(row["samples_per_second"]) == 1
    assert result["systems"][name]["what"]


def test_a_quick_run_tells_machine_versions_command_and_curves(result: dict[str, Any]) -> None:
    about = result["about"]
    assert about["machine"]["processor"]
    assert about["versions"]["torch"] == torch.__version__
    assert about["command"].startswith("python benchmarks/peers.py --case tiny --quick")
    assert {"PyTorch eager", *(f"wavenet_fast {dtype}" for dtype in DTYPES)} <= result["batches"].keys()
    assert all(row.keys() == {"1", "2"} for row in result["batches"].values())


def test_patch_speed_measures_after_its_gate(tmp_path: Path) -> None:
    pytest.importorskip("wavenet_vocoder", reason="wavenet-vocoder 0.1.1 is not installed")
    script, file = SCRIPT.with_name("patch_speed.py"), tmp_path / "patch.json"
    command = [sys.executable, str(script), "--quick", "--streams", "1", "3", "--dtypes", "fp32", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["gate_error"]["fp32"] < 1e-5
    for systems in told["streams"].values():
        assert systems.keys() == {"its own", "patched, fp32"}
        assert all(row["median_samples_per_second"] > 0 for row in systems.values())


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_eager_loop_computes_the_references_logits(name: str, batch: int) -> None:
    config = STEPS[name]
    weights = random_weights(config)
    frames = max(config.dilations) * (config.kernel_size - 1) // config.hop_length + 2
    samples = frames * config.hop_length
    mel = standard_mel(config, weights, frames, batch)
    history = forced_history(config, samples).repeat(batch, 0)
    found = np.empty((batch, samples, config.out_channels), np.float32)
    with torch.inference_mode():
        loop = Loop(config, weights, ring_step(Step(config, weights)), batch)
        assert loop.run(mel, history, found) == batch * samples
    for b in range(batch):
        gate(name, found[b], expected_logits(config, weights, "fp32", mel[b : b + 1], frames), "fp32")


@pytest.mark.parametrize("name", ["tiny", "logistic", "one logistic"])
def test_the_step_draws_as_the_sampler_does(name: str) -> None:
    config = STEPS[name]
    step = Step(config, random_weights(config))
    logits = np.random.default_rng(0).standard_normal((500, config.out_channels)).astype(np.float32)
    u = uniforms(np.uint64(3), np.arange(500))
    drawn = step._sample(torch.from_numpy(logits), torch.from_numpy(u[:, :2].copy())).numpy()
    expected = sample(logits, u, config.head)
    assert (np.abs(drawn - expected) > 1e-5).mean() < 0.01


def test_the_gate_stops_wrong_weights() -> None:
    config, weights = STEPS["odd"], dict(random_weights(STEPS["odd"]))
    model = Model(config, dict(weights), threads=1)
    weights["layers.2.residual.bias"] = weights["layers.2.residual.bias"] + np.float32(0.01)
    found = expected_logits(config, weights, "fp32", model.mel, model.gate_frames)
    with pytest.raises(GateError, match="nothing is timed"):
        model.gate("this system", found)


def test_what_the_loop_cannot_run_is_left_out_in_a_sentence() -> None:
    config = MODELS["gaussian"]
    with pytest.raises(LeftOut, match="choose such a model"):
        Step(config, random_weights(config))


@pytest.mark.parametrize(
    "missing, name", [("transformers", "HiFi-GAN V1"), ("wavenet_vocoder", "r9y9 wavenet-vocoder")]
)
def test_a_missing_package_is_named(missing: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    config = case("tiny")
    with pytest.raises(LeftOut, match=r'is not installed; `pip install "\.\[bench\]"` adds it'):
        BUILDERS[name](Model(config, random_weights(config), threads=1))


def test_hifigans_factors_multiply_to_the_hop() -> None:
    assert hifigan_scales(256) == (8, 8, 2, 2)  # HiFi-GAN V1's and V2's own
    assert hifigan_scales(200) == (10, 5, 2, 2)
    with pytest.raises(LeftOut, match="no multiple"):
        hifigan_scales(11)
