"""Files that are damaged, or made to do harm, end in a sentence: nothing in them runs, and nothing is left behind."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import python
from cli_result import refused
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="the files of other projects are made and read with torch")

from wavenet_fast.cli import cli  # noqa: E402
from wavenet_fast.errors import CheckpointError  # noqa: E402
from wavenet_fast.importers import child, files  # noqa: E402
from wavenet_fast.importers.inert import Inert, ScalerReader, Something  # noqa: E402


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["convert", *(str(a) for a in args)])


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, trusted: bool, zipped: bool) -> None:
    harm, place = tmp_path / "harm", tmp_path / "checkpoint.pth"
    held = {"state_dict": {"first_conv.weight": torch.zeros(3)}, "optimizer": Harm(harm)}
    torch.save(held, place, _use_new_zipfile_serialization=zipped)
    options = ["--i-trust-this-file"] if trusted else []
    refused(run(place, tmp_path / "voice", *options), *(() if trusted else ("mkdir", "--i-trust-this-file")))
    assert not harm.exists() and not (tmp_path / "voice").exists()
    torch.load(place, weights_only=False)
    assert harm.exists()  # it would have


def test_a_reader_of_modules_makes_nothing_but_tensors_and_containers(tmp_path: Path) -> None:
    for held in (Harm(tmp_path / "harm"), [print, os.system, np.float64(3)]):
        told = Inert(io.BytesIO(pickle.dumps(held))).load()
        assert all(type(value).__mro__[1] is Something or isinstance(value, type) for value in np.atleast_1d(told))
        assert not (tmp_path / "harm").exists()
        ScalerReader(io.BytesIO(pickle.dumps(held))).load()
        assert not (tmp_path / "harm").exists()


def test_an_object_in_a_pickle_of_statistics_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    (tmp_path / "meanvar.joblib").write_bytes(pickle.dumps({"mean_": Harm(tmp_path / "harm"), "scale_": 1}))
    with pytest.raises(CheckpointError, match="numpy"):
        files.statistics_of(tmp_path / "meanvar.joblib")
    assert not (tmp_path / "harm").exists()


def truncated(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(5000)}}, path)
    path.write_bytes(path.read_bytes()[:9000])


def rewritten(path: Path, how: int, change: Callable[[str, bytes], bytes]) -> None:
    """A whole file of torch.save, with its records changed and stored or compressed."""
    torch.save({"state_dict": {"a": torch.ones(4), "b": torch.ones(500)}}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, record in records.items():
            archive.writestr(name, change(name, record))


def short_record(path: Path) -> None:
    """Mapped, the tensor would go on with the record behind its own."""
    rewritten(path, zipfile.ZIP_STORED, lambda name, record: record[:4] if name.endswith("/data/0") else record)


def compressed(path: Path) -> None:
    rewritten(path, zipfile.ZIP_DEFLATED, lambda name, record: record)


def old_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def huge_view(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(1 << 20, 1 << 10)}}, path)


def claims_memory(path: Path) -> None:
    """A byte array of 64 GiB, in a pickle of a few bytes."""
    body = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (64 << 30).to_bytes(5, "little") + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def quantised(path: Path) -> None:
    torch.save({"state_dict": {"first_conv.weight": torch.zeros(2, dtype=torch.complex64)}}, path)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncated, "not whole"),
    "a short record": (short_record, "not whole"),
    "compressed": (compressed, "compressed archive"),
    "a pickle that calls": (lambda path: path.write_bytes(pickle.dumps({"a": Harm(path)})), "not whole"),
    "tar": (old_tar, "before 0.1.10"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(999)), "no checkpoint"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "no checkpoint"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "missing": (lambda path: None, "not there"),
    "a huge view": (huge_view, "claims"),
    "TorchScript": (script, "TorchScript"),
    "complex": (quantised, "complex"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "no tensors"),
    "a number": (lambda path: torch.save(3, path), "no tensors"),
    "safetensors of lies": (lambda path: path.write_bytes(b"\xff\0\0\0\0\0\0\0{}"), "safetensors"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    make, word = DAMAGED[name]
    make(tmp_path / "a.pth")
    refused(run(tmp_path / "a.pth", tmp_path / "voice"), "a.pth", word)
    assert not (tmp_path / "voice").exists()


def test_what_is_named_safetensors_is_no_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    refused(run(tmp_path / "a.safetensors", tmp_path / "voice"), "no safetensors file", "name it .pth")


def test_a_tensor_of_eighty_axes(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 80, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(run(tmp_path / "a.safetensors", tmp_path / "voice"), "'a' has 80 axes")


def test_torchs_advice_to_read_without_care_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": Harm(tmp_path / "harm")}))
    result = run(tmp_path / "a.pth", tmp_path / "voice")
    refused(result, "damaged")
    assert "weights_only" not in result.stderr


def test_a_folder_that_cannot_be_written_to_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "limit", lambda size: None)
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    told = child.found({"job": "tensors", "path": tmp_path / "a.pth", "folder": tmp_path / "gone" / "x"})["error"]
    assert f"for a while in {tmp_path / 'gone'}" in told and "TMPDIR" in told


def test_memory_is_limited_while_a_pickle_is_read(tmp_path: Path) -> None:
    claims_memory(tmp_path / "a.pth")
    refused(run(tmp_path / "a.pth", tmp_path / "voice", "--i-trust-this-file"), "more memory")


def test_limits_hold() -> None:
    """What a file of no size may ask for: less than two gibibytes, a minute, no core dump."""
    code = """
import resource
from wavenet_fast.importers.child import limit
limit(0)
try:
    bytearray(2 << 30)
except MemoryError:
    print("memory", resource.getrlimit(resource.RLIMIT_CPU)[0] <= 65, resource.getrlimit(resource.RLIMIT_CORE)[0])
"""
    assert python(code).split() == ["memory", "True", "0"]


def test_a_process_that_ends_otherwise_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "a.pth")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CheckpointError, match="stopped"), files.reading(tmp_path / "a.pth"):
        pass


@pytest.mark.parametrize(
    "version, word", [(None, "wavenet-fast\\[torch\\]"), ("2.9.1", "2.10"), ("1.13.1+cu117", "2.10")]
)
def test_only_with_a_torch_that_can_be_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, word: str
) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "a.pth")

    def installed(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(CheckpointError, match=word), files.reading(tmp_path / "a.pth"):
        pass


def test_what_the_reading_process_says_is_not_taken_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "a.pth")
    for place in ([0, [1 << 40]], [-4, [2]], [0, [-1]], [2, [4]]):

        def child(asked: Any, folder: Path, *_: Any, place: Any = place) -> Any:
            np.zeros(4, np.float32).tofile(folder / files.TENSORS)
            return {"tensors": {"a": place}, "data": {}}

        monkeypatch.setattr(files, "_child", child)
        with pytest.raises(CheckpointError, match="not read whole"), files.reading(tmp_path / "a.pth"):
            pass


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}', '{"sample_rate": NaN}', "3"])
def test_hparams_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "hparams.json").write_text(text)
    with pytest.raises(Exception, match=r"hparams\.json"):
        files.plain_values(tmp_path / "hparams.json")


@pytest.mark.parametrize("held", [{"mean": [1, 2]}, {"mean": np.array([object()]), "scale": np.ones(1)}, {}])
def test_statistics_that_are_none(tmp_path: Path, held: dict[str, Any]) -> None:
    np.savez(tmp_path / "stats.npz", **held)
    with pytest.raises(CheckpointError, match=r"stats\.npz"):
        files.statistics_of(tmp_path / "stats.npz")


def test_a_folder_names_what_could_be_converted(tmp_path: Path) -> None:
    refused(run(tmp_path, tmp_path / "voice"), "there is no checkpoint file")
    (tmp_path / "checkpoint-final.pkl").write_bytes(b"\x80")
    refused(run(tmp_path, tmp_path / "voice"), "checkpoint-final.pkl")
    (tmp_path / "config.json").write_text(json.dumps({"wavenet_config": {}}))
    refused(run(tmp_path, tmp_path / "voice"), "config.json")
