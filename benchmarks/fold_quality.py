"""What does `voc(mel, fold=N)` cost in quality? Copy-synthesis in one piece beside the same in 2 … 16.

    pip install ".[eval]"
    python benchmarks/fold_quality.py VOICE RECORDINGS --json FILE

VOICE is a checkpoint directory or a bundled voice's name, RECORDINGS a folder of WAV or FLAC files at its sample rate
that the voice was never trained on. All are compared with the recording by the measures of voice_quality.py. `plain` is
the yardstick for `fold`; `another seed`, the plain call with other randomness, says how much chance alone changes.

The joins are looked at one by one, against the plain call at the same place: the energy of the second difference over
30 ms (a click raises it), the largest step of F0 between 5 ms frames within 20 ms (a slip of the pitch raises it), and
how far the two pieces disagree where they are cross-faded (0: they are the same, 1: they have nothing in common).
Three other ways to fold show what the design is worth: a seed of its own for every piece, a join at the end of the
overlap instead of where the pieces agree best, and both. `--times` also tells how many times as fast as the plain call
each fold was, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyworld
from tqdm import tqdm
from voice_quality import fit, means, score

import wavenet_fast as wf
from wavenet_fast import fold
from wavenet_fast.audio import read_audio
from wavenet_fast.conditioning import context_frames, lookahead_frames

OWN_SEED = 1 << 32
"""Added to the seed once per piece, and once for `another seed`."""
OTHER_WAYS = {"own seeds": (True, False), "fixed join": (False, True), "own seeds, fixed join": (True, True)}
"""Name → (a seed of its own for every piece, the join at the end of the overlap)."""


def pieces_of(voc: wf.Vocoder, mel: np.ndarray, n: int, seed: int, own: bool) -> tuple[list[np.ndarray], list[int]]:
    """The sound of each piece and the sample at which it begins; a short mel in one go."""
    engine, config, hop = voc._engine, voc.config, voc.hop_length
    starts, overlap = fold.cut(mel.shape[1], n, config)
    stops = [*(starts[1:] + overlap), mel.shape[1]]
    ahead, width = lookahead_frames(config), lookahead_frames(config) + context_frames(config)
    before = np.zeros((len(starts), len(mel), width), np.float32)
    block = np.zeros((len(starts), len(mel), mel.shape[1]), np.float32)
    counts = np.zeros(len(starts), np.int64)
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        known = mel[:, max(0, start + ahead - width) : start + ahead] if start else mel[:, :0]
        before[i, :, width - known.shape[1] :] = known
        rest = mel[:, start + ahead if start else 0 : stop + ahead]
        block[i, :, : rest.shape[1]], counts[i] = rest, rest.shape[1]
    state = engine.start(np.array([seed + own * i * OWN_SEED for i in range(len(starts))], np.uint64))
    state.begin_at(starts, before)
    ended = np.array([stop + ahead >= mel.shape[1] for stop in stops])
    sound, _ = engine.advance(state, block, counts, ended, voc.default_temperature, threads=voc.threads)
    parts = [row[: (stop - start) * hop] for row, start, stop in zip(sound, starts, stops, strict=True)]
    return parts, (starts * hop).tolist()


def joined(voc: wf.Vocoder, parts: list[np.ndarray], begins: list[int], fixed: bool) -> tuple[np.ndarray, list[dict]]:
    """The pieces as one sound, and where and how they met."""
    settle, fade = fold.settling_samples(voc.config), fold.fade_samples(voc.config)
    sound, joins = parts[0], []
    for part, begin in zip(parts[1:], begins[1:], strict=True):
        early, late = sound[begin:], part[: len(sound) - begin]
        first = len(late) - fade if fixed else fold.meeting_place(early, late, settle, fade)
        here = slice(first, first + fade)
        a, b = early[here].astype(np.float64), late[here].astype(np.float64)
        joins.append({"at": begin + first, "disagreement": float(((a - b) ** 2).sum() / ((a**2 + b**2).sum() + 1e-12))})
        sound = np.concatenate([sound[: begin + first], fold.cross_fade(early[here], late[here]), part[here.stop :]])
    return sound, joins


class Joins:
    """What can be heard of joins, one sound beside the plain one."""

    def __init__(self, rate: int, plain: np.ndarray) -> None:
        self.rate, self.plain = rate, plain
        self.plain_f0 = self.f0(plain)
        self.floor = 1e-3 * float(np.mean(np.diff(plain, 2) ** 2))

    def f0(self, sound: np.ndarray) -> np.ndarray:
        """Hz every 5 ms, 0 where there is none."""
        x = sound.astype(np.float64)
        rough, times = pyworld.dio(x, self.rate)
        return pyworld.stonemask(x, rough, times, self.rate)

    def roughness(self, sound: np.ndarray, at: int) -> float:
        span = round(0.01 * self.rate)
        return float(np.mean(np.diff(sound[max(0, at - span) : at + 2 * span], 2) ** 2)) + self.floor

    def f0_step(self, f0: np.ndarray, at: int) -> float:
        """Cents; 0 where no two neighbouring frames have a pitch."""
        frame = at / self.rate / 0.005
        near = f0[max(0, round(frame) - 4) : round(frame) + 7]
        voiced = (near[1:] > 0) & (near[:-1] > 0)
        steps = np.abs(1200 * np.log2(near[1:][voiced] / near[:-1][voiced]))
        return float(steps.max(initial=0.0))

    def look(self, sound: np.ndarray, places: list[int]) -> list[dict[str, float]]:
        f0 = self.f0(sound)
        return [
            {
                "roughness_db": 10 * np.log10(self.roughness(sound, at) / self.roughness(self.plain, at)),
                "f0_step_cents": self.f0_step(f0, at),
                "f0_step_cents_plain": self.f0_step(self.plain_f0, at),
            }
            for at in places
        ]


def evaluate(voc: wf.Vocoder, path: Path, folds: list[int], other: list[int], seed: int) -> dict:
    """One recording: {"scores": method → measures, "joins": method → list, "seconds": method → time}."""
    wav, rate = read_audio(path, voc.sample_rate)
    mel = voc.mel(wav, rate)
    length = min(len(wav), mel.shape[1] * voc.hop_length)
    original, row = wav[:length], {"file": path.name, "scores": {}, "joins": {}, "seconds": {}, "same_samples": {}}

    def add(name: str, sound: np.ndarray) -> None:
        row["scores"][name] = score(original, fit(sound, length), voc.mel_spec)

    def timed(name: str, **options: int) -> np.ndarray:
        began = time.perf_counter()
        sound = voc(mel, **options)
        row["seconds"][name] = time.perf_counter() - began
        return sound

    plain = timed("plain", seed=seed)
    add("plain", plain)
    another = voc(mel, seed=seed + OWN_SEED)
    add("another seed", another)
    looks = Joins(rate, plain)
    for n in folds:
        name = f"fold {n}"
        sound = timed(name, seed=seed, fold=n)
        parts = {own: pieces_of(voc, mel, n, seed, own) for own in ((False, True) if n in other else (False,))}
        mine, joins = joined(voc, *parts[False], fixed=False)
        if not np.array_equal(mine, sound):
            raise SystemExit(f"{path.name}, {name}: the joins looked at are not those of voc(mel, fold={n})")
        add(name, sound)
        row["same_samples"][name] = float((sound == plain).mean())
        places = [j["at"] for j in joins]
        row["joins"][name] = [j | look for j, look in zip(joins, looks.look(sound, places), strict=True)]
        row["joins"][f"another seed at the joins of {name}"] = looks.look(another, places)
        for way, (own, fixed) in OTHER_WAYS.items() if n in other else ():
            sound, joins = joined(voc, *parts[own], fixed)
            add(f"{name}, {way}", sound)
            found = looks.look(sound, [j["at"] for j in joins])
            row["joins"][f"{name}, {way}"] = [j | look for j, look in zip(joins, found, strict=True)]
    return row


def summary(rows: list[dict], times: bool) -> dict:
    """Means of the scores, mean differences from `plain` with their standard errors, and percentiles over the joins."""
    scores = means([row["scores"] for row in rows])
    against = {}
    for method in scores:
        steps = {k: [row["scores"][method][k] - row["scores"]["plain"][k] for row in rows] for k in scores[method]}
        spread = np.sqrt(max(1, len(rows)))
        against[method] = {k: [float(np.mean(v)), float(np.std(v, ddof=1) / spread)] for k, v in steps.items()}
    joins = {}
    for method in rows[0]["joins"]:
        found = [j for row in rows for j in row["joins"][method]]
        joins[method] = {"joins": len(found)}
        for k in found[0].keys() - {"at"}:
            values = [j[k] for j in found]
            joins[method][k] = {str(p): float(np.percentile(values, p)) for p in (50, 90, 95, 99, 100)}
    seconds = {m: sum(row["seconds"][m] for row in rows) for m in rows[0]["seconds"]}
    same = {m: float(np.mean([row["same_samples"][m] for row in rows])) for m in rows[0]["same_samples"]}
    return {
        "mean": scores,
        "difference_from_plain": against,
        "joins": joins,
        "samples_equal_to_plain": same,
        **({"times_as_fast_as_plain": {m: seconds["plain"] / s for m, s in seconds.items()}} if times else {}),
    }


def show(told: dict, files: int) -> None:
    print(f"{f'mean of {files}':34s}{'PESQ':>8s}{'− plain':>18s}{'STOI':>9s}{'log-mel dB':>12s}{'− plain':>18s}")
    for m, values in told["mean"].items():
        pesq, mel = (
            f"{values[k]:.3f}{d:+10.3f} ± {error:.3f}"
            for k in ("pesq_wb", "log_mel_db")
            for d, error in [told["difference_from_plain"][m][k]]
        )
        print(f"{m:34s}{pesq:>26s}{values['stoi']:9.4f}{mel:>30s}")
    print(f"\n{'joins: 50 / 95 / 99 / 100 %':44s}{'disagreement':>26s}{'roughness dB':>28s}{'F0 step, cents':>26s}")
    for m, j in told["joins"].items():
        cells = [
            " / ".join(f"{j[k][p]:.{digits}f}" for p in ("50", "95", "99", "100")) if k in j else ""
            for k, digits in (
                ("disagreement", 3),
                ("roughness_db", 1),
                ("f0_step_cents", 0),
                ("f0_step_cents_plain", 0),
            )
        ]
        print(f"{m:44s}{cells[0]:>26s}{cells[1]:>28s}{cells[2]:>26s}   plain: {cells[3]}")
    if "times_as_fast_as_plain" in told:
        print("\ntimes as fast as plain:", {m: round(s, 2) for m, s in told["times_as_fast_as_plain"].items()})
    print("\nsamples equal to plain:", {m: round(s, 3) for m, s in told["samples_equal_to_plain"].items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("voice")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--folds", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--other-ways", nargs="*", type=int, default=[16], help="folds at which to try them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--times", action="store_true", help="time the calls too")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many recordings")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    files = sorted(p for p in args.recordings.rglob("*") if p.suffix.lower() in {".wav", ".flac"})[: args.limit]
    if len(files) < 2:
        parser.error(f"{args.recordings}: fewer than two .wav or .flac files below it")
    voc = wf.Vocoder.from_pretrained(args.voice, dtype=args.dtype, threads=args.threads)
    rows = [evaluate(voc, path, args.folds, args.other_ways, args.seed) for path in tqdm(files, disable=None)]
    told = summary(rows, args.times)
    for row in rows:
        del row["joins"]  # thousands of lines, and their percentiles are told
        if not args.times:
            del row["seconds"]
    show(told, len(rows))
    if args.json:
        packages = ("numpy", "librosa", "pesq", "pystoi", "speechmos", "pyworld", "wavenet-fast")
        about = {
            "voice": Path(args.voice).name,
            "temperature": voc.default_temperature,
            "seed": args.seed,
            "backend": voc.backend,
            "dtype": voc.dtype,
            "isa": voc.isa,
            "threads": voc.threads,
            "overlap_seconds": [fold.SHORTEST, fold.LONGEST],
            "fade_seconds": fold.FADE,
            "machine": platform.machine(),
            "versions": {name: version(name) for name in packages},
        }
        args.json.write_text(json.dumps({"about": about, **told, "utterances": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
