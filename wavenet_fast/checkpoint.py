"""A voice on disk: a directory with `config.json` and `model.safetensors` (and a model card and a licence beside them).

    config.json        {"format": "wavenet_fast", "format_version": 1, "model": WaveNetConfig, "mel": MelSpec,
                        "license": text, "provenance": {…}, "sampling": {"temperature": number},
                        "number_formats": FormatCosts}, the last four optional
    model.safetensors  the tensors of `weights.weight_shapes`, F32, F16 or BF16, and optionally mel.mean,
                        mel.scale and sound.filter

Nothing here trusts a file: sizes are compared with the configuration before memory is taken, and no code that a file
holds is ever run. Pickles (.pt, .pth, .bin) are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .config import MelSpec, WaveNetConfig, decode, encode
from .errors import CheckpointError, ConfigError
from .format_costs import FIELD, FormatCosts, weights_fingerprint
from .hub import fetch, in_cache, is_hub_id
from .shaping import FILTER, MAX_TAPS
from .strict_json import parse
from .tensors import MAX_HEADER_BYTES, check_values, compare_shapes, unpack, widen
from .weights import weight_count, weight_shapes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DOCUMENTS = ("README.md", "LICENSE")
"""Model card and terms, which go wherever the voice goes."""
FORMAT, FORMAT_VERSION = "wavenet_fast", 1

MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 4 << 30
"""Of the weights as float32."""

_STATISTICS = ("mel.mean", "mel.scale")
_INFO = ("license", "provenance", "sampling", FIELD)


@dataclass(frozen=True)
class Checkpoint:
    """A voice in memory.

    weights  name → float32 array, exactly those of `weight_shapes(config)`, and where the voice has them mel.mean and
             mel.scale (M,), the mean and standard deviation per band of the training mels, and sound.filter (N,),
             through which its sound goes (`shaping`)
    documents  what is in `DOCUMENTS`, name → bytes, where the voice has them
    info     "license" (text), "provenance" (a JSON object), "sampling" ({"temperature": number}), "number_formats" (see
             `format_costs.FormatCosts`), each optional
    """

    config: WaveNetConfig
    mel: MelSpec
    weights: Mapping[str, NDArray[np.float32]]
    info: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """The temperature this voice sounds best at; 1 where it does not say."""
        return float(self.info.get("sampling", {}).get("temperature", 1.0))

    @property
    def recorded_costs(self) -> FormatCosts | None:
        """What `info` records of number formats, whatever weights it was measured with. Raises `ConfigError`."""
        recorded = self.info.get(FIELD)
        return None if recorded is None else decode(FormatCosts, recorded, f"info.{FIELD}")

    @property
    def format_costs(self) -> dict[str, float]:
        """Number format → its recorded cost in bits per sample; empty where none was measured with these weights."""
        recorded = self.recorded_costs
        if recorded is None or recorded.weights != weights_fingerprint(self.weights):
            return {}
        return {name: cost.cost_bits for name, cost in recorded.costs.items()}


class _Sampling(Struct, frozen=True, forbid_unknown_fields=True):
    temperature: Annotated[float, Meta(gt=0, le=100)] = 1.0


class _Document(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`config.json`."""

    format: Literal["wavenet_fast"]
    format_version: Literal[1]
    model: WaveNetConfig
    mel: MelSpec
    license: str = ""
    provenance: dict[str, Any] = {}
    sampling: _Sampling = _Sampling()
    number_formats: FormatCosts | None = None


# --- finding ----------------------------------------------------------------------------------------------------


def bundled_voices() -> list[str]:
    """Names of the voices that come with the package."""
    folder = files(__package__) / "voices"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG).is_file())


def resolve(name_or_path: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False) -> Path:
    """The directory of a voice: a local directory, else a bundled voice of that name, else "organisation/name" on the
    Hugging Face Hub (`hub.fetch`), else `CheckpointError`."""
    path, voices = Path(name_or_path), bundled_voices()
    if not os.fspath(name_or_path):
        raise CheckpointError(f"the voice's name is empty; give a directory or one of {', '.join(voices) or 'none'}")
    try:
        local, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise CheckpointError(f"{str(name_or_path)[:80]!r} is no voice: {error}") from None
    named = str(name_or_path) in voices
    # A folder without a voice in it does not hide a bundled voice of the same name.
    if local and not (named and not (path / CONFIG).exists()):
        return path
    if named:
        return Path(str(files(__package__) / "voices" / str(name_or_path)))
    if not exists and is_hub_id(str(name_or_path)):
        return fetch(str(name_or_path), revision, local_files_only)
    said = "is a file; a voice is a directory that" if exists else "is neither a directory nor a bundled voice; one"
    known = ", ".join(voices) or "none"
    raise CheckpointError(f"{path} {said} holds {CONFIG} and {WEIGHTS}{_about_pickles(path)}. Bundled voices: {known}")


# --- loading ----------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The voice in the directory `path`.

    Raises `ConfigError` for a `config.json` whose contents cannot be used, naming the path of the bad field, and
    `CheckpointError` for everything else: files missing, damaged, of another model, or holding NaN.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is not a directory; a voice is a directory with {CONFIG} and {WEIGHTS}")
    where = str(directory / CONFIG)
    text = _read(directory, CONFIG, MAX_CONFIG_BYTES, "a voice's configuration")
    raw = parse(text, where)
    document = _document(raw, where)
    header_and_weights = MAX_HEADER_BYTES + 8 * (weight_count(document.model) + 2 * document.model.n_mels + MAX_TAPS)
    data = _read(directory, WEIGHTS, header_and_weights, f"the weights that {CONFIG} describes")
    tensors, metadata = unpack(data, str(directory / WEIGHTS))
    del data  # the tensors hold copies
    written = metadata.get("config_sha256")
    if written is not None and written != config_sha256(raw):
        raise CheckpointError(
            f"{directory}: {WEIGHTS} was written with another {CONFIG} (model or mel differ); restore the pair from the"
            " same source, or remove config_sha256 from the metadata if the change was on purpose"
        )
    given = {name: tuple(t["shape"]) for name, t in tensors.items()}
    shapes = _tensor_shapes(document.model, document.mel, given)
    compare_shapes(given, shapes, str(directory / WEIGHTS))
    weights = {}
    for name, shape in shapes.items():  # widened one by one; each raw copy is let go at once
        tensor = tensors.pop(name)
        weights[name] = widen(tensor).reshape(shape)
    check_values(weights, str(directory / WEIGHTS))
    info = {key: raw[key] for key in _INFO if key in raw}
    documents = {
        name: _read(directory, name, MAX_CONFIG_BYTES, "a voice's card or licence")
        for name in DOCUMENTS
        if os.path.lexists(directory / name)
    }
    return Checkpoint(document.model, document.mel, weights, info, documents)


def _document(raw: Any, where: str) -> _Document:
    """The parsed JSON as a `_Document` whose parts fit together."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a JSON object with format, format_version, model and mel")
    if raw.get("format") != FORMAT:
        raise ConfigError(f'{where}: is not a voice of this package; its "format" must be "{FORMAT}"')
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ConfigError(
            f"{where}: format_version is {version}; this wavenet_fast reads {FORMAT_VERSION}; install a newer one"
        )
    document = decode(_Document, raw, where)
    _check_agreement(document.model, document.mel, where)
    return document


def _check_agreement(model: WaveNetConfig, mel: MelSpec, where: str) -> None:
    for name in ("sample_rate", "hop_length", "n_mels"):
        ours, theirs = getattr(model, name), getattr(mel, name)
        if ours != theirs:
            raise ConfigError(f"{where}: model.{name} is {ours} and mel.{name} is {theirs}; they must be equal")
    if model.conditioning.standardise and mel.normalize == "meanvar":
        raise ConfigError(
            f'{where}: model.conditioning.standardise is true and mel.normalize is "meanvar", so the mel would be'
            " standardised twice; keep one of them"
        )
    if weight_count(model) * 4 > MAX_WEIGHT_BYTES:
        raise ConfigError(
            f"{where}: model describes {weight_count(model) * 4 / 2**30:.1f} GiB of weights; at most"
            f" {MAX_WEIGHT_BYTES / 2**30:g} GiB are allowed (checkpoint.MAX_WEIGHT_BYTES)"
        )


def _read(directory: Path, name: str, limit: int, what: str) -> bytes:
    """A regular file of the directory, whole. Its size is looked at before any memory is taken."""
    path = directory / name
    try:
        target, blobs = path.resolve(), in_cache(directory.resolve())
        homes = [directory.resolve(), *([] if blobs is None else [blobs])]
        if not any(target.is_relative_to(home) for home in homes):
            raise CheckpointError(f"{path}: is a link out of the directory, to {target}; put a copy in its place")
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: is not a regular file; {what} must be a plain file")
            if found.st_size > limit:
                raise CheckpointError(f"{path}: has {found.st_size} bytes; {what} take at most {limit}")
            data = file.read(found.st_size)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: is missing; a voice is a directory with {CONFIG} and {WEIGHTS}{_about_pickles(directory)}"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if len(data) != found.st_size:
        raise CheckpointError(f"{path}: became shorter while it was read; is it being rewritten? Try again")
    return data


def _tensor_shapes(
    model: WaveNetConfig, mel: MelSpec, given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that must be there; the mel statistics count where needed or where one is given, and the
    sound's filter where it is given, with as many taps as it has."""
    shapes = dict(weight_shapes(model))
    if FILTER in given:
        found = given[FILTER]
        shapes[FILTER] = found if len(found) == 1 and 1 <= found[0] <= MAX_TAPS else (MAX_TAPS,)
    if mel.normalize == "meanvar" or any(name in given for name in _STATISTICS):
        shapes = {**{name: (model.n_mels,) for name in _STATISTICS}, **shapes}
    return shapes


def _about_pickles(path: Path) -> str:
    """A hint where pickled checkpoints lie about."""
    endings = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar")
    try:
        found = [p.name for p in (path.iterdir() if path.is_dir() else [path]) if p.suffix in endings]
    except OSError:
        return ""
    if not found:
        return ""
    return (
        f" ({ascii(min(found))[1:-1]} may be a pickle, which can run code and is never opened here; of a checkpoint"
        " of another project `wavenet-fast convert` makes a voice)"
    )


# --- saving -----------------------------------------------------------------------------------------------------


def config_sha256(raw: Mapping[str, Any]) -> str:
    """Hash of the parts of a parsed `config.json` that the weights depend on; licence and temperature may be edited."""
    canonical = json.dumps({key: raw.get(key) for key in ("model", "mel")}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, dtype: Literal["fp32", "fp16"] = "fp32"
) -> None:
    """Write the directory that `load_checkpoint` reads, card and licence included; other files in it are left alone.

    Each file is replaced at once, never left half-written; and as the weights carry the hash of their configuration,
    a crash between the two files is noticed on loading. Raises `ConfigError` or `CheckpointError` for a checkpoint
    that could not be loaded again, before anything is written, and `CheckpointError` where writing fails.
    """
    directory = Path(path)
    if dtype not in ("fp32", "fp16"):
        raise CheckpointError(f'dtype is {dtype!r}; weights are saved as "fp32" or "fp16"')
    unknown = sorted(set(checkpoint.info) - set(_INFO))
    if unknown:
        raise ConfigError(f"info: has no field {unknown[0]!r}; possible are {', '.join(_INFO)}")
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    raw = {**head, "model": encode(checkpoint.config), "mel": encode(checkpoint.mel), **checkpoint.info}
    try:
        text = json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"info: cannot be written as JSON: {error}") from None
    where = str(directory / CONFIG)
    document = _document(parse(text.encode("utf-8", "surrogatepass"), where), where)
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: would have more than {MAX_CONFIG_BYTES} bytes; shorten the provenance")
    given = {name: np.shape(weight) for name, weight in checkpoint.weights.items()}
    shapes = _tensor_shapes(document.model, document.mel, given)
    compare_shapes(given, shapes, str(directory / WEIGHTS))
    kind = np.float32 if dtype == "fp32" else np.float16
    with np.errstate(over="ignore"):
        # Views, which check_values may make read-only.
        weights: dict[str, NDArray[Any]] = {n: np.asarray(checkpoint.weights[n], kind, "C")[...] for n in shapes}
    check_values(weights, f"weights as {dtype}")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config_sha256": config_sha256(raw),
        "mel_fingerprint": checkpoint.mel.fingerprint,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _replacing(directory / WEIGHTS) as temporary:
            safetensors.numpy.save_file(weights, temporary, metadata)
        _replace(directory / CONFIG, text.encode())
        for name in DOCUMENTS:
            if name in checkpoint.documents:
                _replace(directory / name, checkpoint.documents[name])
    except (OSError, safetensors.SafetensorError) as error:  # the latter where the disk is full
        raise CheckpointError(f"{directory}: cannot be written: {error}") from None


def check_writable(directory: Path) -> None:
    """Raises `CheckpointError` where `record_costs` could not write."""
    if not (os.access(directory, os.W_OK) and os.access(directory / CONFIG, os.W_OK)):
        raise CheckpointError(
            f"{directory / CONFIG}: cannot be written here; save the voice to a folder of your own"
            " (Vocoder.save_pretrained) and give that folder"
        )


def record_costs(directory: Path, costs: FormatCosts) -> None:
    """Put `costs` into the directory's `config.json` in one step; what else it holds stays.

    Raises `ConfigError` and `CheckpointError` where the file cannot be read or written, which is then as it was."""
    check_writable(directory)
    where = str(directory / CONFIG)
    raw = parse(_read(directory, CONFIG, MAX_CONFIG_BYTES, "a voice's configuration"), where)
    raw = {**raw, FIELD: encode(costs)} if isinstance(raw, dict) else raw
    _document(raw, where)
    text = (json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: would have more than {MAX_CONFIG_BYTES} bytes; shorten the provenance")
    try:
        _replace(directory / CONFIG, text)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be written: {error}") from None


def _replace(path: Path, data: bytes) -> None:
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` in one step; what was there stays until the new
    file is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
