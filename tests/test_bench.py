"""`wavenet-fast bench`: what it tells, how its numbers belong together, and what it refuses. No clock is compared."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from cli_result import refused
from click.testing import CliRunner, Result

from wavenet_fast import _engine, bench_gate, stopwatch
from wavenet_fast.backends import BACKENDS
from wavenet_fast.backends.cpu import CpuEngine, isas_possible, layouts_of
from wavenet_fast.bench import case_subject, format_bench, measure, weight_bytes
from wavenet_fast.bench_gate import LIMITS, Gate, engine_logits, macs_per_sample
from wavenet_fast.cases import CASES, case, random_weights
from wavenet_fast.checkpoint import save_checkpoint
from wavenet_fast.cli import cli
from wavenet_fast.errors import GateError, InputError
from wavenet_fast.packing import DTYPES, is_streamed, pack
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import sample
from wavenet_fast.stopwatch import Load, run_rounds, spread

FIELDS = {
    "case", "backend", "isa", "dtype", "batch", "threads", "samples_per_s", "samples_per_s_stream", "rtf_16k",
    "weight_bytes", "bytes_per_s", "stream_bandwidth_bytes_per_s", "roofline_fraction", "macs_per_s", "p50_us",
    "p99_us", "p999_us", "time_to_first_audio_ms", "peak_rss_bytes", "machine", "versions", "chunk_p999_over_p50",
    "spin_p999_over_p50", "jitter_ratio",
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_torch(monkeypatch, request) -> None:
    """The gate's reference without a process that loads torch, except where a test asks for it."""
    if "with_torch" not in request.keywords:
        monkeypatch.setattr(
            bench_gate, "BACKENDS", {"reference": type("Off", (), {"why_not": staticmethod(lambda device: "no torch")})}
        )


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, args)])


def check_relations(told: dict) -> None:
    """What holds between the numbers whatever the machine."""
    batch, rate, size = told["batch"], told["samples_per_s_stream"], told["weight_bytes"]
    assert rate > 0 and math.isclose(told["samples_per_s"], batch * rate)
    assert rate == np.median(told["rounds"]["samples_per_s_stream"])
    assert math.isclose(told["rtf_16k"] * rate, 16000)
    assert math.isclose(told["bytes_per_s"], size * rate)
    ceilings = {name: np.median(r) for name, r in told["rounds"]["stream_bandwidth_bytes_per_s"].items()}
    assert told["stream_bandwidth_bytes_per_s"] == max(ceilings.values()) == ceilings[told["stream_bandwidth_loop"]]
    assert math.isclose(told["roofline_fraction"], told["bytes_per_s"] / told["stream_bandwidth_bytes_per_s"])
    assert math.isclose(told["macs_per_s"], told["macs_per_sample"] * told["samples_per_s"])
    assert 0 < told["p50_us"] <= told["p99_us"] <= told["p999_us"]
    assert math.isclose(told["chunk_p999_over_p50"], told["p999_us"] / told["p50_us"])
    assert math.isclose(told["jitter_ratio"], told["chunk_p999_over_p50"] / told["spin_p999_over_p50"])
    assert told["time_to_first_audio_ms"] > 0 and told["peak_rss_bytes"] > 1 << 20
    assert told["gate"]["error"] <= told["gate"]["limit"] < 1


# --- what it tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BACKENDS["cpu"].dtypes)
def test_the_command_writes_every_field_and_they_belong_together(tmp_path, dtype):
    path = tmp_path / "b.json"
    args = ("--batch", 3, "--threads", 2, "--seconds", 0.2, "--rounds", 3)
    result = run("--case", "tiny", "--dtype", dtype, *args, "--json", path)
    assert result.exit_code == 0, result.output
    told = json.loads(path.read_text())
    assert told.keys() >= FIELDS
    assert (told["case"], told["backend"], told["dtype"]) == ("tiny", "cpu", dtype)
    assert (told["batch"], told["threads"], told["chunk_ms"]) == (3, 2, 10.0)
    assert told["macs_per_sample"] == macs_per_sample(case("tiny"))
    assert told["versions"]["numpy"] == np.__version__ and told["machine"]["usable_cores"] >= 1
    check_relations(told)
    assert "tiny: cpu" in result.stdout and "3 streams, 2 threads" in result.stdout


def test_a_voice_and_stdout(make_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "small", make_checkpoint())
    result = run("--voice", tmp_path / "small", "--dtype", "fp32", "--seconds", 0.1, "--rounds", 2, "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["voice"] == "small" and "case" not in told and told["threads"] == 1
    check_relations(told)
    assert "small: cpu" in format_bench(told)


@pytest.mark.parametrize("name", ["logistic", "gaussian", "gaussian-mixture"])
def test_other_heads_speakers_and_looking_ahead(name):
    from engine_models import MODELS

    from wavenet_fast.bench import Subject

    config = MODELS[name]
    told = measure(Subject(name, "case", config, random_weights(config)), dtype="fp32", seconds=0.05, rounds=1)
    check_relations(told)
    assert told["gate"]["samples"] % config.hop_length == 0


@pytest.mark.with_torch
def test_the_gate_asks_the_reference_where_torch_is(tmp_path):
    pytest.importorskip("torch")
    told = measure(case_subject("odd"), dtype="bf16", batch=2, seconds=0.05, rounds=1)
    assert told["gate"]["reference"] == "the PyTorch reference in bf16"
    assert told["gate"]["samples"] > CASES["odd"].receptive_field
    assert told["gate"]["limit"] == LIMITS["bf16", "bf16"] and told["gate"]["error"] < 0.05


@pytest.mark.with_torch
def test_a_torch_that_cannot_be_loaded_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is damaged')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused(run("--case", "tiny", "--seconds", 0.1), "PyTorch reference", "libtorch.so is damaged", "Mend")


def test_without_torch_the_gate_asks_the_portable_engine():
    told = measure(case_subject("odd"), dtype="bf16", seconds=0.05, rounds=1)
    assert "portable" in told["gate"]["reference"] and 1e-4 < told["gate"]["error"] < 0.1


# --- what is counted --------------------------------------------------------------------------------------------


def test_multiply_adds_and_bytes_are_those_of_the_shapes():
    # 20 layers of 2 × 64 → 128, 19 of 64 → 64, 20 of 64 → 128, then 128 → 256 → 256
    macs = 20 * 2 * 64 * 128 + 19 * 64 * 64 + 20 * 64 * 128 + 128 * 256 + 256 * 256
    assert macs_per_sample(case("nv-medium")) == macs == 667_648
    weights = random_weights(case("nv-medium"))  # sizes that no instruction set pads
    for dtype, width in (("fp32", 4), ("bf16", 2), ("fp16", 2), ("int8", 1)):
        engine = CpuEngine(case("nv-medium"), weights, dtype)
        assert weight_bytes(engine) == engine.weight_bytes == width * macs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
def test_padding_counts(isa, dtype):
    """`odd`, whose sizes every instruction set pads, against the arrays that are packed."""
    c = case("odd")
    weights = random_weights(c)
    packed = pack(c, weights, layouts_of(isa), dtype)
    names = [name for name in packed if is_streamed(name) or name == "skip.weight"]
    assert len(names) == 5 + 4 + 3
    engine = CpuEngine(c, weights, dtype, isa)
    assert weight_bytes(engine) == sum(packed[name].nbytes for name in names)
    assert weight_bytes(engine) > {"fp32": 4, "int8": 1}.get(dtype, 2) * macs_per_sample(c)


# --- probes -----------------------------------------------------------------------------------------------------


def read_by_vectors(data, lanes, times) -> int:
    """In words of 32 bits, one sum a lane, where a vector fits, and in bytes at the end."""
    whole = len(data) // (4 * lanes) * 4 * lanes
    words = data[:whole].view("<u4").reshape(-1, lanes).astype(np.uint64)
    sums = times * words.sum(axis=0) & np.uint64(0xFFFFFFFF)
    return int(sums.sum()) + times * int(data[whole:].sum(dtype=np.uint64))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 63, 4096, 30_001, 100_003])
def test_reading_loops_read_every_byte_once_a_pass(size, threads):
    """A loop adds up what it read; so does this. Tiles sum blocks of 4 KiB, in the first pass."""
    data = (np.arange(size) * 7 + 1).astype(np.uint8)
    part = math.ceil(math.ceil(size / threads) / 64) * 64
    probe = _engine.ReadProbe(size, threads)
    for isa, kind in _engine.read_loops():
        seconds, total = probe.run(isa, kind, 3)
        lanes, expected = layouts_of(isa)["fp32"].lanes, 0
        for piece in (data[i : i + part] for i in range(0, size, part)):
            blocks = len(piece) // 4096 * 4096 if kind == "tile" else 0
            expected += int(piece[:blocks].view(np.int8).sum(dtype=np.int64)) % 2**32
            expected += read_by_vectors(piece[blocks:], lanes, 3)
        assert total == expected and seconds >= 0, (isa, kind, size, threads)


def test_every_possible_instruction_set_has_a_reading_loop():
    assert {isa for isa, _ in _engine.read_loops()} == set(isas_possible())
    assert not any(name.startswith("portable16") for name in stopwatch.reading_loops())


@pytest.mark.parametrize(("size", "threads"), [(0, 1), (-1, 1), (1 << 41, 1), (64, 0), (64, 1025)])
def test_probes_refuse_sizes_that_cannot_be(size, threads):
    with pytest.raises(ValueError, match="give 1"):
        _engine.ReadProbe(size, threads)


def test_probes_refuse_loops_that_are_not_there():
    probe = _engine.ReadProbe(64, 1)
    for isa, kind, times in (("mmx", "vector", 1), ("portable", "tile", 1), ("portable", "disk", 1)):
        with pytest.raises(ValueError, match="loop"):
            probe.run(isa, kind, times)
    with pytest.raises(ValueError, match="at least once"):
        probe.run("portable", "vector", 0)
    with pytest.raises(ValueError, match="threads"):
        _engine.spin(1, 0)
    _engine.spin(0, 3)


# --- stages ---------------------------------------------------------------------------------------------------------


def close(found, expected, dtype) -> None:
    """As near as the number format lets a product of a few dozen numbers come."""
    n, limit = len(expected), {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2, "int8": 5e-2}[dtype]
    np.testing.assert_allclose(found[:n], expected, atol=limit * np.abs(expected).max())
    assert not found[n:].any()


def by_turns(halves, lanes) -> np.ndarray:
    """(2, n) → vectors of the one and of the other by turns, each half padded."""
    padded = np.pad(halves, ((0, 0), (0, -halves.shape[1] % lanes)))
    return padded.reshape(2, -1, lanes).transpose(1, 0, 2).ravel()


@pytest.mark.parametrize("streams", [1, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas_possible())
def test_a_stage_by_itself_computes_that_stage(isa, dtype, streams):
    """Of the last layer, from what the stage before left, in float64; with no bias where the test would need one."""
    c, w = case("odd"), {name: t.astype(np.float64) for name, t in random_weights(case("odd")).items()}
    lanes, last = layouts_of(isa)[dtype].lanes, c.n_layers - 1
    engine = CpuEngine(c, random_weights(c), dtype, isa)
    stages = _engine.Stages(engine._model, streams)

    def rows(name) -> np.ndarray:
        return np.stack([stages.row(name, b) for b in range(streams)])

    stages.run("dilated", 2)
    taps = w[f"layers.{last}.dilated.weight"].sum(axis=2)
    for x, z in zip(rows("x"), rows("z"), strict=True):
        halves = (taps @ x[: c.residual_channels] + w[f"layers.{last}.dilated.bias"]).reshape(2, -1)
        close(z, by_turns(halves, lanes), dtype)
    stages.run("gate", 2)
    for z, gate in zip(rows("z").astype(np.float64), rows("gate"), strict=True):
        a, b = z.reshape(-1, 2, lanes).transpose(1, 0, 2).reshape(2, -1)
        np.testing.assert_allclose(gate, np.tanh(a) / (1 + np.exp(-b)), atol=1e-6)
    stages.run("residual+skip", 2)
    for gate, residual, skip in zip(rows("gate"), rows("residual"), rows("skip"), strict=True):
        gate = gate[: c.gate_channels // 2]  # every layer hears the same one
        close(residual, w[f"layers.{last - 1}.residual.weight"] @ gate + w[f"layers.{last - 1}.residual.bias"], dtype)
        layers = range(c.n_layers)
        close(skip, sum(w[f"layers.{i}.skip.weight"] @ gate + w[f"layers.{i}.skip.bias"] for i in layers), dtype)
    stages.run("head", 2)
    for skip, hidden, logits in zip(rows("skip"), rows("hidden"), rows("logits"), strict=True):
        rectified = np.maximum(skip[: c.skip_channels], 0)
        close(hidden, w["head.hidden.weight"] @ rectified + w["head.hidden.bias"], dtype)
        rectified = np.maximum(hidden[: c.head_channels], 0)
        close(logits, w["head.out.weight"] @ rectified + w["head.out.bias"], dtype)
    stages.run("sample", 2)  # the second draw
    for b, logits in enumerate(rows("logits")):
        drawn = sample(logits[: c.out_channels], uniforms(np.uint64(b), 1), c.head, 1.0)
        assert drawn == stages.row("draw", b)[0]


def test_stages_refuse_what_there_is_not():
    engine = CpuEngine(case("tiny"), random_weights(case("tiny")), "fp32")
    for streams in (0, 17):
        with pytest.raises(ValueError, match=r"1 … 16 streams"):
            _engine.Stages(engine._model, streams)
    stages = _engine.Stages(engine._model, 1)
    for call in (lambda: stages.run("embed", 1), lambda: stages.row("embed", 0), lambda: stages.row("x", 1)):
        with pytest.raises(ValueError, match="there is no"):
            call()


# --- rounds -----------------------------------------------------------------------------------------------------


def test_spread_is_of_times_that_occurred():
    times = np.concatenate([np.full(1498, 2.0), [10.0, 3.0]])
    assert spread(times) == 1.5 and spread(times[600:]) == 5.0 and spread(np.array([4.0])) == 1.0


def test_a_load_feeds_whole_chunks_to_every_stream():
    c = CASES["odd"]
    engine = CpuEngine(c, random_weights(c), "fp32")
    load = Load(engine, random_weights(c), 2, 1)
    assert load.lookahead == 1 and load.chunk_samples == 11 * round(0.010 * 16000 / 11)
    state, chunks = load.start(), load.chunks()
    assert list(state.positions) == [0, 0]
    for i in range(40):  # beyond the mel's end, round and round
        assert load.advance(state, next(chunks)) == load.chunk_samples
        assert list(state.positions) == [(i + 1) * load.chunk_samples] * 2
    assert load.long_mel(1000).shape == (2, 13, 1000)


def test_a_slow_engine_gets_fewer_rounds(monkeypatch):
    """A clock that runs a second a look: one chunk fills the time."""
    now = iter(range(10**6))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(stopwatch, "LOOP_SECONDS", 0.0)
    weights = random_weights(CASES["tiny"])
    load = Load(CpuEngine(CASES["tiny"], weights, "fp32"), weights, 1, 1)
    timings = run_rounds(load, 1000, 2.0, 7)
    assert len(timings.rates) == len(timings.chunks) == len(timings.spins) == 1
    timings = run_rounds(load, 1000, 40.0, 2)
    assert len(timings.rates) == 2 and len(timings.chunks) == len(timings.spins) == 2 * round(0.3 * 20)


# --- refusals ---------------------------------------------------------------------------------------------------


def broken(config, weights, dtype, device):
    """An engine whose first layer hears its past with the wrong sign."""
    changed = dict(weights)
    changed["layers.0.dilated.weight"] = -changed["layers.0.dilated.weight"]
    return CpuEngine(config, changed, dtype)


@pytest.mark.parametrize("name", ["tiny", "odd"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_gate_stops_a_broken_engine_before_the_clock_starts(name, dtype, monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", dataclasses.replace(BACKENDS["cpu"], make=broken))
    monkeypatch.setattr(stopwatch, "run_rounds", lambda *_: pytest.fail("timed"))
    refused(run("--case", name, "--dtype", dtype, "--seconds", 0.1), "standard deviations off", "nothing is timed")


def test_the_gate_allows_rounded_activations_in_fp16_to_those_that_round_them(monkeypatch):
    c = CASES["tiny"]
    engine, gate = CpuEngine(c, random_weights(c), "fp16"), Gate(c, random_weights(c))
    name, _, logits = gate.expected("fp32")
    monkeypatch.setattr(gate, "expected", lambda dtype: (name, "fp16", logits))
    with pytest.raises(GateError, match=r"where 0\.0001 are allowed"):
        gate.check(engine)
    monkeypatch.setattr(engine, "name", "triton", raising=False)
    assert 1e-4 < gate.check(engine)["error"] < gate.check(engine)["limit"] == bench_gate.ROUNDED_FP16_LIMIT


def test_the_gate_looks_at_every_stream_and_at_numbers_that_are_none(monkeypatch):
    c = CASES["tiny"]
    engine, gate = CpuEngine(c, random_weights(c), "fp32"), Gate(c, random_weights(c))
    assert gate.check(engine, batch=3, threads=2)["error"] < 1e-4
    for stream, wrong in ((2, 100.0), (1, np.nan)):

        def spoilt(*args, stream=stream, wrong=wrong):
            logits = engine_logits(*args)
            logits[stream, -1, -1] = wrong
            return logits

        monkeypatch.setattr(bench_gate, "engine_logits", spoilt)
        with pytest.raises(GateError, match="nothing is timed"):
            gate.check(engine, batch=3)
        monkeypatch.setattr(bench_gate, "engine_logits", engine_logits)


def test_a_large_batch_passes_the_gate_on_fewer_samples(monkeypatch):
    c = CASES["odd"]
    engine, gate = CpuEngine(c, random_weights(c), "fp32"), Gate(c, random_weights(c))
    whole = gate.check(engine)["samples"]
    monkeypatch.setattr(bench_gate, "MAX_WORK", macs_per_sample(c) * c.hop_length * 2 * 2)
    assert gate.check(engine, batch=2)["samples"] == 2 * c.hop_length < whole
    assert gate.check(engine, batch=100)["samples"] == c.hop_length


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--case", "huge"), ("case 'huge' is unknown", "nv-medium")),
        (("--case", "tiny", "--dtype", "int3"), ("dtype is 'int3'", "'bf16'")),
        (("--case", "tiny", "--backend", "tpu"), ("backend is 'tpu'",)),
        (("--case", "tiny", "--batch", 0), ("--batch",)),
        (("--case", "tiny", "--threads", 0), ("--threads",)),
        (("--case", "tiny", "--rounds", 0), ("--rounds",)),
        (("--case", "tiny", "--seconds", 0), ("seconds is 0",)),
        (("--case", "tiny", "--seconds", "nan"), ("seconds is nan",)),
        (("--case", "tiny", "--voice", "nsh-ru"), ("--case", "--voice", "one of them")),
        (("--voice", "nobody"), ("nobody",)),
        (("--case", "tiny", "--json", "/"), ("is a folder",)),
        (("--case", "tiny", "--json", "no/where.json"), ("lies in none",)),
        (("--case", "tiny", "--json", ""), ("name a file",)),
    ],
)
def test_what_cannot_be_is_a_sentence(args, words, monkeypatch):
    monkeypatch.setattr(stopwatch, "run_rounds", lambda *_: pytest.fail("timed"))
    refused(run(*args), *words)


def test_without_the_native_engine_there_is_no_measure(monkeypatch):
    off = dataclasses.replace(BACKENDS["cpu"], why_not=lambda device: "it was switched off")
    monkeypatch.setitem(BACKENDS, "cpu", off)
    refused(run("--case", "tiny", "--backend", "reference"), "probes", "it was switched off")


def test_python_callers_are_told_too():
    for changes in ({"batch": 0}, {"batch": 5000}, {"threads": -1}, {"rounds": 0}, {"seconds": math.inf}):
        with pytest.raises(InputError, match=next(iter(changes))):
            measure(case_subject("tiny"), **changes)
