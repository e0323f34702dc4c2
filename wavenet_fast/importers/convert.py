"""A file of another project → a voice's directory: finds what lies beside the file, asks for what nothing says, and
writes the voice whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..checkpoint import CONFIG, Checkpoint, load_checkpoint, save_checkpoint
from ..config import MelSpec, WaveNetConfig, decode
from ..errors import CheckpointError, InputError, WavenetFastError
from ..mel import MEL_PRESETS
from . import files, kan_bayashi, nv_wavenet, own, r9y9
from .common import Imported, made_elsewhere
from .families import FAMILIES, detect
from .files import Raw

ELSEWHERE = "elsewhere"
BESIDE = {
    r9y9.FAMILY: ("hparams.json", ("meanvar.joblib", "meanvar.npz")),
    kan_bayashi.FAMILY: ("model.conf", ("stats.h5", "stats.npz")),
    nv_wavenet.FAMILY: (CONFIG, ()),
    own.FAMILY: (CONFIG, ()),
}
"""Family → what its own code leaves beside a checkpoint: hparams, and statistics of its mels."""

PUBLISHED_MELS = {"autovc": "autovc-16k"}
"""Names in `r9y9.PRESETS` → those of `MEL_PRESETS`."""

Watch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; None where it says nothing.

    hparams       a file, or a name in `r9y9.PRESETS`
    mel           a name in `mel.MEL_PRESETS`, a JSON file with the fields of `MelSpec`, or "elsewhere"
    stats         file with mean and scale of its mels
    conditioning  for nv-wavenet's exported dictionaries: a file with the network from mel to conditioning
    trusted       also read a whole pickled module
    """

    family: str | None = None
    hparams: str | None = None
    skip_rule: Any = None
    mel: str | None = None
    stats: Path | None = None
    sample_rate: int | None = None
    conditioning: Path | None = None
    trusted: bool = False


def read(source: Path, options: Options, watch: Watch = lambda step: None) -> tuple[Checkpoint, list[str]]:
    """The voice in a file of another project, or in a directory of our own, and notes for whoever converts it."""
    if source.is_dir():
        return _directory(source), []
    watch("reading")
    # Published without hparams, that file comes with a recipe of its own.
    recipe = named_recipe(options.mel or PUBLISHED_MELS.get(options.hparams or ""))
    with files.reading(source, options.trusted) as raw:
        family = _family(source, raw, options.family)
        watch(f"importing ({family})")
        made = _import(family, source, raw, options, recipe if isinstance(recipe, MelSpec) else None)
        steps = (raw.data.get(name) for name in ("global_step", "iterations", "iteration"))
        step = next((n for n in steps if type(n) is int and 0 <= n < 1 << 63), None)
    if recipe == ELSEWHERE:
        made_of = made_elsewhere(made.config)
    elif made.mel is None:
        raise InputError(
            f"{source}: nothing given says by what recipe its mels are made. {' '.join(made.notes)} Give --mel"
            f" with a name ({', '.join(MEL_PRESETS)}), a JSON file of a recipe, or {ELSEWHERE!r} for a voice that"
            " only hears what is made elsewhere"
        )
    else:
        made_of = made.mel
    _check_recipe(source, made.config, made_of)
    if made_of.normalize == "meanvar" and "mel.mean" not in made.weights:
        raise InputError(f"{source}: that recipe is standardised by mean and scale of the training mels: give --stats")
    provenance = {
        **made.provenance, "notes": made.notes, "step": step, "converted_by": f"wavenet_fast {__version__}",
        "source": {"file": source.name, "bytes": source.stat().st_size, "sha256": files.sha256(source)},
    }  # fmt: skip
    return Checkpoint(made.config, made_of, made.weights, {"provenance": provenance}), made.notes


def _check_recipe(source: Path, config: WaveNetConfig, recipe: MelSpec) -> None:
    """Raises `InputError` where the network cannot hear mels of this recipe."""
    for field in ("sample_rate", "hop_length", "n_mels"):
        network, mels = getattr(config, field), getattr(recipe, field)
        if network != mels:
            raise InputError(f"{source}: its {field} is {network}, and {mels} in the recipe of its mels; give another")


def named_recipe(named: str | None) -> MelSpec | Literal["elsewhere"] | None:
    """The recipe that `--mel` names. Raises `InputError`, and `ConfigError` for a file whose contents are none."""
    if named is None:
        return None
    if named == ELSEWHERE:
        return "elsewhere"
    if named in MEL_PRESETS:
        return MEL_PRESETS[named]
    if not Path(named).is_file():
        raise InputError(f"--mel is {named!r}, neither a JSON file nor one of {', '.join([*MEL_PRESETS, ELSEWHERE])}")
    values = files.plain_values(Path(named))
    return decode(MelSpec, values.get("mel", values), named)


def write(out: Path, checkpoint: Checkpoint, dtype: Literal["fp32", "fp16"] = "fp32", overwrite: bool = False) -> None:
    """Write the directory `out`: it appears whole, or not at all. What is in it stays, unless `overwrite` and it is a
    voice. Raises `CheckpointError`."""
    check_target(out, overwrite)
    if out.is_dir() and any(out.iterdir()):
        return save_checkpoint(out, checkpoint, dtype)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        save_checkpoint(partial, checkpoint, dtype)
        os.replace(partial, out)
    except WavenetFastError as error:
        raise type(error)(str(error).replace(str(partial), str(out))) from None
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(out: Path, overwrite: bool) -> None:
    """Raises `CheckpointError` where no voice may be put at `out`; asked before the work."""
    if not out.name:
        raise CheckpointError(f"{out}: is no name for a new directory")
    if not out.absolute().parent.is_dir():
        raise CheckpointError(f"{out}: lies in no folder that is there; make {out.absolute().parent} first")
    if os.path.lexists(out) and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; a voice is a directory, name another")
    if out.is_dir() and any(out.iterdir()) and not (overwrite and (out / CONFIG).exists()):
        hint = "; --overwrite replaces it" if (out / CONFIG).exists() else " and is no voice; name another"
        raise CheckpointError(f"{out}: is not empty{hint}")


def _directory(source: Path) -> Checkpoint:
    if not (source / CONFIG).exists():
        found = sorted(p.name for p in source.iterdir() if p.suffix in (".pth", ".pt", ".pkl", ".safetensors"))
        said = f"name one of its files: {', '.join(found[:10])}" if found else "there is no checkpoint file in it"
        raise CheckpointError(f"{source}: is a folder, and no voice of this package; {said}")
    return load_checkpoint(source)


def _family(source: Path, raw: Raw, wanted: str | None) -> str:
    if wanted is not None and wanted not in FAMILIES:
        raise InputError(f"--family is {wanted!r}; there are {', '.join(FAMILIES)}")
    try:
        found = detect(raw.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    if wanted not in (None, found):
        raise InputError(f"--family is {wanted!r}, and the file's tensors are those of {found!r}; leave it out")
    return found


def _import(family: str, source: Path, raw: Raw, options: Options, mel: MelSpec | None) -> Imported:
    hparams = _hparams(family, source, raw, options)
    _check_options(family, options)
    if family == nv_wavenet.FAMILY:
        conditioning = None
        if options.conditioning is not None:
            with files.reading(options.conditioning, options.trusted) as more:
                conditioning = {name: value.copy() for name, value in more.tensors.items()}
        return nv_wavenet.from_state(_listed(raw), hparams, conditioning=conditioning, mel=mel)
    if family == own.FAMILY:
        return own.from_state(raw.tensors, hparams, mel=mel)
    stats = _statistics(family, source, options, str(hparams.get("feature_type", "")))
    if family == r9y9.FAMILY:
        return r9y9.from_state(raw.tensors, hparams, skip_rule=options.skip_rule, mel=mel, stats=stats)
    return kan_bayashi.from_state(raw.tensors, hparams, stats=stats, mel=mel, sample_rate=options.sample_rate)


def _check_options(family: str, options: Options) -> None:
    """Raises `InputError` for an option that files of this family have no use for."""
    for option, given, families in (
        ("--skip-rule", options.skip_rule, (r9y9.FAMILY,)),
        ("--sample-rate", options.sample_rate, (kan_bayashi.FAMILY,)),
        ("--stats", options.stats, (r9y9.FAMILY, kan_bayashi.FAMILY)),
        ("--conditioning", options.conditioning, (nv_wavenet.FAMILY,)),
    ):
        if given is not None and family not in families:
            raise InputError(
                f"{option} is for files of {' and '.join(families)}, and this one is {family}; leave it out"
            )


def _hparams(family: str, source: Path, raw: Raw, options: Options) -> dict[str, Any]:
    """Contents of the file that is named or lies beside the checkpoint; for nv-wavenet, what its module says."""
    usual = BESIDE[family][0]
    found: dict[str, Any] = {}
    if options.hparams in r9y9.PRESETS and family == r9y9.FAMILY:
        return r9y9.PRESETS[options.hparams]
    if options.hparams is not None:
        if not Path(options.hparams).is_file():
            raise InputError(f"--hparams is {options.hparams!r}, neither a file nor one of {', '.join(r9y9.PRESETS)}")
        found = files.plain_values(Path(options.hparams))
    elif (source.parent / usual).is_file():
        found = files.plain_values(source.parent / usual)
    elif family != nv_wavenet.FAMILY:
        named = f", or the name of published hparams ({', '.join(r9y9.PRESETS)})" if family == r9y9.FAMILY else ""
        raise InputError(f"{source}: has no {usual} beside it; give that file as --hparams{named}")
    if family == nv_wavenet.FAMILY:
        told = raw.data.get("attributes")
        said: dict[str, Any] = told if isinstance(told, dict) else {}
        stride = said.get("upsample.stride")
        ours = {"max_dilation": said.get("max_dilation", raw.data.get("max_dilation")),
                "upsamp_stride": stride[0] if isinstance(stride, list) and stride else None}  # fmt: skip
        found |= {name: value for name, value in ours.items() if value is not None}
    return found


def _statistics(family: str, source: Path, options: Options, feature: str) -> Mapping[str, Any] | None:
    if options.stats is not None:
        return files.statistics_of(options.stats, feature)
    for name in BESIDE[family][1]:
        if (source.parent / name).is_file():
            return files.statistics_of(source.parent / name, feature)
    return None


def _listed(raw: Raw) -> dict[str, Any]:
    """nv-wavenet's exported dictionary with its lists again, which were read as `name.0`, `name.1` …"""
    state: dict[str, Any] = {}
    lists: dict[str, dict[int, Any]] = {}
    for name, value in raw.tensors.items():
        stem, _, number = name.rpartition(".")
        if stem in nv_wavenet.LISTS and number.isdecimal():
            lists.setdefault(stem, {})[int(number)] = value
        else:
            state[name] = value
    state |= {stem: [entries[i] for i in sorted(entries)] for stem, entries in lists.items()}
    if nv_wavenet.is_exported(state):
        state |= {name: raw.data[name] for name in ("max_dilation", "use_embed_tanh") if name in raw.data}
    return state
