"""Ways to lay a model over the blocks of a device: which fit, and which comes first.

The rules of preference; reasoned, not measured:

1. No hop before a cluster's, a cluster's before the grid's: a hop through distributed shared memory stays within a GPC,
   one through global memory goes to L2 and back.
2. The smallest tile that takes the whole batch at once: more streams a tile make every product longer.
3. Weights of the newest tap and of `residual`, which the chain waits for, in registers; in shared memory where that is
   how the batch fits, since registers hold few layers a block.
4. The head's weights in shared memory; from L2, through a ring, where that is how the batch fits.
5. The fewest blocks, so the fewest hops of a sample, with which the batch fits at once. Tiles in flight fill a pipeline
   before there is another; never more of them than blocks, since a block works on one at a time.
6. Where a batch fits no way at once, the way that takes most of it. The rest waits for rounds, each as long as an
   utterance: so what comes first by 1 gives way to what needs less than a quarter of its rounds (`ROUNDS_WORTH`).
   Last comes streaming weights from L2, which takes most at once where a model is large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from . import budget
from .budget import Format, Sizes
from .cut import cut, fewest_pieces
from .devices import DeviceProperties
from .occupancy import most_registers, occupancy

HOPS = ("none", "cluster", "grid")
CLUSTERED = (90, 100, 103)
"""Capabilities whose clusters are taken on the table's word. On others (12.x: small blocks and small clusters, 11.0)
only where the driver has said how many fit."""
ROUNDS_WORTH = 4
"""Rounds of a better choice that are taken for one of a worse: a guess."""
BARRIERS = 4
"""Named barriers of a block, at most: all warps, the chain's, the skip warps', and one between the two."""
PORTABLE_CLUSTER = 8
"""A larger cluster is an opt-in of the kernel and of the device."""


@dataclass(frozen=True)
class Asked:
    """What is to be planned. `clusters`: the driver's answers, blocks of a cluster → clusters at once."""

    sizes: Sizes
    fmt: Format
    batch: int
    device: DeviceProperties
    tiles: tuple[int, ...]
    blocks: int | None
    clusters: Mapping[int, int]

    @property
    def threads(self) -> int:
        return budget.threads(self.sizes)

    def tiles_of(self, tile: int) -> int:
        """Tiles of so many streams in the batch."""
        return -(-self.batch // tile)

    def pipelines(self, hop: str, blocks: int) -> int:
        """Pipelines of so many blocks that run at once, each block with a multiprocessor of its own: two persistent
        blocks on one would slow each other's chain."""
        if hop == "cluster":
            assumed = self.device.clusters_at_once(blocks) if self.device.capability in CLUSTERED else 0
            return self.clusters.get(blocks, assumed)
        return self.device.multiprocessors // blocks

    def blocks_of(self, hop: str) -> range:
        """How many blocks a pipeline may have: each of them owns a layer or the head."""
        least, most = {
            "none": (1, 1),
            "cluster": (2, self.device.max_cluster),
            "grid": (2, self.device.multiprocessors),
        }[hop]
        most = min(most, self.sizes.LAYERS + 1)
        if self.blocks is None:
            return range(least, most + 1)
        return range(self.blocks, self.blocks + 1) if least <= self.blocks <= most else range(0)


@dataclass(frozen=True)
class Homes:
    """Where weights live, for one tile size: what fits a block follows from it."""

    asked: Asked
    tile: int
    in_registers: bool
    head_in_l2: bool
    _known: dict[tuple[int, bool, int], bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def most_layers(self) -> int:
        return budget.MOST_UNROLLED_LAYERS if self.in_registers else self.asked.sizes.LAYERS

    def weight_registers(self, layers: int) -> int:
        return budget.weight_registers(self.asked.sizes, self.asked.fmt, layers) if self.in_registers else 0

    def shared(self, layers: int, head: bool, tiles: int) -> dict[str, int]:
        a = self.asked
        return budget.block_shared(a.sizes, a.fmt, self.tile, tiles, layers, head, self.in_registers, self.head_in_l2)

    def holds(self, layers: int, head: bool, tiles: int) -> bool:
        """Whether one block has room for so many layers, perhaps the head, and tiles in flight."""
        key = (layers, head, tiles)
        if key not in self._known:
            a, weights = self.asked, self.weight_registers(layers)
            self._known[key] = (
                layers <= self.most_layers
                and weights <= budget.MOST_WEIGHT_REGISTERS
                and budget.registers(a.sizes, self.tile, weights) <= most_registers(a.device, a.threads)
                and sum(self.shared(*key).values()) <= a.device.shared_per_block
            )
        return self._known[key]

    def fits(self, tiles: int, first: int, end: int) -> bool:
        """Whether a block holds the stages first … end − 1, of which the last is the head."""
        head = end > self.asked.sizes.LAYERS
        return self.holds(end - first - head, head, tiles)

    def fewest_blocks(self, tiles: int) -> int | None:
        return fewest_pieces(self.asked.sizes.LAYERS + 1, lambda first, end: self.fits(tiles, first, end))

    def first_layers(self, blocks: int, tiles: int) -> tuple[int, ...]:
        found = cut(budget.stage_costs(self.asked.sizes), blocks, lambda first, end: self.fits(tiles, first, end))
        assert found is not None
        return found


@dataclass(frozen=True)
class Way:
    """One way: pipelines of so many blocks, each with so many tiles in flight at most."""

    hop: str
    homes: Homes
    blocks: int
    pipelines: int
    tiles: int

    @property
    def streams(self) -> int:
        """At once."""
        return self.pipelines * self.tiles * self.homes.tile

    @property
    def rounds(self) -> int:
        """Launches until the batch is through."""
        return -(-self.homes.asked.tiles_of(self.homes.tile) // (self.pipelines * self.tiles))


@dataclass(frozen=True)
class Streamed:
    """The kernel streaming_weights: its tile, stages of its ring, and blocks of it on a multiprocessor."""

    asked: Asked
    tile: int
    stages: int
    a_multiprocessor: int

    @property
    def blocks(self) -> int:
        """At once, each with one tile."""
        return self.a_multiprocessor * self.asked.device.multiprocessors

    @property
    def rounds(self) -> int:
        return -(-self.asked.tiles_of(self.tile) // self.blocks)


def homes(asked: Asked) -> Iterator[Homes]:
    """In order of preference. fp32 weights take two registers where 16-bit ones take one, and no tensor core reads
    them, so they stay in shared memory."""
    for tile in asked.tiles:
        for in_registers in (True, False) if asked.fmt.name != "fp32" else (False,):
            for head_in_l2 in (False, True):
                yield Homes(asked, tile, in_registers, head_in_l2)


def best(asked: Asked, hop: str) -> Way | None:
    """The first way that takes the whole batch at once, or else the one that takes the most of it."""
    most: Way | None = None
    for home in homes(asked):
        found = _fewest_blocks(home, hop)
        if found is None:
            continue
        if found.streams >= asked.batch:
            return found
        if most is None or found.streams > most.streams:
            most = found
    return most


def streamed(asked: Asked) -> Streamed | None:
    """The smallest tile with which one block a multiprocessor takes the batch, so that weights are read for as many
    streams together as possible; or else the tile that takes the most of it. The ring is as deep as there is room."""
    s, device = asked.sizes, asked.device
    fitting = []
    for tile in asked.tiles:
        fixed = sum(budget.streaming_shared(s, asked.fmt, tile).values())
        stages = min(budget.STAGES[1], (device.shared_per_block - fixed) // budget.ring(s, 1))
        if stages >= budget.STAGES[0]:
            shared, registers = fixed + budget.ring(s, stages), budget.registers(s, tile, 0)
            at_once = occupancy(device, asked.threads, registers, shared, BARRIERS).blocks
            fitting.append(Streamed(asked, tile, stages, at_once))
    enough = [found for found in fitting if asked.tiles_of(found.tile) <= device.multiprocessors]
    return enough[0] if enough else max(fitting, key=lambda found: found.tile * found.blocks, default=None)


def blocks_needed(asked: Asked) -> int | None:
    """Fewest blocks that hold the model's weights with one tile in flight; None where no number does."""
    counts = [home.fewest_blocks(1) for home in homes(asked)]
    return min((count for count in counts if count is not None), default=None)


def _fewest_blocks(home: Homes, hop: str) -> Way | None:
    """The fewest blocks with which the batch fits at once, or else the number that takes the most of it."""
    asked = home.asked
    least = home.fewest_blocks(1)
    most: Way | None = None
    for blocks in asked.blocks_of(hop):
        pipelines, wanted = asked.pipelines(hop, blocks), min(asked.tiles_of(home.tile), blocks)
        if least is None or blocks < least or pipelines * wanted <= (most.pipelines * most.tiles if most else 0):
            continue
        way = Way(hop, home, blocks, pipelines, _most_tiles(home, blocks, wanted))
        if way.streams >= asked.batch:
            return way
        if most is None or way.streams > most.streams:
            most = way
    return most


def _most_tiles(home: Homes, blocks: int, wanted: int) -> int:
    """Tiles in flight, at most so many, for which the model still fits the blocks; one always does."""
    low, high = 1, wanted
    while low < high:
        middle = (low + high + 1) // 2
        needed = home.fewest_blocks(middle)
        low, high = (middle, high) if needed is not None and needed <= blocks else (low, middle - 1)
    return low
