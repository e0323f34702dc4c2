"""Voices on the Hugging Face Hub: from its cache, by its library, and what is said where either is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from children import python

from wavenet_fast import CheckpointError, Vocoder
from wavenet_fast.checkpoint import load_checkpoint, resolve, save_checkpoint
from wavenet_fast.hub import FILES, in_cache, is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, make_checkpoint) -> Path:
    """A cache of the Hub as its library lays it out, with org/voice in it: files are links into blobs/."""
    repository = tmp_path / "hub" / "models--org--voice"
    snapshot = repository / "snapshots" / COMMIT
    save_checkpoint(tmp_path / "made", make_checkpoint())
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    for file in (tmp_path / "made").iterdir():
        shutil.copy(file, repository / "blobs" / f"blob-of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-of-{file.name}")
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


LOAD = (
    "import sys, wavenet_fast\n"
    "try:\n"
    "    voc = wavenet_fast.Vocoder.from_pretrained(*sys.argv[1:2], **eval(sys.argv[2]))\n"
    "    print(voc.config.n_mels, sum(abs(w).sum() for w in voc._checkpoint.weights.values()))\n"
    "except wavenet_fast.CheckpointError as error:\n"
    "    print(error)\n"
)


def test_a_cached_voice_needs_no_network(cache, tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    total = sum(np.abs(w).sum() for w in load_checkpoint(tmp_path / "made").weights.values())
    for options, offline in (({}, "1"), ({"local_files_only": True}, "0"), ({"revision": COMMIT}, "1")):
        said = python(LOAD, "org/voice", options, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=offline).split()
        assert said[0] == "5" and float(said[1]) == pytest.approx(float(total), rel=1e-6)


def test_offline_it_says_so(cache):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    for options, offline, words in (
        ({}, "1", "was not asked for it (HF_HUB_OFFLINE is set)"),
        ({"local_files_only": True}, "0", "was not asked for it (local_files_only was given)"),
        ({"revision": "v2"}, "1", "org/other at v2 is neither"),
    ):
        said = python(LOAD, "org/other", options, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=offline)
        assert words in said and "go online, or give a directory" in said and "Traceback" not in said


def test_an_unreachable_hub_is_a_sentence(cache):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache)}
    said = python(LOAD, "org/other", {}, **nowhere)
    assert "org/other is neither a directory nor" in said and "could not be asked for it" in said, said


def test_only_what_a_voice_consists_of_is_downloaded(cache, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    asked = {}

    def answer(name, **options):
        asked.update(options, name=name)
        return str(cache / "models--org--voice" / "snapshots" / COMMIT)

    monkeypatch.setattr(hub, "snapshot_download", answer)
    voc = Vocoder.from_pretrained("org/voice", revision="v2", local_files_only=True, backend="cpu", dtype="fp32")
    assert voc.n_mels == 5
    assert asked == {
        "name": "org/voice", "revision": "v2", "local_files_only": True, "allow_patterns": list(FILES),
    }  # fmt: skip
    assert not any("*" in name or name.endswith((".py", ".bin", ".pt", ".pth", ".pkl")) for name in FILES)


def test_what_the_library_raises_is_a_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    def refuse(*_, **__):
        raise RuntimeError("401 Client Error.\n\nRepository Not Found for url: …\nA second line")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"the Hugging Face Hub does not give it: 401 Client Error\.$"):
        resolve("org/voice")


def test_without_the_library_a_sentence_says_what_to_install():
    said = python("import sys; sys.modules['huggingface_hub'] = None\n" + LOAD, "org/voice", {})
    assert "org/voice is neither a directory nor a bundled voice" in said and "wavenet-fast[hub]" in said


@pytest.mark.parametrize(
    "name", ["voice", "/org/voice", "./org/voice", "a/b/c", "../voice", "org/", "a b/c", "org\\v/x"]
)
def test_other_names_are_never_looked_up(name, monkeypatch):
    monkeypatch.setattr("wavenet_fast.checkpoint.fetch", lambda *_: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match="neither a directory nor a bundled voice"):
        resolve(name)


def test_a_path_under_a_folder_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/voice")
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/voice")


def test_links_lead_into_the_cache_s_own_blobs_only(cache, tmp_path):
    snapshot = cache / "models--org--voice" / "snapshots" / COMMIT
    assert load_checkpoint(snapshot).config.n_mels == 5
    assert in_cache(snapshot) is not None and in_cache(tmp_path / "snapshots" / COMMIT) is None
    link = snapshot / "model.safetensors"
    link.unlink()
    link.symlink_to(tmp_path / "made" / "model.safetensors")
    with pytest.raises(CheckpointError, match="link out of the directory"):
        load_checkpoint(snapshot)
    link.unlink()
    link.symlink_to("../../blobs/blob-of-model.safetensors")
    (cache / "models--org--voice" / "blobs").rename(tmp_path / "elsewhere")
    (cache / "models--org--voice" / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="link out of the directory"):
        load_checkpoint(snapshot)
