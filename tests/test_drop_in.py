"""docs/drop-in.md: what it shows runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="the adapters are PyTorch modules")

from generating import GeneratingKanBayashi, GeneratingR9y9  # noqa: E402
from test_readme import blocks  # noqa: E402

from wavenet_fast import PatchWarning, Vocoder, convert_mel  # noqa: E402
from wavenet_fast.checkpoint import save_checkpoint  # noqa: E402
from wavenet_fast.mel import MEL_PRESETS  # noqa: E402

PAGE = (Path(__file__).parent.parent / "docs" / "drop-in.md").read_text(encoding="utf-8")
M, FRAMES = 80, 6


@pytest.fixture
def folder(tmp_path, monkeypatch, make_checkpoint, make_config) -> Path:
    """A working directory with the voice and the features that the page names."""
    mine = make_checkpoint(make_config(n_mels=M, sample_rate=16000, hop_length=200))
    save_checkpoint(tmp_path / "voices" / "mine", mine)
    norm = tmp_path / "dump" / "eval" / "norm"
    norm.mkdir(parents=True)
    for name in ("one", "two"):
        np.save(norm / f"{name}-feats.npy", np.full((FRAMES, M), -5, np.float32))
    lines = [f"{name} {norm / f'{name}-feats.npy'}\n" for name in ("one", "two")]
    (tmp_path / "dump" / "eval" / "feats.scp").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("error::wavenet_fast.errors.PatchWarning")
def test_python_examples(folder, make_checkpoint, make_config):
    """All of them, one after the other, with what a script has at hand by then."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": M, "vocab_size": 11}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "speaker_embedding_dim": 7}
    tts = transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config(**shape, **heads)).eval()
    log10 = replace(MEL_PRESETS["speecht5-16k"], hop_length=256)
    config = make_config(n_mels=M, sample_rate=16000, hop_length=256)
    mel = torch.full((M, FRAMES), -5.0)
    model, kan = GeneratingR9y9(1, 9).eval(), GeneratingKanBayashi().eval()
    at_hand = {
        "torch": torch, "mel": mel, "decibels": mel * (20 / float(np.log(10))), "tts": tts,
        "speecht5_voice": Vocoder(replaced(make_checkpoint(config), log10), "cpu"),
        "inputs": {"input_ids": torch.tensor([[4, 3, 7]])}, "speaker_embeddings": torch.zeros(1, 7),
        "tqdm": iter, "c": torch.zeros(1, 7, 9 + 2), "T": 9 * 6, "kan": kan, "x": torch.tensor([[kan.start]]),
        "h": torch.zeros(1, 7, 4), "n_samples": 20,
    }  # fmt: skip
    for code in blocks("python", PAGE):
        at_hand["model"] = at_hand.get("model", model) if "load_model" in code else model
        exec(compile(code, "drop-in.md", "exec"), at_hand)
    voc = at_hand["voc"]
    assert at_hand["audio"].shape == (FRAMES * voc.hop_length,) and at_hand["rate"] == voc.sample_rate
    assert at_hand["lengths"].tolist() == [FRAMES * voc.hop_length]
    assert at_hand["y"].shape == (1, 1, 54) and at_hand["samples"].shape == (20,)
    assert at_hand["speech"].ndim == 1 and at_hand["speech"].numel() % 256 == 0
    torch.testing.assert_close(at_hand["own"], mel)
    assert torch.equal(at_hand["unit"], convert_mel(mel, voc, "unit"))
    assert at_hand["wav"].shape == (1, 1, FRAMES * voc.hop_length)
    assert issubclass(PatchWarning, UserWarning)


def replaced(checkpoint, spec):
    from dataclasses import replace as of_dataclass

    return of_dataclass(checkpoint, mel=spec)


def test_commands(folder):
    for line in "".join(blocks("sh", PAGE)).splitlines():
        program, *words = shlex.split(line)
        assert program == "wavenet-fast-decode"
        code = "from wavenet_fast.cli.decode import main; main()"
        child = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, timeout=120, check=False)
        assert child.returncode == 0, child.stderr
    for name in ("wav", "wav-scp"):
        assert sorted(p.name for p in (folder / name).iterdir()) == ["one_gen.wav", "two_gen.wav"]


def test_the_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="wavenet-fast-decode")
    assert callable(script.load())


def test_links_and_options_exist():
    from wavenet_fast.cli.decode import decode_command

    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (Path(__file__).parent.parent / "docs" / target).exists(), target
    known = {option for parameter in decode_command.params for option in parameter.opts}
    told = set(re.findall(r"`(--[\w-]+)`", PAGE.split("## `wavenet-fast-decode`")[1].split("\n## ")[0]))
    assert told <= known and known - told <= {"--scp", "--feats-scp", "--dumpdir", "--outdir", "--verbose"}
