"""The demonstration: a recording that the voice was never trained on → its mel → the voice → sound to compare.

How it is timed. The mel is vocoded as a stream, in chunks of `CHUNK_FRAMES` frames, on a voice that is loaded and that
has made one chunk before, so that pages and caches are warm. Time to first audio is from handing over the mel to
holding the first chunk; the real-time factor is the time to the last chunk over the length of the sound. Loading the
voice, extracting the mel and writing files are not in it.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import WavWriter, read_audio
from .checkpoint import resolve
from .errors import InputError
from .vocoder import Vocoder

CHUNK_FRAMES = 4
SAMPLES = "samples"
"""Folder of held-out recordings in a voice's directory."""


def run_demo(
    voice: Vocoder, name: str, out: Path, sample: str | None = None, seed: int = 0, temperature: float | None = None
) -> dict[str, Any]:
    """Vocode a held-out recording of the voice in the directory (or of the name) `name` into the folder `out`.

    Returns rtf, time_to_first_audio_ms, seconds (of sound), backend, isa and the paths written. Raises `InputError`
    where the voice has no recordings or none called `sample`."""
    source = held_out(resolve(name), sample)
    recording, rate = read_audio(source, voice.sample_rate)
    mel = voice.mel(recording, rate)
    vocoded, timing = timed_stream(voice, mel, seed, temperature)
    vocoded = vocoded[: len(recording)]  # a mel's last frame may reach beyond the recording
    out.mkdir(parents=True, exist_ok=True)
    paths = {"original": out / "original.wav", "vocoded": out / "vocoded.wav"}
    for path, wav in zip(paths.values(), (recording, vocoded), strict=True):
        with WavWriter(path, rate) as writer:
            writer.write(wav)
    if importlib.util.find_spec("matplotlib") is not None:
        paths["spectrograms"] = out / "spectrograms.png"
        draw(voice, mel, voice.mel(vocoded, rate), paths["spectrograms"], source.stem)
    return {
        **timing,
        "backend": voice.backend,
        "isa": voice.isa,
        "dtype": voice.dtype,
        "chunk_ms": 1000 * CHUNK_FRAMES * voice.hop_length / rate,
        "sample_rate": rate,
        "seed": seed,
        "temperature": voice.default_temperature if temperature is None else temperature,
        "voice": name,
        "recording": source.name,
        "paths": {key: str(path) for key, path in paths.items()},
    }


def held_out(voice_directory: Path, sample: str | None) -> Path:
    """The recording called `sample`, or the first, of those that come with a voice."""
    found = sorted((voice_directory / SAMPLES).glob("*.flac"))
    if not found:
        raise InputError(
            f"{voice_directory}: has no recordings ({SAMPLES}/*.flac) for a demonstration; `wavenet-fast resynth` makes"
            " the same of a recording of yours"
        )
    if sample is None:
        return found[0]
    for path in found:
        if sample in (path.name, path.stem):
            return path
    raise InputError(f"sample is {sample!r}; this voice comes with {', '.join(p.stem for p in found)}")


def timed_stream(
    voice: Vocoder, mel: NDArray[np.float32], seed: int, temperature: float | None
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """The sound of a mel (M, F), (F·hop,), and how long it took: rtf, time_to_first_audio_ms, seconds of sound."""
    next(iter(voice.stream(mel, CHUNK_FRAMES, seed=seed, temperature=temperature)), None)
    began = time.perf_counter()
    first: float | None = None
    chunks = []
    for chunk in voice.stream(mel, CHUNK_FRAMES, seed=seed, temperature=temperature):
        if first is None:
            first = time.perf_counter() - began
        chunks.append(chunk)
    elapsed = time.perf_counter() - began
    sound = np.concatenate(chunks)
    seconds = len(sound) / voice.sample_rate
    return sound, {
        "rtf": elapsed / seconds,
        "time_to_first_audio_ms": 1000 * (elapsed if first is None else first),
        "seconds": seconds,
    }


def draw(voice: Vocoder, original: NDArray[np.float32], vocoded: NDArray[np.float32], path: Path, title: str) -> None:
    """Both mels (M, F), one above the other on one scale of colours, as a PNG. Needs matplotlib, and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    # All but the quietest 1 % and the loudest 0.1 % of the recording lie within the colours of both.
    low, high = np.percentile(original, [1, 99.9])
    spec = voice.mel_spec
    for axis, mel, label in zip(axes, (original, vocoded), ("recording", "vocoded from its mel"), strict=True):
        seconds = mel.shape[1] * spec.hop_length / spec.sample_rate
        image = axis.imshow(
            mel, origin="lower", aspect="auto", interpolation="nearest", cmap="magma", vmin=low, vmax=high,
            extent=(0, seconds, 0, spec.n_mels),
        )  # fmt: skip
        axis.set_title(label, loc="left", fontsize=10)
        axis.set_ylabel("mel band")
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("time, s")
    figure.colorbar(image, ax=axes, label=f"{spec.log} of mel magnitude", pad=0.01, aspect=35)
    figure.suptitle(f"{title}, {spec.sample_rate} Hz, {spec.n_mels} bands", fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def format_demo(told: dict[str, Any]) -> str:
    """What `run_demo` returned, for people."""
    faster = f", {1 / told['rtf']:.1f} times faster than real time" if told["rtf"] < 1 else ""
    lines = [
        f"{told['seconds']:.2f} s of speech by {told['voice']}, from the mel of {told['recording']} alone",
        f"  real-time factor     {told['rtf']:.3f}{faster}",
        f"  time to first audio  {told['time_to_first_audio_ms']:.1f} ms",
        f"  backend              {told['backend']}, {told['isa']}, {told['dtype']}",
        f"  Measured on a loaded, warm voice, streaming in chunks of {told['chunk_ms']:.0f} ms.",
        "  Real-time factor = processing time ÷ length of the sound.",
        *(f"  {path}" for path in told["paths"].values()),
    ]
    if "spectrograms" not in told["paths"]:
        lines.append('  no spectrograms.png: matplotlib is not installed; pip install "wavenet-fast[plot]" adds it')
    return "\n".join(lines)
