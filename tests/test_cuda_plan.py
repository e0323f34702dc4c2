"""The planner of the CUDA kernels: every plan fits the device that it is for, and says why it is as it is."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wavenet_fast.kernels.cuda.cut import cut, even_slices, fewest_pieces
from wavenet_fast.kernels.cuda.devices import DEVICES, DeviceProperties, properties_of
from wavenet_fast.kernels.cuda.occupancy import occupancy
from wavenet_fast.kernels.cuda.plan import Plan, as_dict, explain, plan
from wavenet_fast.kernels.cuda.ways import BARRIERS

from wavenet_fast.cases import CASES
from wavenet_fast.config import WaveNetConfig
from wavenet_fast.errors import BackendError, InputError
from wavenet_fast.sampling import out_channels

DTYPES = ("fp32", "bf16", "fp16", "int8")
BATCHES = (1, 8, 9, 100, 5000)
VARIANTS = ("auto", "resident", "streaming_weights")


@dataclass(frozen=True)
class Letters:
    LAYERS: int
    K: int
    R: int
    HALF: int
    S: int
    H: int
    A: int


def letters(config: WaveNetConfig) -> Letters:
    channels = (config.residual_channels, config.gate_channels // 2, config.skip_channels, config.head_channels)
    padded = (-(-n // 16) * 16 for n in (*channels, out_channels(config.head)))
    return Letters(config.n_layers, config.kernel_size, *padded)


SIZES = {name: letters(config) for name, config in CASES.items()}


def tape(rows: int, inputs: int, dtype: str) -> int:
    step = 32 if dtype == "int8" else 16
    return rows * (-(-inputs // step) * step) * {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[dtype]


def check(p: Plan, s: Letters, device: DeviceProperties, clusters: dict[int, int] | None = None) -> None:
    """What must hold of any plan, counted anew from the plan's own numbers."""
    fit = occupancy(device, p.threads, p.registers, p.shared_bytes, BARRIERS)
    assert p.shared_bytes <= device.shared_per_block
    assert 1 <= p.chain_warps <= 8 and 1 <= p.skip_warps <= 4 and p.threads <= 1024
    assert p.weight_registers < p.registers <= p.register_limit <= 255
    assert fit.blocks >= 1

    # Layers in order, each once; no block without work; the head once, at the end.
    assert [layer for block in range(p.blocks) for layer in p.layers_of(block)] == list(range(s.LAYERS))
    assert len(p.first_layers) == len(p.shared) == p.blocks and p.head_block == p.blocks - 1
    assert all(p.layers_of(block) for block in range(p.head_block))

    # Every weight has a home, and the bytes of the homes add up.
    newest, residual = tape(2 * s.HALF, s.R, p.dtype), tape(s.R, s.HALF, p.dtype)
    layer = (s.K - 1) * newest + tape(s.S, s.HALF, p.dtype) + (newest + residual) * (p.homes["newest"] == "shared")
    head = tape(s.H, s.S, p.dtype) + tape(s.A, s.H, p.dtype)
    on_chip = p.variant == "resident"
    assert [block.get("layer_tapes", 0) for block in p.shared] == [
        on_chip * layer * len(p.layers_of(block)) for block in range(p.blocks)
    ]
    assert sum(block.get("head_tape", 0) for block in p.shared) == head * (p.homes["head"] == "shared")
    assert p.homes["residual"] == p.homes["newest"]
    assert (p.homes["newest"] == "registers") == (p.weight_registers > 0)
    assert p.weight_registers <= 128 and (p.dtype != "fp32" or not p.weight_registers)
    assert p.stages == 0 if "l2" not in p.homes.values() else 2 <= p.stages <= 8

    # The batch goes through in as many rounds as it takes, all blocks of a launch at once.
    assert p.rounds * p.streams_at_once >= p.batch > (p.rounds - 1) * p.streams_at_once
    assert 1 <= p.tiles_in_flight <= p.blocks
    if p.variant == "streaming_weights":
        assert (p.hop, p.blocks, set(p.homes.values())) == ("none", 1, {"l2"})
        assert p.grid <= fit.blocks * device.multiprocessors
    elif p.hop == "cluster":
        assert 2 <= p.blocks <= device.max_cluster
        assert p.pipelines <= (clusters or {}).get(p.blocks, device.clusters_at_once(p.blocks))
        assert p.clusters_assumed == (p.blocks not in (clusters or {}))
        assert p.portable_cluster == (p.blocks <= 8)
    else:
        assert p.grid <= device.multiprocessors
        assert (p.hop == "none") == (p.blocks == 1)
    if p.weight_registers:
        assert max(len(p.layers_of(block)) for block in range(p.blocks)) <= 4

    assert p.threads == 32 * (p.chain_warps + p.skip_warps)
    assert p.chain_warps == min(8, s.HALF // 8) and p.skip_warps == min(4, s.S // 16)
    data = as_dict(p)
    assert json.loads(json.dumps(data)) == data
    text = explain(p)
    assert text.count("taken") + text.count("asked for") >= 1 and all(sentence in text for sentence in p.why)
    assert all(sentence.endswith(".") for sentence in p.why)


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_plan_fits(device: DeviceProperties) -> None:
    for (name, s), dtype, batch, variant in itertools.product(SIZES.items(), DTYPES, BATCHES, VARIANTS):
        try:
            p = plan(s, batch, dtype, device, variant=variant)
        except BackendError as error:
            # Every named case runs on every device; only keeping its weights on the chip may be too much to ask.
            assert variant == "resident", (name, dtype, batch, str(error))
            assert "the resident kernel does not fit" in str(error) and "streaming_weights runs any model" in str(error)
            assert plan(s, batch, dtype, device).variant == "streaming_weights"
            continue
        check(p, s, device)
        assert variant in ("auto", p.variant)
        assert p == plan(s, batch, dtype, device, variant=variant)


R = 8 + 8  # bytes behind each row of an operand


# Arithmetic by hand. A warp of 12 has at most 65,536 / 12 = 5,461, in units of 256 then 5,376 registers, 168 a thread;
# 64 are set aside. `buffers` of nv-medium in 16 bit, tile 8: x as operand 8·(2·64+16) = 1,152 and in fp32 8·64·4 =
# 2,048, skip sums 8·128·4 = 4,096, gates 2·8·(2·64+16) = 2,304. Its layer: a tap 128·64·2 = 16,384, residual 8,192,
# skip 16,384; its head 128·256·2 + 256·256·2 = 196,608.
HAND = [
    # Everything fits one block. 4 + 4 KiB of registers' worth a layer and 6 layers: more than the 4 that are unrolled.
    # A layer: 2 taps 2·32·16·2, residual 16·16·2, skip 32·16·2 = 3,584. Head: 32·32·2 + 256·32·2 = 18,432.
    (("tiny", "H100", "bf16", 1), ("resident", "none", 8, 1, 1, 1, (0,), "shared", "shared"),
     6 * 3_584 + 18_432 + 8 * (32 + R) + 8 * 16 * 4 + 8 * 32 * 4 + 8 * (64 + R) + 6 * 8 * (32 + R)
     + 2 * 8 * (32 + R) + 6 * 8 * (32 + R) + 8 * (64 + R) + 8 * 256 * 4 + 4 * (6 * 16 + 32 + 32 + 256) + 1_024, 80),
    # 9 streams are two tiles of 8: two pipelines of one block. All bytes of weights double, operands too.
    (("tiny", "A100", "fp32", 9), ("resident", "none", 8, 1, 2, 1, (0,), "shared", "shared"),
     6 * 7_168 + 36_864 + 8 * (64 + R) + 8 * 16 * 4 + 8 * 32 * 4 + 8 * (128 + R) + 6 * 8 * (64 + R)
     + 2 * 8 * (64 + R) + 6 * 8 * (64 + R) + 8 * (128 + R) + 8 * 256 * 4 + 4 * (6 * 16 + 32 + 32 + 256) + 1_024, 80),
    # Registers of a layer: newest tap 1 m-tile × 4 steps × 4, residual as much: 32. 64 + 4 + 3 · 32 = 164 of 168, so 3
    # layers a block: 20 in 7 blocks. The head leaves no room for a layer: an 8th, and that is the fullest.
    (("nv-medium", "H100", "bf16", 1), ("resident", "cluster", 8, 1, 1, 1, (0, 2, 5, 8, 11, 14, 17, 20), "registers",
     "shared"), 196_608 + 8 * (256 + R) + 8 * (512 + R) + 8 * 256 * 4 + 4 * (128 + 256 + 256) + 1_024, 164),
    # 13 tiles on pipelines of at most 8: two with 7 in flight, each a skip operand more in the head's block.
    (("nv-medium", "H100", "bf16", 100), ("resident", "cluster", 8, 7, 2, 1, (0, 2, 5, 8, 11, 14, 17, 20), "registers",
     "shared"), 196_608 + 7 * 8 * (256 + R) + 8 * (512 + R) + 8 * 256 * 4 + 4 * (128 + 256 + 256) + 1_024, 164),
    # 163 KiB a block and no clusters: the head's 192 KiB come from L2 through 2 stages of 12 KiB, and then the last 2
    # layers have room beside it.
    (("nv-medium", "A100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, (0, 3, 6, 9, 12, 15, 18), "registers", "l2"),
     2 * 32_768 + 2 * 12_288 + 1_152 + 2_048 + 4_096 + 8 * (256 + R) + 2 * 1_152 + 2_304 + 2 * 1_152 + 8 * (512 + R)
     + 8 * 256 * 4 + 4 * (2 * 64 + 128 + 256 + 256) + 1_024, 164),
    # 99 KiB a block: 2 layers, so 10 blocks, and the head with its ring does not fit beside the last two.
    (("nv-medium", "RTX 5090", "bf16", 8), ("resident", "grid", 8, 1, 1, 1, (*range(0, 20, 2), 20), "registers", "l2"),
     2 * 32_768 + 1_152 + 2_048 + 4_096 + 2 * 1_152 + 2_304 + 2 * 1_152 + 4 * 2 * 64 + 1_024, 132),
    # int8: products of 32 inputs, so 1 · 2 · 4 + 1 · 2 · 4 = 16 registers a layer; 4 layers are unrolled at most. A
    # head of 96 KiB and a factor for each of its 512 rows.
    (("nv-medium", "A100", "int8", 1), ("resident", "grid", 8, 1, 1, 1, (0, 4, 8, 12, 16, 20), "registers", "shared"),
     98_304 + 8 * (128 + R) + 8 * (256 + R) + 8 * 256 * 4 + 4 * (128 + 256 + 256) + 4 * 512 + 1_024, 132),
    # Two past taps: 48 KiB a layer in shared memory. Registers as nv-medium: 3 layers a block, 4 blocks, and the head.
    (("voice", "H100", "bf16", 1), ("resident", "cluster", 8, 1, 1, 1, (0, 3, 6, 9, 12), "registers", "shared"),
     196_608 + 8 * (256 + R) + 8 * (512 + R) + 8 * 256 * 4 + 4 * (128 + 256 + 256) + 1_024, 164),
    # A layer is 224 KiB, 128 of them beside what 2 · 8 · 4 + 1 · 8 · 4 = 96 registers hold; 64 + 8 + 96 = 168 of 168.
    # The head is 256 KiB, so from L2, beside the last layer.
    (("nv-large", "H100", "bf16", 1), ("resident", "grid", 8, 1, 1, 1, tuple(range(30)), "registers", "l2"),
     131_072 + 2 * 12_288 + 8 * (256 + R) + 8 * 128 * 4 + 8 * 256 * 4 + 8 * (512 + R) + 8 * (256 + R)
     + 2 * 8 * (256 + R) + 8 * (256 + R) + 8 * (512 + R) + 8 * 256 * 4 + 4 * (128 + 256 + 256 + 256) + 1_024, 168),
    # 128 KiB of a layer do not fit 99: weights stream. The head's activations are the larger; 6 stages fit the rest.
    # A skip warp has 4 m-tiles: 16 sums.
    (("nv-large", "RTX 4090", "bf16", 1), ("streaming_weights", "none", 8, 1, 1, 1, (0,), "l2", "l2"),
     6 * 12_288 + 8 * (512 + R) + 8 * (512 + R) + 8 * 256 * 4 + 8 * 256 * 4 + 1_024, 80),
    # The layers' activations: x in fp32, two taps as operands, two gates.
    (("r9y9-512", "B200", "fp32", 1), ("streaming_weights", "none", 8, 1, 1, 1, (0,), "l2", "l2"),
     8 * 12_288 + 8 * 512 * 4 + 2 * 8 * (2_048 + R) + 2 * 8 * (1_024 + R) + 8 * 256 * 4 + 1_024, 80),
    # 15 clusters of 8 blocks: at tile 8 they take 15 · 8 · 8 = 960. At 16 a tile in flight costs 16·(2·64+16) +
    # 16·64·4 + 16·128·4 = 14,592 and there is room for 7 beside the rest of a 3-layer block, with the head from L2:
    # 15 · 7 · 16 = 1,680. At 32, two layers a block in registers or shared take fewer. 5,000 / 1,680: 3 rounds.
    (("nv-medium", "H100", "bf16", 5000), ("resident", "cluster", 16, 7, 15, 3, (0, 2, 5, 8, 11, 14, 17, 20),
     "registers", "l2"), 3 * 32_768 + 7 * 14_592 + 3 * 2_304 + 4_608 + 3 * 2_304 + 4 * 3 * 64 + 1_024, 168),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "expected", "shared", "registers"), HAND, ids=[" ".join(map(str, h[0])) for h in HAND]
)
def test_plans_by_hand(
    asked: tuple[str, str, str, int], expected: tuple[object, ...], shared: int, registers: int
) -> None:
    name, device, dtype, batch = asked
    p = plan(SIZES[name], batch, dtype, DEVICES[device])
    found = (p.variant, p.hop, p.tile, p.tiles_in_flight, p.pipelines, p.rounds, p.first_layers)
    assert (*found, p.homes["newest"], p.homes["head"]) == expected
    assert (p.shared_bytes, p.registers) == (shared, registers)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "batch", "sentence"),
    [
        ("tiny", "H100", "bf16", 1, "resident on one block: taken, the whole model fits it"),
        ("nv-medium", "A100", "bf16", 1, "resident on a cluster: passed over, A100 has no clusters."),
        ("nv-medium", "H100", "bf16", 1, "resident on a cluster: taken, 8 blocks a pipeline hold the weights"),
        ("nv-medium", "H100", "bf16", 1, "that 15 of 8 blocks fit at once is an assumption about H100"),
        ("nv-medium", "H100", "bf16", 1, "in registers, 96 a thread"),
        ("nv-medium", "H100", "fp32", 1, "in shared memory, fp32 is multiplied without tensor cores"),
        ("nv-medium", "RTX 5090", "int8", 1, "how many clusters fit sm_120 only the driver knows"),
        ("nv-large", "H100", "bf16", 1, "need 30 blocks and a cluster has at most 16"),
        ("nv-large", "H100", "bf16", 1, "weights of the head: 256 KiB, read from L2"),
        ("nv-large", "RTX 4090", "bf16", 1, "a single layer needs 152 KiB and a block has 99 KiB"),
        ("nv-large", "A100", "bf16", 5000, "takes 24 streams at once, so the batch of 5000 in 209 rounds"),
        ("nv-medium", "H100", "bf16", 5000, "5000 streams are more than 1680, so the rest waits"),
        ("r9y9-mol", "H100", "int8", 1, "12 blocks are more than the portable 8, an opt-in"),
    ],
)
def test_the_reason_is_named(name: str, device: str, dtype: str, batch: int, sentence: str) -> None:
    assert sentence in explain(plan(SIZES[name], batch, dtype, DEVICES[device]))


def test_the_drivers_answer_takes_the_place_of_the_assumption() -> None:
    s, h100 = SIZES["nv-medium"], DEVICES["H100"]
    for clusters in ({8: 3}, {8: 0}, {8: 16, 11: 2}, dict.fromkeys(range(2, 17), 0)):
        for batch in (1, 100, 1000):
            p = plan(s, batch, "bf16", h100, clusters=clusters)
            check(p, s, h100, clusters)
            if p.hop == "cluster":
                assert clusters.get(p.blocks) != 0
    assert plan(s, 1, "bf16", h100, clusters=dict.fromkeys(range(2, 17), 0)).hop == "grid"
    told = plan(s, 100, "bf16", h100, clusters=dict.fromkeys(range(2, 17), 1))
    assert (told.hop, told.pipelines, told.clusters_assumed) == ("cluster", 1, False)

    # Asking and planning anew ends: each answer is about a size that was not asked before.
    def driver(blocks: int) -> int:
        return max(0, 9 - blocks)

    answers: dict[int, int] = {}
    while (p := plan(s, 1000, "bf16", h100, clusters=answers)).clusters_assumed:
        answers[p.blocks] = driver(p.blocks)
    assert p.hop != "cluster" or p.pipelines <= driver(p.blocks)

    # sm_120 has clusters, but which fit only the driver knows.
    s, rtx = SIZES["nv-medium"], DEVICES["RTX 5090"]
    assert plan(s, 1, "int8", rtx).hop == "grid"
    told = plan(s, 1, "int8", rtx, clusters={6: 20})
    check(told, s, rtx, {6: 20})
    assert (told.hop, told.blocks) == ("cluster", 6)


def test_a_forced_choice_is_kept() -> None:
    s, h100 = SIZES["nv-medium"], DEVICES["H100"]
    for tile in (8, 16, 32):
        for variant in VARIANTS[1:]:
            p = plan(s, 1000, "bf16", h100, tile=tile, variant=variant)
            check(p, s, h100)
            assert (p.tile, p.variant) == (tile, variant)
            assert f"tile of {tile}: asked for" in explain(p)
    for blocks in (8, 9, 12, 16, 17, 20, 21):
        p = plan(s, 9, "bf16", h100, blocks=blocks)
        check(p, s, h100)
        assert (p.blocks, p.hop) == (blocks, "cluster" if blocks <= 16 else "grid")
    for blocks, reason in ((2, "the weights need 7"), (22, "22 blocks were asked for"), (1, "1 blocks were asked for")):
        with pytest.raises(BackendError, match=reason):
            plan(s, 9, "bf16", h100, blocks=blocks)


def test_what_cannot_be_planned_is_told() -> None:
    s, h100 = SIZES["nv-medium"], DEVICES["H100"]
    with pytest.raises(InputError, match="dtype is 'fp8'; possible are fp32, bf16, fp16, int8"):
        plan(s, 1, "fp8", h100)
    with pytest.raises(InputError, match="at least one stream, not for 0"):
        plan(s, 0, "bf16", h100)
    with pytest.raises(InputError, match="tile is 12; possible are auto, 8, 16, 32"):
        plan(s, 1, "bf16", h100, tile=12)
    with pytest.raises(InputError, match="variant is 'fast'; possible are auto, resident and streaming_weights"):
        plan(s, 1, "bf16", h100, variant="fast")
    for blocks in (0, "many"):
        with pytest.raises(InputError, match="blocks is"):
            plan(s, 1, "bf16", h100, blocks=blocks)
    with pytest.raises(InputError, match="leave it out"):
        plan(s, 1, "bf16", h100, variant="streaming_weights", blocks=2)
    with pytest.raises(BackendError, match="T4 is sm_75; the kernels need sm_80 or newer"):
        plan(s, 1, "bf16", properties_of(75, 40, "T4"))
    with pytest.raises(BackendError, match=r"single layer needs 1,220 KiB.*streaming_weights runs any model"):
        plan(SIZES["r9y9-512"], 1, "bf16", h100, variant="resident")
    with pytest.raises(BackendError, match=r"tile of 8 streams .* needs .* KiB .* has 99 KiB; possible are a smaller"):
        plan(replace(s, R=1024, HALF=1024), 1, "fp32", DEVICES["RTX 4090"])


def test_more_is_never_less() -> None:
    """A larger batch takes no fewer rounds, a larger chip no more; a smaller model needs no more blocks."""
    for name, dtype, variant in itertools.product(("tiny", "voice", "nv-medium"), ("bf16", "int8"), VARIANTS[1:]):
        s = SIZES[name]
        rounds = [plan(s, batch, dtype, DEVICES["H100"], variant=variant).rounds for batch in range(1, 20_000, 601)]
        assert rounds == sorted(rounds) and rounds[0] == 1 < rounds[-1]
        chips = [properties_of(90, count) for count in range(24, 200, 8)]
        rounds = [plan(s, 20_000, dtype, chip, variant=variant).rounds for chip in chips]
        assert rounds == sorted(rounds, reverse=True)
        blocks = [plan(replace(s, LAYERS=n), 1, dtype, DEVICES["H100"]).blocks for n in range(1, s.LAYERS + 1)]
        assert blocks == sorted(blocks) or variant == "streaming_weights"


def multiples(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most // 16).map(lambda n: 16 * n)


shapes = st.builds(
    Letters, LAYERS=st.integers(1, 48), K=st.integers(2, 5), R=multiples(640), HALF=multiples(512), S=multiples(512),
    H=multiples(512), A=multiples(2048),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    shapes, st.integers(1, 12_000), st.sampled_from(DTYPES), st.sampled_from(list(DEVICES.values())),
    st.sampled_from(VARIANTS), st.sampled_from(("auto", 8, 16, 32)),
    st.dictionaries(st.integers(2, 16), st.integers(0, 9)),
)  # fmt: skip
def test_any_shape(
    s: Letters,
    batch: int,
    dtype: str,
    device: DeviceProperties,
    variant: str,
    tile: int | str,
    clusters: dict[int, int],
) -> None:
    if device.max_cluster == 1:
        clusters = {}
    try:
        p = plan(s, batch, dtype, device, variant=variant, tile=tile, clusters=clusters)
    except BackendError as error:
        assert str(error)
        if variant != "resident":
            with pytest.raises(BackendError):
                plan(s, batch, dtype, device, variant="streaming_weights", tile=tile)
        return
    check(p, s, device, clusters)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 8), st.integers(1, 25))
def test_cut_is_the_best_of_all(costs: list[int], pieces: int, room: int) -> None:
    def fits(first: int, end: int) -> bool:
        return sum(costs[first:end]) <= room

    def value(first: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        parts = [sum(costs[a:b]) for a, b in zip(first, (*first[1:], len(costs)), strict=True)]
        return max(parts), sum(part**2 for part in parts), first

    every = {
        count: [(0, *cuts) for cuts in itertools.combinations(range(1, len(costs)), count - 1)]
        for count in range(1, len(costs) + 1)
    }
    fitting = {count: [value(c) for c in cuts if value(c)[0] <= room] for count, cuts in every.items()}
    best = min(fitting.get(pieces, []), default=None)
    assert cut(costs, pieces, fits) == (best[2] if best else None)
    assert fewest_pieces(len(costs), fits) == min((count for count, found in fitting.items() if found), default=None)


def test_even_slices() -> None:
    assert even_slices(32, 5) == (0, 7, 14, 20, 26, 32)
    for tiles, blocks in itertools.product(range(1, 40), range(1, 12)):
        cuts = even_slices(tiles, blocks)
        shares = [b - a for a, b in itertools.pairwise(cuts)]
        assert (cuts[0], cuts[-1], len(shares)) == (0, tiles, blocks)
        assert max(shares) - min(shares) <= 1 and shares == sorted(shares, reverse=True)


def test_the_page_shows_what_the_planner_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "gpu-plan.md").read_text()
    shown = page.split("```\n")[1].removesuffix("\n")
    assert shown == explain(plan(SIZES["nv-medium"], 9, "bf16", DEVICES["H100"]))
