"""What is asked of a `GpuEngine`, wherever its kernels run: interpreted, emulated or on a GPU. Each check raises
`AssertionError` where the engine is wrong, and returns what it measured.

Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from engine_models import random_history, random_mel, reference_stages, speaker_vectors
from numpy.typing import NDArray
from tolerances import MISMATCHES, TRACE_MAX, TRACE_RMS, UNIFORM, VALUE, of_depth

from wavenet_fast.backends.gpu_engine import GpuEngine
from wavenet_fast.backends.host_state import HostState
from wavenet_fast.config import CategoricalHead, ScalarInput, WaveNetConfig
from wavenet_fast.packing import hearing_format
from wavenet_fast.rng import uniforms
from wavenet_fast.sampling import cdf_edge_distance, sample
from wavenet_fast.signal import fed_back, to_waveform

Engine = GpuEngine[Any]
SEEDS = [2**64 - 1, 2**63 + 11, 3, 1 << 33]
TEMPERATURE = 0.7


def frames_past_every_dilation(config: WaveNetConfig, samples: int = 64) -> int:
    """Frames of at least so many samples, and of more than any ring holds."""
    return -(-max(samples, (config.kernel_size - 1) * max(config.dilations) + 2) // config.hop_length)


# --- stages -----------------------------------------------------------------------------------------------------


def check_stages(
    engine: Engine, weights: Mapping[str, NDArray[np.float32]], frames: int | None = None
) -> dict[str, tuple[float, float]]:
    """Every stage against the reference under forced history; the reference rounds where the kernels do.

    Returns stage → largest and root mean square difference, in standard deviations of the stage."""
    config, dtype = engine.config, engine.dtype
    frames = frames_past_every_dilation(config) if frames is None else frames
    vectors = speaker_vectors(config, 1)
    given = random_mel(config, frames), random_history(config, frames * config.hop_length)
    theirs = reference_stages(config, weights, dtype, *given, vectors, "fp16" if dtype == "fp16" else None)
    ours = engine.trace(*given, 0, None if vectors is None else vectors[0])
    assert ours.keys() == theirs.keys()
    errors = {}
    for stage, values in theirs.items():
        assert ours[stage].shape == values.shape and np.isfinite(ours[stage]).all(), stage
        off, spread = np.abs(ours[stage].astype(np.float64) - values), values.std()
        errors[stage] = float(off.max() / spread), float(np.sqrt(np.mean(off**2)) / spread)
        # Nothing is rounded before the first product.
        exact = stage == "embed" or (stage == "conditioning" and hearing_format(dtype) == "fp32")
        deeper = of_depth(config.n_layers)
        limits = [deeper * table[engine.name, "fp32" if exact else dtype] for table in (TRACE_MAX, TRACE_RMS)]
        assert errors[stage][0] <= limits[0] and errors[stage][1] <= limits[1], (
            f"{stage} is off by {errors[stage][0]:.2e} standard deviations, root mean square {errors[stage][1]:.2e}; "
            f"{limits[0]:.0e} and {limits[1]:.0e} are allowed"
        )
    return errors


# --- draws and sound --------------------------------------------------------------------------------------------


def start(engine: Engine, batch: int) -> HostState:
    return engine.start(np.array(SEEDS[:batch], np.uint64), speaker_vectors(engine.config, batch))


def feed(
    engine: Engine, state: HostState, mel: NDArray[np.float32], frames: Any = None, ended: Any = True,
    temperature: float = TEMPERATURE, **options: Any,
) -> Any:  # fmt: skip
    """One `advance`; all frames of the mel unless told otherwise."""
    counts = np.full(state.batch, mel.shape[2]) if frames is None else np.asarray(frames)
    return engine.advance(
        state, np.ascontiguousarray(mel), counts, np.broadcast_to(np.asarray(ended), (state.batch,)), temperature,
        **options,
    )[0]  # fmt: skip


def speak(engine: Engine, frames: int, batch: int = 3, temperature: float = TEMPERATURE) -> Any:
    """A fresh batch over `random_mel`: draws (B, T), logits (B, T, A) and the state after."""
    config, state = engine.config, start(engine, batch)
    logits = np.full((batch, frames * config.hop_length, config.out_channels), np.nan, np.float32)
    mel = random_mel(config, frames, batch)
    draws = feed(engine, state, mel, temperature=temperature, logits=logits, raw=True)
    assert np.isfinite(logits).all()
    return draws, logits, state


def check_draws(
    config: WaveNetConfig, draws: NDArray[Any], logits: NDArray[np.float32], temperature: float = TEMPERATURE,
    first: int = 0,
) -> tuple[int, float]:  # fmt: skip
    """Draws (B, T) of the streams `SEEDS` from position `first` on against their own logits (B, T, A).

    Returns how many classes differ and how far the farthest uniform lies from the edge between the two, or for
    continuous heads 0 and the largest difference."""
    t = first + np.arange(draws.shape[1])
    u = np.stack([uniforms(np.uint64(seed), t) for seed in SEEDS[: len(draws)]])
    expected = sample(logits, u, config.head, temperature)
    if not isinstance(config.head, CategoricalHead):
        off = float(np.abs(draws - expected).max())
        assert off <= VALUE, f"a draw is off by {off:.1e}; {VALUE:.0e} are allowed"
        assert np.unique(draws).size > draws.size // 2
        return 0, off
    wrong = draws != expected
    far = cdf_edge_distance(logits[wrong], u[wrong][:, 0], temperature, (draws[wrong], expected[wrong]))
    allowed = 1 + int(draws.size * MISMATCHES["fp32"])
    assert wrong.sum() <= allowed and (far <= UNIFORM).all(), f"{wrong.sum()} of {draws.size} draws differ, by {far}"
    return int(wrong.sum()), float(far.max(initial=0.0))


def check_sound(engine: Engine, frames: int, draws: NDArray[Any]) -> NDArray[np.float32]:
    """The sound of the same batch is that of its draws, which is returned."""
    sound = feed(engine, start(engine, len(draws)), random_mel(engine.config, frames, len(draws)))
    expected = np.stack([to_waveform(row, engine.config)[0] for row in draws])
    np.testing.assert_allclose(sound, expected, rtol=0, atol=VALUE)
    return sound


# --- laws, bit for bit ------------------------------------------------------------------------------------------


def same_states(one: HostState, other: HostState, filters: float = 0.0) -> None:
    """Everything that is saved, and the padding of the rings, which must have stayed zero. `filters` may differ by so
    much, all else by nothing."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        if name == "filters" and filters:
            np.testing.assert_allclose(value, b[name], rtol=0, atol=filters)
        else:
            np.testing.assert_array_equal(value, b[name], err_msg=name)
    for state in (one, other):
        engine: Any = state.engine
        assert not rings_of(state)[..., engine.config.residual_channels : engine.shape.R].any()


def rings_of(state: Any) -> Any:
    """(B, SLOTS, R) with their padding, on the host."""
    if state.engine.name == "triton":
        return state.rings.cpu()
    return state.engine.model.device.download(state.rings)


def check_known_history(engine: Engine, frames: int, draws: Any, logits: Any, state: HostState) -> None:
    """What `speak` gave, under forced history, however the engine goes about that: the same bits, and the same state
    after."""
    forced, again = start(engine, len(draws)), np.full_like(logits, np.nan)
    drawn = feed(
        engine, forced, random_mel(engine.config, frames, len(draws)), forced=fed_back(draws, engine.config),
        logits=again, raw=True,
    )  # fmt: skip
    np.testing.assert_array_equal(again, logits)
    if isinstance(engine.config.head, CategoricalHead):
        np.testing.assert_array_equal(drawn, draws)
    else:
        np.testing.assert_allclose(drawn, draws, rtol=0, atol=VALUE)
    # Where a class is heard as a value, a draw sounds by the table of classes, and what was heard by the formula.
    config = engine.config
    by_table = isinstance(config.head, CategoricalHead) and isinstance(config.input, ScalarInput)
    same_states(forced, state, VALUE if by_table else 0.0)


def check_chunks(engine: Engine, frames: int, sizes: list[int], draws: Any, logits: Any, state: HostState) -> None:
    """What `speak` gave, in pieces of these sizes and with the state saved and loaded between: bit for bit."""
    config, batch, done, pieces = engine.config, len(draws), 0, []
    mel, now = random_mel(config, frames, batch), start(engine, batch)
    out = np.full_like(logits, np.nan)
    for size in [*sizes, frames - sum(sizes)]:
        made = sum(piece.shape[1] for piece in pieces)
        part, ended = mel[:, :, done : done + size], done + size == frames
        room = np.full((batch, size * config.hop_length + logits.shape[1], config.out_channels), np.nan, np.float32)
        piece = feed(engine, now, part, ended=ended, logits=room, raw=True)
        out[:, made : made + piece.shape[1]] = room[:, : piece.shape[1]]
        assert np.isnan(room[:, piece.shape[1] :]).all()
        pieces.append(piece)
        done += size
        later = start(engine, batch)
        later.load_state_dict(now.state_dict())
        now = later
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), draws)
    np.testing.assert_array_equal(out, logits)
    same_states(now, state)


def check_batches(engine: Engine, frames: int, batch: int = 19) -> NDArray[Any]:
    """Streams of all lengths, one empty, more than fill a tile, with NaN wherever nothing may be read: each says what
    it says alone and in another slot. Returns the draws."""
    config = engine.config
    lengths = np.array([(5 * b + frames) % (frames + 1) for b in range(batch)])
    assert lengths.max() == frames and lengths.min() == 0
    mel, vectors = random_mel(config, frames, batch), speaker_vectors(config, batch)
    for b, length in enumerate(lengths):
        mel[b, :, length:] = np.nan
    seeds = np.arange(100, 100 + batch, dtype=np.uint64)

    def made(which: NDArray[Any]) -> Any:
        state = engine.start(seeds[which], None if vectors is None else vectors[which])
        room = (len(which), frames * config.hop_length, config.out_channels)
        logits = np.full(room, np.nan, np.float32)
        own = np.ascontiguousarray(mel[which])
        draws = feed(engine, state, own, lengths[which], raw=True, logits=logits)
        return draws, logits, state.state_dict()

    together = made(np.arange(batch))
    for which in (np.arange(batch)[::-1], np.array([batch - 1]), np.array([int(lengths.argmax()), 1, 0])):
        draws, logits, after = made(which)
        for slot, b in enumerate(which):
            count = lengths[b] * config.hop_length
            np.testing.assert_array_equal(draws[slot, :count], together[0][b, :count])
            assert not draws[slot, count:].any()
            np.testing.assert_array_equal(logits[slot], together[1][b])
            assert np.isnan(logits[slot, count:]).all()
            for name in ("rings", "inputs", "filters", "positions"):
                np.testing.assert_array_equal(after[name][slot], together[2][name][b], err_msg=name)
    return together[0]
