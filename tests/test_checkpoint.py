"""The checkpoint directory: round trips, agreement of its parts, and files that were made to do harm."""

import io
import json
import os
import pickle
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from wavenet_fast import checkpoint as module
from wavenet_fast.checkpoint import CONFIG, WEIGHTS, Checkpoint, load_checkpoint, resolve, save_checkpoint
from wavenet_fast.config import Conditioning
from wavenet_fast.errors import CheckpointError, ConfigError
from wavenet_fast.strict_json import parse

INFO = {"license": "MIT", "provenance": {"data": "Ж", "steps": 3}, "sampling": {"temperature": 0.75}}


@pytest.fixture
def voice(make_checkpoint):
    return make_checkpoint(**INFO)


@pytest.fixture
def saved(voice, tmp_path):
    save_checkpoint(tmp_path / "voice", voice)
    return tmp_path / "voice"


def test_card_and_licence_go_where_the_voice_goes(saved, tmp_path):
    (saved / "LICENSE").write_text("Keep this notice.")
    (saved / "README.md").write_bytes(b"# A voice \xff")
    loaded = load_checkpoint(saved)
    save_checkpoint(tmp_path / "copy", loaded)
    for name in ("LICENSE", "README.md"):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes()
    (saved / "LICENSE").unlink()
    save_checkpoint(tmp_path / "copy", load_checkpoint(saved))
    assert (tmp_path / "copy" / "LICENSE").exists()  # other files are left alone


def with_statistics(voice, mean=0.5, scale=2.0):
    n = voice.mel.n_mels
    statistics = {"mel.mean": np.full(n, mean, np.float32), "mel.scale": np.full(n, scale, np.float32)}
    return replace(voice, weights={**voice.weights, **statistics})


def edit_config(directory, change):
    raw = json.loads((directory / CONFIG).read_text())
    change(raw)
    (directory / CONFIG).write_text(json.dumps(raw))


def write_tensors(directory, tensors, metadata=None):
    (directory / WEIGHTS).write_bytes(safetensors.numpy.save(dict(tensors), metadata))


def container(header, data=b""):
    """A safetensors file with this header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- round trips ------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_again(voice, saved):
    again = load_checkpoint(saved)
    assert again.config == voice.config and again.mel == voice.mel and again.info == INFO
    assert again.temperature == 0.75
    assert set(again.weights) == set(voice.weights)
    for name, weight in voice.weights.items():
        assert again.weights[name].dtype == np.float32 and not again.weights[name].flags.writeable
        assert again.weights[name].tobytes() == weight.tobytes()
    assert load_checkpoint(str(saved)).config == voice.config


def test_the_files_are_plain_and_carry_their_hash(voice, saved):
    assert sorted(p.name for p in saved.iterdir()) == [CONFIG, WEIGHTS]
    raw = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    assert raw["format"] == "wavenet_fast" and raw["format_version"] == 1
    with safetensors.safe_open(saved / WEIGHTS, framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(voice.weights)
    assert metadata["mel_fingerprint"] == voice.mel.fingerprint
    assert metadata["config_sha256"] == module.config_sha256(raw)


def test_half_precision_is_stored_in_half_the_room(voice, tmp_path):
    save_checkpoint(tmp_path, voice, dtype="fp16")
    again = load_checkpoint(tmp_path)
    for name, weight in voice.weights.items():
        assert (again.weights[name] == weight.astype(np.float16)).all()
    assert (tmp_path / WEIGHTS).stat().st_size < 0.6 * sum(w.nbytes for w in voice.weights.values()) + 4000


def test_bfloat16_is_widened_exactly(voice, saved):
    """By hand, as NumPy has no bfloat16: the upper halves of float32, in a header that says BF16."""
    header, data = {}, b""
    for name, weight in voice.weights.items():
        upper = (weight.view(np.uint32) >> 16).astype("<u2")
        header[name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [len(data), len(data) + upper.nbytes]}
        data += upper.tobytes()
    (saved / WEIGHTS).write_bytes(container(header, data))
    again = load_checkpoint(saved)
    for name, weight in voice.weights.items():
        assert (again.weights[name].view(np.uint32) == (weight.view(np.uint32) & 0xFFFF0000)).all()


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(voice, saved):
    """A header of 640 bytes begins the file with 80 02, as pickles of protocol 2 begin."""
    for length in range(0x280, 0x20000, 0x100):  # every length whose low byte is 0x80
        plain = safetensors.numpy.save(dict(voice.weights))
        size = int.from_bytes(plain[:8], "little")
        if length >= size:
            (saved / WEIGHTS).write_bytes(container(plain[8 : 8 + size].ljust(length), plain[8 + size :]))
            assert load_checkpoint(saved).config == voice.config
            return
    pytest.fail("the header is longer than expected")


def test_statistics_travel_with_the_weights(voice, tmp_path):
    save_checkpoint(tmp_path, with_statistics(voice))
    assert load_checkpoint(tmp_path).weights["mel.scale"].tolist() == [2.0] * voice.mel.n_mels


def test_licence_and_temperature_may_be_edited_by_hand(saved):
    edit_config(saved, lambda raw: raw.update(license="CC0", sampling={"temperature": 0.5}))
    assert load_checkpoint(saved).temperature == 0.5


def test_saving_again_replaces_and_leaves_other_files(voice, saved, make_checkpoint):
    (saved / "README.md").write_text("card")
    other = make_checkpoint(seed=5)
    save_checkpoint(saved, other)
    again = load_checkpoint(saved)
    assert all((again.weights[n] == other.weights[n]).all() for n in other.weights) and again.info == {}
    assert again.temperature == 1.0
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", CONFIG, WEIGHTS]


# --- saving what cannot be loaded, and failing in the middle -----------------------------------------------------


def test_what_could_not_be_loaded_is_not_written(voice, tmp_path, make_config):
    name = next(iter(voice.weights))
    nan = voice.weights[name].copy()
    nan.flat[0] = np.nan
    refused = [
        replace(voice, weights={n: w for n, w in voice.weights.items() if n != name}),
        replace(voice, weights={**voice.weights, "extra": nan}),
        replace(voice, weights={**voice.weights, name: nan}),
        replace(voice, config=make_config(n_mels=6)),
        replace(voice, config=make_config(kernel_size=40)),
        replace(voice, info={"licence": "MIT"}),
        replace(voice, info={"model": {}}),
        replace(voice, info={"sampling": {"temperature": 0}}),
        replace(voice, info={"provenance": {"when": object()}}),
        replace(voice, info={"provenance": {"bits": float("nan")}}),
        replace(voice, info={"provenance": {"text": "\ud800"}}),
        replace(voice, info={"provenance": {"text": "x" * (1 << 20)}}),
        with_statistics(voice, scale=0.0),
    ]
    for checkpoint in refused:
        with pytest.raises((ConfigError, CheckpointError)):
            save_checkpoint(tmp_path / "new", checkpoint)
    big = {name: np.full_like(voice.weights[name], 1e6)}
    with pytest.raises(CheckpointError, match=name):
        save_checkpoint(tmp_path / "new", replace(voice, weights={**voice.weights, **big}), dtype="fp16")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_old_voice_whole(voice, saved, monkeypatch, make_checkpoint):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left"):
        save_checkpoint(saved, make_checkpoint(seed=5))
    monkeypatch.undo()
    again = load_checkpoint(saved)
    assert all((again.weights[n] == voice.weights[n]).all() for n in voice.weights)
    assert sorted(p.name for p in saved.iterdir()) == [CONFIG, WEIGHTS]


def test_a_crash_between_the_two_files_is_noticed(saved, monkeypatch, make_checkpoint, make_config):
    put = module._replace
    monkeypatch.setattr(module, "_replace", lambda path, data: put(path, data) if path.name == WEIGHTS else None)
    save_checkpoint(saved, make_checkpoint(make_config(residual_scale=0.5)))  # the same shapes, other sums
    with pytest.raises(CheckpointError, match=r"written with another config.json"):
        load_checkpoint(saved)


def test_an_output_path_that_is_a_file(voice, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        save_checkpoint(tmp_path / "file", voice)


def test_a_full_disk_is_a_sentence(voice, tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)  # safetensors raises no OSError
    with pytest.raises(CheckpointError, match=r"cannot be written: I/O error: No space left"):
        save_checkpoint(tmp_path / "voice", voice)
    assert not any((tmp_path / "voice").iterdir())


def test_loading_while_another_thread_saves_never_mixes(tmp_path, make_checkpoint, make_config):
    """Whatever is loaded is one of the two voices, or a clear error."""
    voices = [make_checkpoint(make_config(residual_scale=s), seed=i) for i, s in enumerate((0.5, 0.25))]
    save_checkpoint(tmp_path, voices[0])
    stop = threading.Event()

    def rewrite():
        i = 0
        while not stop.is_set():
            i += 1
            save_checkpoint(tmp_path, voices[i % 2])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(60):
            try:
                found = load_checkpoint(tmp_path)
            except CheckpointError:
                continue
            whole = voices[found.config.residual_scale == 0.25]
            assert all((found.weights[n] == whole.weights[n]).all() for n in whole.weights)
    finally:
        stop.set()
        writer.join()


# --- config.json ------------------------------------------------------------------------------------------------

BAD_CONFIGS = {
    "empty": (b"", "not JSON"),
    "not json": (b"model: {}", "not JSON: .* line 1"),
    "truncated": (b'{"format": "wavenet_fast", "mod', "not JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "deep": (b"[" * 500_000, "levels deep"),
    "deep but short": (b'{"a":' * 40 + b"1" + b"}" * 40, "32 levels deep"),
    "utf-16": ('{"format": 1}'.encode("utf-16"), "not UTF-8"),
    "binary": (bytes(range(128, 256)), "not UTF-8"),
    "null": (b"null", "must be a JSON object"),
    "duplicate key": (b'{"format": 1, "format": 2}', "'format' is there twice"),
    "nan": (b'{"format": NaN}', "holds NaN"),
    "infinity": (b'{"format": -Infinity}', "holds -Infinity"),
    "overflow": (b'{"format": 1e999}', "beyond double"),
    "long integer": (b'{"format": ' + b"9" * 10_000 + b"}", "an integer of 10000 digits"),
    "surrogate": (b'{"format": "\\ud800"}', "surrogate"),
    "another program's": (b'{"model_type": "bert"}', '"format" must be "wavenet_fast"'),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_damaged_config_is_explained(saved, name):
    data, said = BAD_CONFIGS[name]
    (saved / CONFIG).write_bytes(data)
    with pytest.raises(ConfigError, match=said) as refused:
        load_checkpoint(saved)
    assert CONFIG in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda raw: raw.update(format_version=2), "format_version is 2; this wavenet_fast reads 1"),
        (lambda raw: raw.update(format_version="1"), "format_version: is "),
        (lambda raw: raw.pop("format_version"), 'lacks the field "format_version"'),
        (lambda raw: raw.pop("model"), 'lacks the field "model"'),
        (lambda raw: raw.pop("mel"), 'lacks the field "mel"'),
        (lambda raw: raw.update(extra=1), 'has no field "extra"'),
        (lambda raw: raw.update(license=3), "license: is 3; it must be a string"),
        (lambda raw: raw.update(provenance="me"), "provenance: is"),
        (lambda raw: raw.update(sampling={"temperature": 0}), "sampling.temperature: is 0"),
        (lambda raw: raw.update(sampling={"temperature": "hot"}), "sampling.temperature: is"),
        (lambda raw: raw["model"].update(dilations=[1] * 1000), "model.dilations: is"),
        (lambda raw: raw["model"].update(residual_channels=0), "model.residual_channels: is 0"),
        (lambda raw: raw["mel"].update(fmax=4001), "mel.fmax: is 4001"),
        (lambda raw: raw["mel"].update(win_length=25), "mel.win_length: is 25; at most n_fft"),
        (lambda raw: raw["mel"].update(n_mels=6), "model.n_mels is 5 and mel.n_mels is 6; they must be equal"),
        (lambda raw: raw["mel"].update(hop_length=7), "model.hop_length is 6 and mel.hop_length is 7"),
        (lambda raw: raw["mel"].update(sample_rate=16000), "model.sample_rate is 8000"),
    ],
)
def test_a_config_that_does_not_fit_names_the_field(saved, change, said):
    edit_config(saved, change)
    with pytest.raises(ConfigError) as refused:
        load_checkpoint(saved)
    assert said in str(refused.value)


def test_a_change_of_the_model_behind_the_weights_is_noticed(saved):
    edit_config(saved, lambda raw: raw["model"].update(skip_scale=0.5))
    with pytest.raises(CheckpointError, match=r"written with another config.json"):
        load_checkpoint(saved)


def test_absurd_weights_are_refused_by_arithmetic(saved):
    huge = {"residual_channels": 4096, "gate_channels": 4096, "skip_channels": 4096, "dilations": [1] * 256}
    edit_config(saved, lambda raw: raw["model"].update(huge))
    with pytest.raises(ConfigError, match=r"GiB of weights; at most 4 GiB"):
        load_checkpoint(saved)


def test_standardising_twice_is_refused(voice, tmp_path):
    twice = msgspec.structs.replace(voice.config, conditioning=Conditioning(standardise=True))
    mel = msgspec.structs.replace(voice.mel, normalize="meanvar")
    with pytest.raises(ConfigError, match=r"standardised twice"):
        save_checkpoint(tmp_path, with_statistics(replace(voice, config=twice, mel=mel)))


@pytest.mark.parametrize("file, said", [(CONFIG, "configuration"), (WEIGHTS, "weights")])
def test_huge_files_are_refused_before_they_are_read(saved, file, said):
    os.truncate(saved / file, 512 << 20)  # sparse: no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=f"{said}.* at most"):
            load_checkpoint(saved)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- model.safetensors ------------------------------------------------------------------------------------------

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_WEIGHTS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": b"\0" * 8,
    "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length 2^64 - 1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "longer than the file": struct.pack("<Q", 1000) + b"{}",
    "200 MB announced": struct.pack("<Q", 200_000_000) + b"{" * 1000,
    "header above the limit": container(b"{" + b" " * (1 << 20) + b"}"),
    "not json": container(b"hello, world"),
    "not utf-8": container(b'{"\xff\xfe": 1}'),
    "a list": container([1, 2]),
    "deep": container(b"[" * 100_000),
    "no tensors": container({}),
    "entry without fields": container({"a": {}}),
    "shape overflow": container({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 8]}}, b"\0" * 8),
    "shape above 2^64": container({"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 8]}}, b"\0" * 8),
    "negative dimension": container({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "fractional dimension": container({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, b"\0" * 8),
    "offsets out of bounds": container({"a": {**ONE, "data_offsets": [0, 1 << 40]}}, b"\0" * 8),
    "offsets reversed": container({"a": {**ONE, "data_offsets": [8, 0]}}, b"\0" * 8),
    "overlap": container({"a": ONE, "b": ONE}, b"\0" * 8),
    "hole": container({"a": ONE, "b": {**ONE, "data_offsets": [16, 24]}}, b"\0" * 24),
    "trailing bytes": container({"a": ONE}, b"\0" * 9),
    "too little data": container({"a": ONE}, b"\0" * 4),
    "duplicate tensor": container(json.dumps({"a": ONE, "A": ONE}).encode().replace(b"A", b"a"), b"\0" * 8),
    "metadata of numbers": container({"__metadata__": {"config_sha256": 3}, "a": ONE}, b"\0" * 8),
    "rank 80": container({"a": {**ONE, "shape": [1] * 79 + [2]}}, b"\0" * 8),
    "zero size": container({"input.weight": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}),
    "unknown format": container({"a": {**ONE, "dtype": "F31"}}, b"\0" * 8),
    "names that print": container({"\x1b[2J\n" + "n" * 5000: ONE}, b"\0" * 8),
}  # fmt: skip


class Payload:
    """Creates the file `path` if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def archives(path):
    """name → bytes of PyTorch-like files that would run code when opened."""
    made = {f"pickle {p}": pickle.dumps({"state_dict": Payload(path)}, protocol=p) for p in range(2, 6)}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", made["pickle 2"])
    made["zip"], made["truncated zip"] = zipped.getvalue(), zipped.getvalue()[:60]
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as file:
        file.addfile(tarfile.TarInfo("pickle"))
    made["tar"] = tarred.getvalue()
    return made


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_a_damaged_weight_file_is_explained(saved, name):
    (saved / WEIGHTS).write_bytes(BAD_WEIGHTS[name])
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(saved)
    message = str(refused.value)
    assert WEIGHTS in message and "\x1b" not in message and "\n" not in message and len(message) < 1500


@pytest.mark.parametrize("name", archives("x"))
def test_pickles_are_named_and_never_opened(saved, tmp_path, name):
    (saved / WEIGHTS).write_bytes(archives(tmp_path / "ran")[name])
    with pytest.raises(CheckpointError, match=r"pickle"):
        load_checkpoint(saved)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_or_instead_of_the_directory(saved, tmp_path):
    (saved / WEIGHTS).rename(saved / "model.pt")
    with pytest.raises(CheckpointError, match=r"model.safetensors: is missing.*model\.pt may be a pickle"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"is a file; a voice is a directory.*may be a pickle"):
        resolve(saved / "model.pt")
    with pytest.raises(CheckpointError, match=r"is not a directory"):
        load_checkpoint(saved / "model.pt")


@pytest.mark.parametrize("dtype", ["float64", "int8", "int32", "uint16", "bool"])
def test_other_number_formats_are_refused(voice, saved, dtype):
    tensors = {**voice.weights, "input.bias": np.zeros(voice.weights["input.bias"].shape, dtype)}
    write_tensors(saved, tensors)
    with pytest.raises(CheckpointError, match=r"'input.bias' has number format .* possible are F32, F16, BF16"):
        load_checkpoint(saved)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_are_refused(saved, dtype):
    (saved / WEIGHTS).write_bytes(container({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}, b"\0\0"))
    with pytest.raises(CheckpointError, match=dtype):
        load_checkpoint(saved)


def test_a_tensor_that_is_there_twice_is_refused(voice, saved):
    """With the same offsets twice, the library keeps the last and finds nothing wrong."""
    plain = safetensors.numpy.save(dict(voice.weights))
    size = int.from_bytes(plain[:8], "little")
    entry = json.dumps(json.loads(plain[8 : 8 + size])["input.bias"]).encode()
    header = plain[8 : 8 + size].rstrip().removesuffix(b"}") + b',"input.bias":' + entry + b"}"
    (saved / WEIGHTS).write_bytes(container(header, plain[8 + size :]))
    with pytest.raises(CheckpointError, match=r"'input.bias' is there twice"):
        load_checkpoint(saved)


def test_tensors_missing_left_over_and_mis_shaped_are_listed(voice, saved):
    tensors = dict(voice.weights)
    del tensors["layers.1.skip.weight"]
    tensors["layers.9.skip.weight"] = np.zeros((2, 2), np.float32)
    tensors["head.out.weight"] = np.ascontiguousarray(tensors["head.out.weight"].T)
    write_tensors(saved, tensors)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(saved)
    for said in (
        "1 missing: layers.1.skip.weight",
        "1 not part of this model: layers.9.skip.weight",
        "1 of another shape: head.out.weight (18, 256) instead of (256, 18)",
    ):
        assert said in str(refused.value)


def test_weights_of_another_config(saved, make_checkpoint, make_config):
    write_tensors(saved, make_checkpoint(make_config(residual_channels=16)).weights)
    with pytest.raises(CheckpointError, match=r"of another shape: .* and .* more"):
        load_checkpoint(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(voice, saved, value):
    spoiled = voice.weights["layers.2.dilated.weight"].copy()
    spoiled[1, 2, 0] = value
    write_tensors(saved, {**voice.weights, "layers.2.dilated.weight": spoiled})
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in layers.2.dilated.weight"):
        load_checkpoint(saved)


def test_statistics_must_be_whole_and_positive(voice, saved):
    whole = with_statistics(voice).weights
    write_tensors(saved, {n: w for n, w in whole.items() if n != "mel.mean"})
    with pytest.raises(CheckpointError, match=r"missing: mel.mean"):
        load_checkpoint(saved)
    for scale in (0.0, -1.0):
        write_tensors(saved, with_statistics(voice, scale=scale).weights)
        with pytest.raises(CheckpointError, match=r"mel.scale must be above 0"):
            load_checkpoint(saved)


def test_statistics_are_required_where_the_mel_uses_them(voice, saved):
    edit_config(saved, lambda raw: raw["mel"].update(normalize="meanvar"))
    write_tensors(saved, voice.weights)
    with pytest.raises(CheckpointError, match=r"2 missing: mel.mean, mel.scale"):
        load_checkpoint(saved)


# --- the file system --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_missing_files_and_things_that_are_no_files(saved, file):
    (saved / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file}: is missing"):
        load_checkpoint(saved)
    (saved / file).mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be read|not a regular file"):
        load_checkpoint(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_named_pipe_does_not_block(saved, file):
    (saved / file).unlink()
    os.mkfifo(saved / file)
    with pytest.raises(CheckpointError, match=r"not a regular file"):
        load_checkpoint(saved)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_links_out_of_the_directory_are_refused(saved, tmp_path, file):
    outside = tmp_path / "outside"
    (saved / file).rename(outside)
    (saved / file).symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"link out of the directory"):
        load_checkpoint(saved)
    (saved / file).unlink()
    (saved / file).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"link out of the directory"):
        load_checkpoint(saved)
    (saved / file).unlink()
    (saved / file).symlink_to(saved / file)
    with pytest.raises(CheckpointError, match=r"cannot be read|is missing"):
        load_checkpoint(saved)


def test_links_inside_and_a_link_to_the_directory_are_fine(voice, saved, tmp_path):
    (saved / WEIGHTS).rename(saved / "v1.safetensors")
    (saved / WEIGHTS).symlink_to("v1.safetensors")
    (tmp_path / "link").symlink_to(saved)
    assert load_checkpoint(tmp_path / "link").config == voice.config


# --- names ------------------------------------------------------------------------------------------------------


def test_resolve_finds_directories_then_bundled_voices(voice, tmp_path, monkeypatch):
    (tmp_path / "package" / "voices").mkdir(parents=True)
    save_checkpoint(tmp_path / "package" / "voices" / "anna", voice)
    monkeypatch.setattr(module, "files", lambda name: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert module.bundled_voices() == ["anna"]
    assert load_checkpoint(resolve("anna")).config == voice.config
    (tmp_path / "anna").mkdir()  # a folder without a voice does not hide the bundled one
    assert resolve("anna") == tmp_path / "package" / "voices" / "anna"
    save_checkpoint(tmp_path / "anna", voice)
    assert resolve("anna").resolve() == tmp_path / "anna"
    for name in ("berta", "../voices/anna", "", "\0", "x" * 5000, "anna/.."):
        try:
            resolve(name).relative_to(tmp_path / "package")
        except (CheckpointError, ValueError):
            continue
        pytest.fail(f"{name!r} led into the package")
    with pytest.raises(CheckpointError, match=r"neither a directory nor a bundled voice.*Bundled voices: anna"):
        resolve("berta")


# --- strict JSON ------------------------------------------------------------------------------------------------


def test_ordinary_json_passes():
    text = '\ufeff{"a": [1, 2.5, true, null, "Ж\\u0416"], "b": {"c": -1e-3}}'
    assert parse(text.encode(), "x") == {"a": [1, 2.5, True, None, "ЖЖ"], "b": {"c": -1e-3}}


def test_checkpoint_is_immutable(voice):
    with pytest.raises(AttributeError):
        voice.mel = None
    assert isinstance(voice, Checkpoint)


def test_both_files_may_be_read_by_whoever_may_read_a_new_file(tmp_path, make_checkpoint):
    (tmp_path / "other").touch()
    save_checkpoint(tmp_path / "voice", make_checkpoint())
    modes = {path.stat().st_mode for path in (*(tmp_path / "voice").iterdir(), tmp_path / "other")}
    assert len(modes) == 1
