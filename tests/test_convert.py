"""`wavenet-fast convert`: files as the projects' own code leaves them → voices, and what is asked for on the way."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cli_result import refused
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="the files of other projects are made and read with torch")

from families import KanBayashi, NewR9y9, NvWaveNet  # noqa: E402
from imports import largest_error, our_stages  # noqa: E402

from wavenet_fast import Vocoder  # noqa: E402
from wavenet_fast.audio import write_mel  # noqa: E402
from wavenet_fast.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from wavenet_fast.cli import cli  # noqa: E402
from wavenet_fast.errors import CheckpointError  # noqa: E402
from wavenet_fast.importers import Imported, files  # noqa: E402
from wavenet_fast.importers import child as child_module  # noqa: E402
from wavenet_fast.importers.mel_check import LIMIT  # noqa: E402
from wavenet_fast.mel import mel_spectrogram  # noqa: E402

FRAMES, HOP, RATE, BANDS = 9, 6, 8000, 7
HPARAMS = {
    "sample_rate": RATE, "stacks": 2, "hop_size": HOP, "num_mels": BANDS, "fmin": 80, "fmax": 3600, "fft_size": 64,
    "win_length": 64, "input_type": "raw", "out_channels": 9, "builder": "wavenet",
}  # fmt: skip


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["convert", *(str(a) for a in args)])


def made(network: Any) -> Any:
    torch.manual_seed(4)
    return network().eval()


def checkpoint(network: Any) -> dict[str, Any]:
    """As r9y9's train.py saves it."""
    return {"state_dict": network.state_dict(), "optimizer": None, "global_step": 1000, "global_epoch": 3}


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process, which has torch already, but where the process that reads them matters."""
    if "own_process" in request.fixturenames:
        return

    def child(asked: dict[str, Any], folder: Path, size: int, path: Path, hint: str = "") -> dict[str, Any]:
        found = json.loads(json.dumps(child_module.found({**asked, "folder": str(folder)})))
        if "error" in found:
            raise CheckpointError(f"{path}: {found['error']}")
        return found

    monkeypatch.setattr(files, "_child", child)
    monkeypatch.setattr(child_module, "limit", lambda size: None)


@pytest.fixture
def own_process() -> None:
    """Asks for the process that reads files in earnest."""


@pytest.fixture
def r9y9_file(tmp_path: Path) -> Path:
    """A file of the new generation, with its hparams and the statistics of its mels."""
    torch.save(checkpoint(made(lambda: NewR9y9(1, 9))), tmp_path / "checkpoint_step000001000_ema.pth")
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "meanvar.npz", mean=rng.standard_normal(BANDS) - 3, scale=rng.random(BANDS) + 0.5)
    return tmp_path / "checkpoint_step000001000_ema.pth"


def same_sound(voice: Path, network: Any, past: int = 0) -> None:
    """Every stage of the voice is that of the network that was saved."""
    loaded = load_checkpoint(voice)
    rng = np.random.default_rng(2)
    mel = rng.standard_normal((BANDS, FRAMES)).astype(np.float32)
    values = isinstance(network.start, float)
    drawn = rng.uniform(-1, 1, FRAMES * HOP) if values else rng.integers(0, loaded.config.out_channels, FRAMES * HOP)
    heard = np.concatenate([[network.start] * (past + 1), drawn[:-1]]).astype(np.float32 if values else np.int64)
    theirs = {name: stage[past:] for name, stage in network(heard, mel, past).items()}
    largest_error(our_stages(Imported(loaded.config, dict(loaded.weights)), mel, drawn), theirs)


# --- whole files ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_process")
def test_r9y9(r9y9_file: Path, tmp_path: Path) -> None:
    done = run(r9y9_file, tmp_path / "voice")
    assert done.exit_code == 0, done.output
    same_sound(tmp_path / "voice", made(lambda: NewR9y9(1, 9)))
    loaded = load_checkpoint(tmp_path / "voice")
    np.testing.assert_array_equal(loaded.weights["mel.mean"], np.load(tmp_path / "meanvar.npz")["mean"].astype("f4"))
    assert loaded.mel.normalize == "meanvar" and loaded.mel.n_fft == 64 and loaded.mel.log == "log10"
    told = loaded.info["provenance"]
    assert told["step"] == 1000 and told["source"]["bytes"] == r9y9_file.stat().st_size
    assert len(told["source"]["sha256"]) == 64 and "new generation" in told["family"]
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "voice")]).output
    assert "new generation" in shown and told["source"]["sha256"] in shown
    sound = Vocoder.from_pretrained(tmp_path / "voice", backend="cpu")(np.zeros((BANDS, 4), np.float32), seed=1)
    assert sound.shape == (4 * HOP,) and sound.std() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["checkpoint_step000001000_ema.pth", "hparams.json", "meanvar.npz", "voice"]
    )


def plainly(network: Any) -> dict[str, Any]:
    """As `make_generation_fast_` leaves it."""
    for module in network.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return network.state_dict()


def parametrized(network: Any) -> dict[str, Any]:
    """As the weight norm of newer versions of torch names it."""
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {}
    for name, value in network.state_dict().items():
        stem, _, last = name.rpartition(".")
        state[f"{stem}.{names.get(last, last)}"] = value
    return state


@pytest.mark.parametrize(
    "change", [plainly, parametrized, lambda n: {f"module.{k}": v for k, v in n.state_dict().items()}],
    ids=["no weight norm", "parametrized", "DataParallel"],
)  # fmt: skip
def test_other_ways_to_write_the_same_network(r9y9_file: Path, tmp_path: Path, change: Any) -> None:
    torch.save({"state_dict": change(made(lambda: NewR9y9(1, 9)))}, r9y9_file)
    assert run(r9y9_file, tmp_path / "voice").exit_code == 0
    same_sound(tmp_path / "voice", made(lambda: NewR9y9(1, 9)))


@pytest.mark.parametrize("step", [float("nan"), 10**400, [float("inf")], "\x1b[31m", True])
def test_a_step_that_is_no_number_is_left_out(r9y9_file: Path, tmp_path: Path, step: Any) -> None:
    torch.save({**checkpoint(made(lambda: NewR9y9(1, 9))), "global_step": step}, r9y9_file)
    assert run(r9y9_file, tmp_path / "voice").exit_code == 0
    assert load_checkpoint(tmp_path / "voice").info["provenance"]["step"] is None


def test_safetensors_need_no_pickle(r9y9_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file(made(lambda: NewR9y9(1, 9)).state_dict(), tmp_path / "state.safetensors")
    monkeypatch.setattr("subprocess.Popen", None)
    assert run(tmp_path / "state.safetensors", tmp_path / "voice").exit_code == 0
    same_sound(tmp_path / "voice", made(lambda: NewR9y9(1, 9)))


@pytest.mark.parametrize("statistics", ["stats.h5", "stats.npz"])
def test_kan_bayashi(tmp_path: Path, statistics: str) -> None:
    network = made(KanBayashi)
    torch.save({"model": network.state_dict()}, tmp_path / "checkpoint-final.pkl")
    torch.save(argparse.Namespace(**network.conf()), tmp_path / "model.conf")
    mean, scale = np.arange(BANDS, dtype=np.float64), np.ones(BANDS)
    if statistics == "stats.h5":
        h5py = pytest.importorskip("h5py", reason="stats.h5 is read with h5py")
        with h5py.File(tmp_path / statistics, "w") as file:
            file["melspc/mean"], file["melspc/scale"] = mean, scale
            file["mlsa/coef"], file["mlsa/alpha"] = np.array([0, 0.5]), 0.0
    else:
        np.savez(tmp_path / statistics, mean=mean, scale=scale)
    recipe = {"sample_rate": RATE, "n_fft": 64, "hop_length": HOP, "win_length": 64, "n_mels": BANDS, "fmax": 4000,
              "log": "log10", "floor": 1e-10, "normalize": "meanvar"}  # fmt: skip
    (tmp_path / "mel.json").write_text(json.dumps(recipe))
    options = [tmp_path / "checkpoint-final.pkl", tmp_path / "voice"]
    refused(run(*options), "--sample-rate")
    refused(run(*options, "--sample-rate", RATE), "recipe", "--mel")
    done = run(*options, "--sample-rate", RATE, "--mel", tmp_path / "mel.json")
    assert done.exit_code == 0, done.output
    assert ("noise-shaping" in done.stderr) == (statistics == "stats.h5")
    taps = load_checkpoint(tmp_path / "voice").weights.get("sound.filter", np.zeros(0))
    np.testing.assert_allclose(taps[:3], [1, 0.5, 0.125][: len(taps)], atol=1e-6)
    assert bool(len(taps)) == (statistics == "stats.h5")
    same_sound(tmp_path / "voice", network, past=40)
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "voice").weights["mel.mean"], mean.astype(np.float32))


@pytest.mark.usefixtures("own_process")
def test_a_module_of_nv_wavenet_is_read_only_on_trust(tmp_path: Path) -> None:
    network = made(NvWaveNet)
    torch.save({"model": network, "iteration": 7, "optimizer": {}, "learning_rate": 0.1}, tmp_path / "wavenet_7")
    refused(run(tmp_path / "wavenet_7", tmp_path / "voice"), "NvWaveNet", "--i-trust-this-file")
    options = [tmp_path / "wavenet_7", tmp_path / "voice", "--i-trust-this-file"]
    refused(run(*options), "recipe", "--mel")
    done = run(*options, "--mel", "elsewhere")
    assert done.exit_code == 0, done.output
    same_sound(tmp_path / "voice", network)
    loaded = load_checkpoint(tmp_path / "voice")
    assert loaded.config.hop_length == network.stride and loaded.info["provenance"]["step"] == 7
    voice = Vocoder.from_pretrained(tmp_path / "voice", backend="cpu")
    with pytest.raises(Exception, match="made elsewhere"):
        voice.mel(np.zeros(800, np.float32), voice.sample_rate)


def test_exported_weights_of_nv_wavenet(tmp_path: Path) -> None:
    network = made(NvWaveNet)
    torch.save(network.exported(), tmp_path / "model.pt")
    torch.save(network.state_dict(), tmp_path / "state.pt")
    (tmp_path / "config.json").write_text(json.dumps({"wavenet_config": {"upsamp_stride": network.stride}}))
    options = [tmp_path / "model.pt", tmp_path / "voice", "--mel", "elsewhere"]
    refused(run(*options), "--conditioning")
    done = run(*options, "--conditioning", tmp_path / "state.pt")
    assert done.exit_code == 0, done.output
    same_sound(tmp_path / "voice", network)


def test_our_own(tmp_path: Path, make_checkpoint: Any) -> None:
    original = make_checkpoint(license="MIT")
    save_checkpoint(tmp_path / "first", original)
    assert run(tmp_path / "first", tmp_path / "half", "--dtype", "fp16").exit_code == 0
    half = load_checkpoint(tmp_path / "half")
    assert half.config == original.config and half.info["license"] == "MIT"
    torch.save({k: torch.tensor(np.array(v)) for k, v in original.weights.items()}, tmp_path / "loose.pt")
    assert (
        run(tmp_path / "loose.pt", tmp_path / "again", "--hparams", tmp_path / "first" / "config.json").exit_code == 0
    )
    again = load_checkpoint(tmp_path / "again")
    assert again.config == original.config and again.mel == original.mel
    for name, weight in original.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


def test_the_file_that_autovc_publishes(tmp_path: Path) -> None:
    """Its name is enough for hparams, skip rule and recipe."""
    vocoder = pytest.importorskip("wavenet_vocoder", reason="wavenet-vocoder 0.1.1 is not installed")
    network = vocoder.WaveNet(
        out_channels=30, layers=8, stacks=4, residual_channels=4, gate_channels=4, skip_out_channels=4, cin_channels=80,
        upsample_conditional_features=True, upsample_scales=[4, 4, 4, 4], scalar_input=True,
    )  # fmt: skip
    torch.save(checkpoint(network), tmp_path / "checkpoint_step001000000_ema.pth")
    done = run(tmp_path / "checkpoint_step001000000_ema.pth", tmp_path / "voice", "--hparams", "autovc")
    assert done.exit_code == 0, done.output
    loaded = load_checkpoint(tmp_path / "voice")
    assert loaded.config.skip_rule == "running" and loaded.config.sample_rate == 16000
    assert (loaded.mel.ref_db, loaded.mel.fmin, loaded.mel.normalize) == (16, 90, "minmax01")


# --- what is asked for ------------------------------------------------------------------------------------------


def test_hparams_and_statistics_are_asked_for(r9y9_file: Path, tmp_path: Path) -> None:
    (tmp_path / "meanvar.npz").unlink()
    refused(run(r9y9_file, tmp_path / "voice"), "meanvar.joblib", "--stats")
    done = run(r9y9_file, tmp_path / "voice", "--mel", "elsewhere")
    assert done.exit_code == 0 and load_checkpoint(tmp_path / "voice").mel.normalize == "elsewhere"
    refused(run(r9y9_file, tmp_path / "other", "--mel", "r9y9-22"), "r9y9-22k", "elsewhere")
    (tmp_path / "hparams.json").unlink()
    refused(run(r9y9_file, tmp_path / "other"), "hparams.json", "--hparams")
    assert not (tmp_path / "other").exists()


def test_statistics_that_scikit_learn_made(r9y9_file: Path, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib comes with librosa")
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn comes with librosa")
    (tmp_path / "meanvar.npz").unlink()
    scaler = preprocessing.StandardScaler().fit(np.random.default_rng(1).standard_normal((50, BANDS)) * 3 + 1)
    joblib.dump(scaler, tmp_path / "meanvar.joblib")
    assert run(r9y9_file, tmp_path / "voice").exit_code == 0
    weights = load_checkpoint(tmp_path / "voice").weights
    np.testing.assert_array_equal(weights["mel.mean"], scaler.mean_.astype(np.float32))
    np.testing.assert_array_equal(weights["mel.scale"], scaler.scale_.astype(np.float32))


def test_the_mel_is_checked(r9y9_file: Path, tmp_path: Path) -> None:
    import soundfile

    wav = np.random.default_rng(3).uniform(-0.3, 0.3, 4000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wav, RATE, "FLOAT")
    assert run(r9y9_file, tmp_path / "voice").exit_code == 0
    loaded = load_checkpoint(tmp_path / "voice")
    mel = mel_spectrogram(wav, loaded.mel, loaded.weights["mel.mean"], loaded.weights["mel.scale"])
    np.save(tmp_path / "a.npy", mel.T)  # frames first, as r9y9's preprocessing writes it
    write_mel(tmp_path / "wrong.npy", mel * 0.9)
    done = run(r9y9_file, tmp_path / "again", "--mel-check", tmp_path / "a.wav", tmp_path / "a.npy")
    assert done.exit_code == 0 and "the recipe makes that mel" in done.stderr
    wrong = run(r9y9_file, tmp_path / "never", "--mel-check", tmp_path / "a.wav", tmp_path / "wrong.npy")
    refused(wrong, "differs", str(LIMIT))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "option, told",
    [
        (("--conditioning", "nowhere.pt"), "--conditioning is for files of nv-wavenet"),
        (("--sample-rate", "16000"), "--sample-rate is for files of kan-bayashi"),
        (("--mel", "nv-wavenet-16k"), "16000 in the recipe of its mels"),
    ],
)
def test_an_option_that_does_not_fit_is_never_ignored(
    r9y9_file: Path, tmp_path: Path, option: tuple[str, str], told: str
) -> None:
    result = run(r9y9_file, tmp_path / "voice", *option)
    refused(result, told)
    assert ".partial" not in result.stderr and not (tmp_path / "voice").exists()


def test_what_is_there_stays(r9y9_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused(run(r9y9_file, tmp_path / "mine", "--overwrite"), "no voice")
    refused(run(r9y9_file, tmp_path / "hparams.json"), "is a file")
    refused(run(r9y9_file, tmp_path / "not" / "there"), "make")
    assert run(r9y9_file, tmp_path / "voice").exit_code == 0
    before = (tmp_path / "voice" / "model.safetensors").stat().st_ino
    refused(run(r9y9_file, tmp_path / "voice"), "--overwrite")
    assert (tmp_path / "voice" / "model.safetensors").stat().st_ino == before
    assert run(r9y9_file, tmp_path / "voice", "--overwrite").exit_code == 0
    assert (tmp_path / "voice" / "model.safetensors").stat().st_ino != before


def test_a_conversion_that_stops_leaves_nothing(
    r9y9_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", stop)
    assert run(r9y9_file, tmp_path / "voice").exit_code == 130
    assert not [path for path in tmp_path.iterdir() if "voice" in path.name]


def test_a_full_disk_names_the_voice(r9y9_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    result = run(r9y9_file, tmp_path / "voice")
    refused(result, f"{tmp_path / 'voice'}: cannot be written", "No space left")
    assert ".partial" not in result.stderr and not (tmp_path / "voice").exists()


def test_the_benchmark_of_its_cost_runs(tmp_path: Path) -> None:
    pytest.importorskip("wavenet_vocoder", reason="wavenet-vocoder 0.1.1 is not installed")
    script = Path(__file__).parent.parent / "benchmarks" / "convert_cost.py"
    command = [sys.executable, script, "--layers", "4", "--rounds", "1", "--json", tmp_path / "cost.json"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, timeout=240)
    told = json.loads((tmp_path / "cost.json").read_text())
    assert told["file_bytes"] > 10_000_000 and len(told["seconds"]) == 1 and told["median_seconds"] > 0
    assert told["peak_over_file"] == max(told["peak_bytes"]) / told["file_bytes"]
