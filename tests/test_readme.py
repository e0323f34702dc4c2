"""The README: its examples run, its commands exist, its figures are filled in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from wavenet_fast.checkpoint import bundled_voices, save_checkpoint
from wavenet_fast.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, make_config, make_checkpoint) -> Path:
    """A working directory with what the examples use: a recording, a folder of them, and the voice they name.

    A bundled voice of that name goes before the one made here, which stands in where none is bundled."""
    (name,) = set(re.findall(r'from_pretrained\("([\w-]+)"\)', README))
    config = make_config(sample_rate=16000, hop_length=200, n_mels=20)
    if name not in bundled_voices():
        save_checkpoint(tmp_path / name, make_checkpoint(config))
        monkeypatch.setattr("wavenet_fast.checkpoint.bundled_voices", lambda: [])
    rng = np.random.default_rng(0)
    (tmp_path / "recordings").mkdir()
    for path in ("recording.wav", "recordings/one.wav", "recordings/two.wav"):
        with wave.open(str(tmp_path / path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((rng.standard_normal(4800) * 3000).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands():
    text = "".join(blocks("sh"))
    assert "pip install . && wavenet-fast demo\n" in text
    assert 'pip install ".[test]" && pytest\n' in text


def test_python_examples(folder):
    """All of them, one after the other, as a reader would type them."""
    code = "\n".join(blocks("python"))
    assert code.count("\n") > 15
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["out"]) == names["mel"].shape[1] * 200
    assert (folder / "out.wav").exists() and 0 < names["bits"] < 50


def test_command_line_examples(folder):
    lines = [line.partition("#")[0].strip() for line in "".join(blocks("sh")).splitlines()]
    lines = [line for line in lines if line.startswith("wavenet-fast ")]
    assert {shlex.split(line)[1] for line in lines} >= set(COMMANDS) - {"train", "demo", "convert"}
    voice = next(iter(folder.glob("*/config.json")), None)
    for line in lines:
        words = shlex.split(line)[1:]
        redirect = words.index(">") if ">" in words else len(words)
        if voice is not None and words[0] in ("mel", "vocode", "resynth"):
            words[1:1], redirect = ["--voice", str(voice.parent)], redirect + 2
        if words[0] == "bench":
            words += ["--seconds", "0.1"]
            redirect = len(words)
        child = subprocess.run(
            [sys.executable, "-m", "wavenet_fast", *words[:redirect]], capture_output=True, timeout=120
        )
        assert child.returncode == 0, (line, child.stderr)
        if redirect < len(words):
            (folder / words[redirect + 1]).write_bytes(child.stdout)
    assert sorted(p.name for p in (folder / "speech").iterdir()) == ["one.wav", "two.wav"]
    assert (folder / "speech.raw").stat().st_size == 2 * 200 * ((folder / "speech.wav").stat().st_size - 44) // 400


def test_the_training_example_names_real_options():
    from wavenet_fast.cli.tools import train_command

    (line,) = re.findall(r"^\$ (wavenet-fast train .*)$", README, re.MULTILINE)
    known = {option for parameter in train_command.params for option in parameter.opts}
    assert {word for word in shlex.split(line) if word.startswith("--")} <= known


def test_what_is_said_of_convert_names_real_options_and_tests():
    from wavenet_fast.cli.convert_command import convert_command

    page = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    section = README.split("## Checkpoints that you have")[1].split("##")[0]
    known = {option for parameter in convert_command.params for option in parameter.opts if option.startswith("--")}
    ours = re.sub(r"`python benchmarks/.*?`", "", page + section)
    named = set(re.findall(r"(--[a-z][a-z-]+)", ours)) - {"--voice"}
    assert named == known
    for test in re.findall(r"`(tests/\w+\.py)`", page):
        assert (ROOT / test).exists(), test


def test_links_and_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"`((?:wavenet_fast|csrc|tests)/[\w./]*)`", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), (name, target)


def test_configuration_table_names_real_fields():
    from wavenet_fast.config import WaveNetConfig

    table = README.split("| letter | field of `model`")[1].split("\n\n")[0]
    named = {field for row in table.splitlines()[2:] for field in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert named == set(WaveNetConfig.__struct_fields__) - {"sample_rate"}


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"SIZE_\w+|TODO|XXX", README)
    measured = README.split("<!-- measured: begin -->")[1].split("<!-- measured: end -->")[0]
    assert "|" in measured, "the table of measurements is empty"


def test_the_voice_that_the_examples_name_is_bundled():
    (name,) = set(re.findall(r'from_pretrained\("([\w-]+)"\)', README))
    assert name in bundled_voices()


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_ci_takes_its_test_command_from_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    pattern = re.search(r"grep -xE '(.*)' README.md", script.read_text())
    assert len(re.findall(f"^{pattern[1]}$", README, re.MULTILINE)) == 1
