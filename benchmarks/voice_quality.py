"""How good does a voice sound? Vocoded speech beside Griffin-Lim, WORLD copy synthesis and the recordings themselves.

    pip install ".[eval]"
    python benchmarks/voice_quality.py VOICE RECORDINGS --json FILE

VOICE is a checkpoint directory or a bundled voice's name, RECORDINGS a folder of WAV or FLAC files at its sample rate
that the voice was never trained on. Every method gets the mel of the recording (WORLD its own parameters) and is
compared with the recording: PESQ wide-band, STOI, DNSMOS (overall and P.808) and the mean absolute log-mel difference
in dB. Likelihood is teacher-forced, in bits per sample.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import librosa
import numpy as np
from pesq import pesq
from pystoi import stoi
from speechmos import dnsmos
from tqdm import tqdm

import wavenet_fast as wf
from wavenet_fast.audio import read_audio
from wavenet_fast.mel import mel_spectrogram

DB_PER_NEPER = 20 / np.log(10)
METHODS = ("wavenet", "griffin_lim", "world", "recording")
METRICS = ("pesq_wb", "stoi", "dnsmos_ovrl", "dnsmos_p808", "log_mel_db")


def griffin_lim(mel: np.ndarray, spec: wf.MelSpec, iterations: int = 60) -> np.ndarray:
    """ln-magnitude mel (M, F) → waveform: non-negative least squares to a spectrogram, then `iterations` rounds."""
    if spec.log != "ln" or spec.power != 1 or spec.normalize != "none":
        raise SystemExit("Griffin-Lim here is written for natural-log magnitude mels; this voice uses another recipe")
    htk, norm = spec.mel_scale == "htk", "slaney" if spec.mel_norm == "slaney" else None
    magnitude = librosa.feature.inverse.mel_to_stft(
        np.exp(mel), sr=spec.sample_rate, n_fft=spec.n_fft, power=1, fmin=spec.fmin, fmax=spec.fmax, htk=htk, norm=norm
    )
    lengths = {"hop_length": spec.hop_length, "win_length": spec.win_length, "n_fft": spec.n_fft}
    return librosa.griffinlim(magnitude, n_iter=iterations, center=spec.center, random_state=0, **lengths)


def world(wav: np.ndarray, rate: int) -> np.ndarray:
    """Analysis and synthesis by WORLD with its default 5 ms frames (Harvest, CheapTrick, D4C)."""
    import pyworld

    return pyworld.synthesize(*pyworld.wav2world(wav.astype(np.float64), rate), rate)


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-padded to `length` samples, float32 within [−1, 1]."""
    wav = np.clip(np.asarray(wav, np.float32)[:length], -1, 1)
    return np.pad(wav, (0, length - len(wav)))


def score(original: np.ndarray, made: np.ndarray, spec: wf.MelSpec) -> dict[str, float]:
    rate = spec.sample_rate
    mos = dnsmos.run(made, rate, return_df=False)
    difference = mel_spectrogram(made, spec) - mel_spectrogram(original, spec)
    return {
        "pesq_wb": pesq(rate, original, made, "wb"),
        "stoi": float(stoi(original, made, rate)),
        "dnsmos_ovrl": float(mos["ovrl_mos"]),
        "dnsmos_p808": float(mos["p808_mos"]),
        "log_mel_db": float(np.abs(difference).mean() * DB_PER_NEPER),
    }


def evaluate(
    voc: wf.Vocoder, files: list[Path], methods: list[str], temperature: float | None, seed: int
) -> list[dict]:
    """A row per file: its name and, per method, the scores; `wavenet` also has the likelihood of the recording."""
    spec, rows = voc.mel_spec, []
    for path in tqdm(files, disable=None):
        wav, rate = read_audio(path, voc.sample_rate)
        mel = voc.mel(wav, rate)
        length = min(len(wav), mel.shape[1] * voc.hop_length)
        original = wav[:length]
        make = {
            "wavenet": lambda mel=mel: voc(mel, seed=seed, temperature=temperature),
            "griffin_lim": lambda mel=mel: griffin_lim(mel, spec),
            "world": lambda original=original: world(original, spec.sample_rate),
            "recording": lambda original=original: original,
        }
        row = {name: score(original, fit(make[name](), length), spec) for name in methods}
        if "wavenet" in methods:
            row["wavenet"]["bits_per_sample"] = float(voc.nll(mel, wav))
        rows.append({"file": path.name, **row})
    return rows


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    methods = [name for name in rows[0] if name != "file"]
    return {m: {k: float(np.mean([row[m][k] for row in rows])) for k in rows[0][m]} for m in methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("voice")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--temperature", type=float, default=None, help="the voice's own where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    files = sorted(p for p in args.recordings.rglob("*") if p.suffix.lower() in {".wav", ".flac"})
    if not files:
        parser.error(f"{args.recordings}: no .wav or .flac file below it")
    voc = wf.Vocoder.from_pretrained(args.voice, dtype=args.dtype)
    rows = evaluate(voc, files, args.methods, args.temperature, args.seed)
    average = means(rows)
    print(f"{'mean of ' + str(len(rows)):14s}" + "".join(f"{m:>14s}" for m in METRICS))
    for method, values in average.items():
        print(f"{method:14s}" + "".join(f"{values[m]:14.3f}" for m in METRICS))
    if "wavenet" in average:
        print(f"{average['wavenet']['bits_per_sample']:.4f} bits per sample")
    if args.json:
        packages = ("numpy", "librosa", "pesq", "pystoi", "speechmos", "pyworld", "wavenet-fast")
        about = {
            "voice": Path(args.voice).name,
            "temperature": voc.default_temperature if args.temperature is None else args.temperature,
            "seed": args.seed,
            "backend": voc.backend,
            "dtype": voc.dtype,
            "isa": voc.isa,
            "machine": platform.machine(),
            "versions": {name: version(name) for name in packages},
        }
        args.json.write_text(json.dumps({"about": about, "mean": average, "utterances": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
