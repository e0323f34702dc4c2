"""Mel files: what is read, what is refused before it takes memory, what is written."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavenet_fast.audio import read_mel, write_mel
from wavenet_fast.errors import AudioError, ShapeError
from wavenet_fast.mel import MEL_PRESETS

MEL = np.random.default_rng(0).normal(-5, 2, (80, 31)).astype(np.float32)
SPEC = MEL_PRESETS["nv-wavenet-16k"]


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def with_header(header: str | bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy of any header."""
    text = header if isinstance(header, bytes) else header.encode("latin1")
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + body


def claiming(shape: str, descr: str = "'<f4'", body: bytes = bytes(64), **rest: Any) -> bytes:
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", body, **rest)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        MEL,
        MEL.astype(">f4"),
        MEL.astype(np.float64),
        MEL.astype(">f8"),
        np.asfortranarray(MEL),
        np.asfortranarray(MEL.astype(np.float64)),
        MEL[:, :1],
        MEL[:, :0],
        MEL[:0],
        np.full((80, 3), 1e30, np.float32),
        np.full((80, 3), 1e-42, np.float32),
    ],
)
def test_floats_of_any_layout(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(array))
    np.savez_compressed(tmp_path / "b.npz", mel=array)
    (tmp_path / "wrong.suffix").write_bytes(npz(mel=array))
    for path in tmp_path.iterdir():
        found = read_mel(path)
        assert found.spec is None
        assert found.mel.dtype == np.dtype(np.float32)
        assert found.mel.dtype.isnative
        assert found.mel.flags.c_contiguous
        assert found.mel.flags.writeable
        np.testing.assert_array_equal(found.mel, array.astype(np.float32))


def test_half_precision() -> None:
    half = MEL.astype(np.float16)
    np.testing.assert_array_equal(read_mel(io.BytesIO(npy(half))).mel, half.astype(np.float32))


def test_npy_of_format_2() -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, MEL, version=(2, 0))
    np.testing.assert_array_equal(read_mel(file).mel, MEL)


def test_other_members_do_not_matter() -> None:
    evil = {"../../up.npy": b"x", "mel.npy": npy(MEL), "/etc/passwd": b"x", "objects.npy": npy(np.array([{}]))}
    np.testing.assert_array_equal(read_mel(io.BytesIO(zipped(evil))).mel, MEL)


def test_a_pipe() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        os.write(writer, npz(mel=MEL))
        os.close(writer)
        np.testing.assert_array_equal(read_mel(file).mel, MEL)


BAD = {
    "nothing": (b"", ["empty (0 bytes)"]),
    "text": (b"hello", ["b'hell'", ".npz or .npy"]),
    "sound": (b"RIFF\0\0\0\0WAVE", ["sound file", "wavenet-fast mel"]),
    "pickle": (b"\x80\x04\x95.", ["no NumPy file"]),
    "magic only": (b"\x93NUM", ["no NumPy array"]),
    "no header": (b"\x93NUMPY\x01\x00", ["header of 0 bytes"]),
    "half a header": (npy(MEL)[:40], ["header cannot be read"]),
    "format 3": (claiming("(4, 4)", version=b"\x03\x00"), ["format 1.0 or 2.0"]),
    "header of 4 GiB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", ["4294967295"]),
    "header that calls": (with_header("__import__('os').abort()"), ["header cannot be read"]),
    "header that nests": (with_header("(" * 20000), ["header cannot be read"]),
    "header of bytes": (with_header(bytes(range(128, 200))), ["header cannot be read"]),
    "objects": (npy(np.array([[1, "a"]], object), allow_pickle=True), ["Python objects"]),
    "integers": (npy(MEL.astype(np.int16)), ["int16", "floating point"]),
    "truth": (npy(MEL > 0), ["bool"]),
    "complex": (npy(MEL.astype(complex)), ["complex128"]),
    "text array": (npy(np.array([["a"]])), ["<U1"]),
    "dates": (npy(np.zeros((2, 2), "M8[s]")), ["datetime64"]),
    "records": (npy(np.zeros((2, 2), [("a", "f4")])), ["floating point"]),
    "arrays of arrays": (claiming("(4, 4)", "('<f4', (2,))"), ["floating point"]),
    "10¹² frames": (claiming("(80, 1000000000000)"), ["cannot be"]),
    "10⁹ frames": (claiming("(80, 1000000000)"), ["promises (80, 1000000000)", "64 bytes follow"]),
    "overflow": (claiming("(4294967296, 4294967296)"), ["cannot be"]),
    "nothing by the million": (claiming("(0, 99999999999999999999)", body=b""), ["cannot be"]),
    "negative": (claiming("(-1, -16)"), ["cannot be"]),
    "too many dimensions": (claiming("(" + "1," * 40 + ")", body=bytes(4)), ["cannot be"]),
    "cut": (npy(MEL)[:-1], ["cut short", "(80, 31)"]),
    "too long": (npy(MEL) + b"\0", ["cut short or damaged"]),
    "one number": (npy(np.float32(1)), ["two dimensions"]),
    "one dimension": (npy(MEL[0]), ["(31,)", "two dimensions"]),
    "a batch": (npy(MEL[None]), ["(1, 80, 31)", "mel[0]"]),
    "four dimensions": (npy(MEL[None, None]), ["two dimensions"]),
    "NaN": (npy(np.where(np.arange(31) + 100 * np.arange(80)[:, None] == 507, np.nan, MEL)), ["frame 7, band 5"]),
    "infinite": (npy(np.full((2, 2), -np.inf)), ["frame 0, band 0"]),
    "infinite in float32": (npy(np.full((2, 2), 1e300)), ["finite in float32"]),
    "zip of nothing": (zipped({}), ["no array named mel"]),
    "zip without mel": (npz(arr_0=MEL, other=MEL), ["'arr_0.npy', 'other.npy'", "np.savez"]),
    "torch checkpoint": (zipped({"archive/data.pkl": b"\x80"}), ["archive/data.pkl"]),
    "zip of text": (zipped({"mel.npy": b"hello"}), ["mel.npy", "no NumPy array"]),
    "zip cut": (npz(mel=MEL)[:500], ["damaged archive"]),
    "zip of objects": (zipped({"mel.npy": npy(np.array([[1, "a"]], object), allow_pickle=True)}), ["Python objects"]),
    "zip claiming": (zipped({"mel.npy": claiming("(80, 1000000000)")}), ["promises"]),
    "zip in bzip2": (zipped({"mel.npy": b"x"}, compression=zipfile.ZIP_BZIP2)[:60], ["damaged archive"]),
    "bomb": (zipped({"mel.npy": npy(np.zeros((80, 60000), "f4"))}, compression=zipfile.ZIP_DEFLATED), ["expand"]),
    "recipe of objects": (npz(mel=MEL, melspec_json=np.array([{}])), ["melspec_json", "Python objects"]),
    "recipe of numbers": (npz(mel=MEL, melspec_json=MEL), ["melspec_json", "text"]),
    "two recipes": (npz(mel=MEL, melspec_json=np.array(["{}", "{}"])), ["2 texts"]),
    "no recipe": (npz(mel=MEL, melspec_json=np.array("{}")), ["melspec_json", "sample_rate"]),
    "half a recipe": (npz(mel=MEL, melspec_json=np.array("{")), ["melspec_json", "JSON"]),
    "surrogates": (npz(mel=MEL, melspec_json=np.array("\ud800")), ["melspec_json", "UTF-8"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_mel_files(name: str, tmp_path: Path) -> None:
    data, words = BAD[name]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(AudioError) as caught:
        read_mel(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert peak < 2 * len(data) + 4e6, "memory was taken before the file was checked"


def test_a_checksum_that_is_wrong() -> None:
    data = bytearray(npz(mel=MEL))
    data[data.index(MEL.tobytes()) + 5] ^= 1
    with pytest.raises(AudioError, match=r"damaged archive.*CRC"):
        read_mel(io.BytesIO(bytes(data)))


def test_a_member_that_says_it_is_small() -> None:
    """The size in the archive's directory is a claim as well; what is read never passes it."""
    data = bytearray(zipped({"mel.npy": npy(np.zeros((80, 60000), "f4"))}, compression=zipfile.ZIP_DEFLATED))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    tracemalloc.start()
    with pytest.raises(AudioError, match="damaged"):
        read_mel(io.BytesIO(bytes(data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.timeout(30)
def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for path, words in ((tmp_path, "folder"), (tmp_path / "none.npz", "no such file"), (tmp_path / "pipe.npy", "pipe")):
        with pytest.raises(AudioError, match=words):
            read_mel(path)
    if os.path.exists("/dev/zero"):
        with pytest.raises(AudioError, match="device"):
            read_mel("/dev/zero")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_flipped_and_cut_bytes_end_in_a_mel_or_a_sentence(data: st.DataObject) -> None:
    recipe = json.dumps({"sample_rate": 16000})
    archive = zipped(
        {"mel.npy": npy(MEL[:4, :5]), "melspec_json.npy": npy(np.array(recipe))}, compression=zipfile.ZIP_DEFLATED
    )
    content = bytearray(data.draw(st.sampled_from([npy(MEL[:4, :5]), archive, npz(mel=MEL[:4, :5])])))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    try:
        found = read_mel(io.BytesIO(bytes(content)))
    except AudioError:
        return
    assert found.mel.ndim == 2
    assert found.mel.dtype == np.float32
    assert np.isfinite(found.mel).all()


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEL_PRESETS)
def test_a_mel_comes_back_with_its_recipe(name: str, tmp_path: Path) -> None:
    spec = MEL_PRESETS[name]
    mel = np.zeros((spec.n_mels, 5), np.float64)
    write_mel(tmp_path / "x.npz", mel, spec)
    found = read_mel(tmp_path / "x.npz")
    assert found.spec == spec
    assert found.spec is not None
    assert found.spec.fingerprint == spec.fingerprint
    np.testing.assert_array_equal(found.mel, mel)
    with np.load(tmp_path / "x.npz") as archive:
        assert sorted(archive) == ["mel", "melspec_json"]
        assert archive["mel"].dtype == np.float32
        assert json.loads(str(archive["melspec_json"]))["hop_length"] == spec.hop_length


def test_npy_and_npz_without_a_recipe(tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz", "x.NPY"):
        write_mel(tmp_path / name, MEL.T[::-1].T)
        found = read_mel(tmp_path / name)
        assert found.spec is None
        np.testing.assert_array_equal(found.mel, MEL.T[::-1].T)
    write_mel(tmp_path / "y.npy", MEL, SPEC)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), MEL)


def test_a_mel_that_is_not_its_recipes(tmp_path: Path) -> None:
    write_mel(tmp_path / "x.npz", MEL[:79], SPEC)
    with pytest.raises(AudioError, match=r"79 bands.*says 80"):
        read_mel(tmp_path / "x.npz")


def test_equal_mels_are_equal_files(tmp_path: Path) -> None:
    for name in ("x.npz", "y.npz"):
        write_mel(tmp_path / name, MEL, SPEC)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "x.npz"
    good.write_bytes(b"good")
    with pytest.raises(ShapeError, match=r"\(80,\)"):
        write_mel(good, MEL[:, 0])
    with pytest.raises(AudioError, match=r"\.npz.*\.npy"):
        write_mel(tmp_path / "x.mel", MEL)
    with pytest.raises(AudioError, match="no such file"):
        write_mel(tmp_path / "none" / "x.npz", MEL)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(AudioError, match="is a folder"):
        write_mel(tmp_path / "folder.npz", MEL)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for failing in ("numpy.savez", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(failing, full)
            with pytest.raises(AudioError, match=r"x\.npz: cannot be written: no space left"):
                write_mel(good, MEL)
    assert good.read_bytes() == b"good"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npz", "x.npz"]
