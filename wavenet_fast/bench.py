"""How fast is an engine, and how near the speed at which this machine can read its weights? What `wavenet-fast bench`
tells.

The gate (bench_gate.py) runs first, and the stopwatch (stopwatch.py) only behind it. What the numbers mean:

    samples_per_s                 of all streams together; samples_per_s_stream of each. Median over the rounds of one
                                  long call each, the engine's start of a stream not counted
    rtf_16k                       processing time ÷ audio time of one stream at 16 kHz: 16000 ÷ samples_per_s_stream
    weight_bytes                  the packed matrices that every sample meets (dilated, residual, skip, head), as they
                                  lie in memory, padding included; not the conditioning, which is read once a frame
    bytes_per_s                   weight_bytes · samples_per_s_stream. A batch shares one reading
    stream_bandwidth_bytes_per_s  so many bytes, neither more nor fewer, read over and over by as many threads, each its
                                  own part: the median over the rounds of the fastest of this processor's reading loops
    roofline_fraction             samples_per_s_stream ÷ (stream_bandwidth_bytes_per_s ÷ weight_bytes): of the speed at
                                  which all weights can be read for every sample. The weights of older taps need not
                                  be (`ahead` of backends.cpu.Plan), so that it can be more than 1
    macs_per_s                    multiply-adds of the same matrices, without padding, in all streams
    p50_us, p99_us, p999_us       time per sample of a stream, as a chunk of `chunk_ms` of sound takes it: the call's
                                  time ÷ its samples. The call is what a caller waits for, Python's share included; the
                                  clock is not read within it. Of fewer than 1000 chunks, p999 is the slowest
    jitter_ratio                  p99.9 ÷ p50 of the chunks, over the same quotient of empty loops of equal length
    time_to_first_audio_ms        from fresh streams and their first mel to the first chunk of sound; median
    peak_rss_bytes                of this process: Python, the model's float weights, and as many bytes again as its
                                  matrices have, for the reading loops. The gate's torch runs in another process
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import BACKENDS, prepare
from .backends.base import Engine
from .bench_gate import Gate, macs_per_sample
from .cases import case, random_weights
from .checkpoint import load_checkpoint, resolve
from .config import WaveNetConfig
from .errors import BackendError, InputError

LIMITS = {"batch": 4096, "threads": 1024, "rounds": 1000}


@dataclass(frozen=True)
class Subject:
    """A network to time: a named case with random weights, or a voice."""

    name: str
    kind: str
    """"case" or "voice"."""
    config: WaveNetConfig
    weights: Mapping[str, NDArray[np.float32]]


def case_subject(name: str) -> Subject:
    """Raises `ConfigError` that lists the names."""
    config = case(name)
    return Subject(name, "case", config, random_weights(config))


def voice_subject(name: str) -> Subject:
    """A bundled voice's name or a checkpoint directory. Raises `CheckpointError`."""
    path = resolve(name)
    checkpoint = load_checkpoint(path)
    return Subject(path.name, "voice", checkpoint.config, checkpoint.weights)


def weight_bytes(engine: Engine) -> int:
    """Of the matrices that an engine reads for every sample; without padding where it does not say."""
    own = getattr(engine, "weight_bytes", None)
    if own is not None:
        return int(own)
    return macs_per_sample(engine.config) * {"fp32": 4, "int8": 1}.get(engine.dtype, 2)


def measure(
    subject: Subject,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    batch: int = 1,
    threads: int = 1,
    seconds: float = 10.0,
    rounds: int = 7,
    gate: Gate | None = None,
) -> dict[str, Any]:
    """Gate, then measure for about `seconds`; the numbers are described above, in plain data for JSON. `gate` is the
    subject's own where it has been made already.

    Raises `GateError` where the engine computes something else, `BackendError` and `InputError` for settings that
    cannot be."""
    for name, value in (("batch", batch), ("threads", threads), ("rounds", rounds)):
        if not 1 <= value <= LIMITS[name]:
            raise InputError(f"{name} is {value}; give 1 … {LIMITS[name]}")
    if not 0 < seconds <= 86400:
        raise InputError(f"seconds is {seconds}; give how long to measure, up to a day (86400)")
    if (why := BACKENDS["cpu"].why_not("cpu")) is not None:
        raise BackendError(f"the probes of a measurement are part of the native engine: {why}")
    from .stopwatch import Load, run_rounds

    engine = prepare(subject.config, subject.weights, backend, device, dtype).engine
    macs, size = macs_per_sample(subject.config), weight_bytes(engine)
    passed = (gate or Gate(subject.config, subject.weights)).check(engine, batch, threads)
    load = Load(engine, subject.weights, batch, threads)
    timings = run_rounds(load, size, seconds, rounds)
    bandwidths = {name: float(np.median(rates)) for name, rates in timings.bandwidth.items()}
    rate, loop = float(np.median(timings.rates)), max(bandwidths, key=lambda name: bandwidths[name])
    samples = load.chunk_samples
    return {
        subject.kind: subject.name,
        "backend": engine.name,
        "isa": engine.isa,
        "dtype": engine.dtype,
        "batch": batch,
        "threads": threads,
        "samples_per_s": rate * batch,
        "samples_per_s_stream": rate,
        "rtf_16k": 16000 / rate,
        "weight_bytes": size,
        "bytes_per_s": size * rate,
        "stream_bandwidth_bytes_per_s": bandwidths[loop],
        "stream_bandwidth_loop": loop,
        "roofline_fraction": rate / (bandwidths[loop] / size),
        "macs_per_sample": macs,
        "macs_per_s": macs * rate * batch,
        **_percentiles(np.array(timings.chunks), samples),
        "chunk_ms": 1000 * samples / subject.config.sample_rate,
        "chunks": len(timings.chunks),
        **_jitter(np.array(timings.chunks), np.array(timings.spins)),
        "time_to_first_audio_ms": 1000 * float(np.median(timings.first_audio)),
        "peak_rss_bytes": peak_rss_bytes(),
        "sample_rate": subject.config.sample_rate,
        "gate": passed,
        "rounds": {"samples_per_s_stream": timings.rates, "stream_bandwidth_bytes_per_s": timings.bandwidth},
        **about(),
    }


def _percentiles(chunks: NDArray[np.float64], samples: int) -> dict[str, float]:
    """Microseconds per sample: times that occurred, not between two that did."""
    times = 1e6 * np.quantile(chunks, [0.5, 0.99, 0.999], method="inverted_cdf") / samples
    return dict(zip(("p50_us", "p99_us", "p999_us"), map(float, times), strict=True))


def _jitter(chunks: NDArray[np.float64], spins: NDArray[np.float64]) -> dict[str, float]:
    """p99.9 ÷ p50 of both, and the ratio of the two quotients."""
    from .stopwatch import spread

    own, empty = spread(chunks), spread(spins)
    return {
        "chunk_p999_over_p50": own,
        "spin_p999_over_p50": empty,
        "jitter_ratio": own / empty,
        "spin_over_chunk": float(np.median(spins) / np.median(chunks)),
    }


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def about() -> dict[str, Any]:
    """Machine and versions, as `doctor` tells them."""
    from .doctor import examine

    told = examine()
    return {"machine": told["machine"], "versions": told["versions"], "environment": told["environment"]}


def format_bench(told: dict[str, Any]) -> str:
    """What `measure` returned, for people."""
    t, name = told, told.get("case") or told.get("voice")
    gate = t["gate"]
    streams = "1 stream" if t["batch"] == 1 else f"{t['batch']} streams"
    real_time = t["samples_per_s_stream"] / t["sample_rate"]
    rows = [
        ("gate", f"{gate['error']:.2g} of {gate['limit']:g} standard deviations off {gate['reference']}"),
        ("samples/s", f"{t['samples_per_s']:,.0f} in all, {t['samples_per_s_stream']:,.0f} each: "
                      f"{real_time:.2f} × real time at {t['sample_rate']} Hz"),
        ("real-time factor", f"{t['rtf_16k']:.4f} at 16 kHz"),
        ("weights", f"{t['weight_bytes'] / 1e6:.2f} MB; all of them a sample: {t['bytes_per_s'] / 1e9:.1f} GB/s"),
        ("ceiling", f"{t['stream_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, {t['stream_bandwidth_loop']} loads; "
                    f"reached: {t['roofline_fraction']:.2f}"),
        ("multiply-adds/s", f"{t['macs_per_s'] / 1e9:.1f} G"),
        ("µs per sample", f"{t['p50_us']:.2f} p50, {t['p99_us']:.2f} p99, {t['p999_us']:.2f} p99.9 "
                          f"({t['chunks']} chunks of {t['chunk_ms']:.3g} ms)"),
        ("p99.9 ÷ p50", f"{t['chunk_p999_over_p50']:.2f}; of empty loops {t['spin_p999_over_p50']:.2f}; "
                        f"ratio {t['jitter_ratio']:.2f}"),
        ("first audio", f"{t['time_to_first_audio_ms']:.2f} ms"),
        ("peak memory", f"{math.ceil(t['peak_rss_bytes'] / 1e6)} MB"),
        ("machine", f"{t['machine']['processor']}, {t['machine']['usable_cores']} usable cores"),
    ]  # fmt: skip
    settings = f"{t['backend']} {t['isa']} {t['dtype']}, {streams}, {t['threads']} thread{'s' * (t['threads'] != 1)}"
    return "\n".join([f"{name}: {settings}", *(f"  {label:<18}{text}" for label, text in rows)])
