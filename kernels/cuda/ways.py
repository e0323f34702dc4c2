"""Ways to lay a model over the blocks of a device: which fit, and which comes first.

The rules of preference count clock cycles with the constants of `budget`. Hops, a layer, the head, what a block has to
do with a tile, and what it reads from L2 were measured on an H200, with bf16 and tiles of 8; they stand for every
device, number format, number of warps and tile. Which of two ways is faster was not measured.

1. Of one block, a cluster, a co-resident grid and streaming weights from L2 the one with which the batch is through
   first: rounds × clock cycles of a sample (`total`). Of equals, the one named first.
2. A sample takes its latency: hops, layers, the head, and the weights that the chain reads from shared memory or L2
   (`waits`). With several tiles in flight it takes at least what the busiest block does for all of them (`busy`). So
   weights of the newest tap and of `residual` live in registers where they find room there without costing more hops
   than they save; and the head lives in L2 only where it fits no block or saves hops enough, all of it or quarters of
   its second matrix. Of equals the way whose chain waits least, then neither in registers, then `residual`, the newest
   tap, both; and the head in shared memory. Where registers may hold more layers if the head is alone in its block,
   that is looked at too.
3. The smallest tile with which the batch fits at once and no tile waits for another. Where there is none, the one that
   is through first, of equals the smallest.
4. Of a tile the most warps with which the batch fits at once. Fewer have more registers each; what they take longer is
   not counted, so they are looked at only where sums or weights would spill to memory otherwise.
5. The fewest blocks, so the fewest hops of a sample, with which the batch fits at once, or else the number that takes
   most of it. All pipelines are filled before a second tile is in flight in any; never more tiles than teams, since a
   team works on one at a time. Where single layers do not fit a block, several share one (a team, in a grid only): the
   smallest teams with which the batch fits at once, since each more block takes a share of every product from the
   others and none of the two hops a layer.
6. Where a batch fits no way at once, rounds are filled evenly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from . import budget
from .cut import cut
from .devices import DeviceProperties
from .layout import Layout, used_of
from .occupancy import most_registers
from .shapes import FRAGMENT_BYTES, Shape, steps

HOPS = ("none", "cluster", "grid")
CLUSTERED = (90, 100, 103)
"""Capabilities whose clusters are taken on the table's word. On others (12.x: small blocks and small clusters, 11.0)
only where the driver says how many fit."""
PORTABLE_CLUSTER = 8
"""A larger cluster is an opt-in of the kernel and of the device."""
_IN_REGISTERS = ((False, False), (False, True), (True, False), (True, True))


@dataclass(frozen=True)
class Asked:
    """What is to be planned. `clusters`: the driver's answers, blocks of a cluster → clusters at once; None where there
    is no driver to be asked."""

    shape: Shape
    dtype: str
    batch: int
    device: DeviceProperties
    tiles: tuple[int, ...]
    blocks: int | None
    clusters: Mapping[int, int] | None

    def tiles_of(self, tile: int) -> int:
        """Tiles of so many streams in the batch."""
        return -(-self.batch // tile)

    def pipelines(self, hop: str, blocks: int) -> int:
        """Pipelines of so many blocks that run at once, each block with a multiprocessor of its own: two persistent
        blocks on one would slow each other's chain."""
        most = self.device.multiprocessors // blocks
        if hop != "cluster":
            return most
        known = self.clusters or {}
        trusted = self.clusters is not None or self.device.capability in CLUSTERED
        return min(most, known.get(blocks, self.device.clusters_at_once(blocks) if trusted else 0))

    def most_of_a_team(self, hop: str) -> int:
        return budget.most_of_a_team(self.shape) if hop == "grid" else 1

    def teams(self, hop: str, team: int) -> range:
        """How many teams a pipeline may have: each of them owns a layer or the head."""
        least, most = {
            "none": (1, 1),
            "cluster": (2, self.device.max_cluster if self.device.capability >= 90 else 1),
            "grid": (2, teams_of(self.device.multiprocessors, team)),
        }[hop]
        most = min(most, self.shape.LAYERS + 1)
        if self.blocks is None:
            return range(least, most + 1)
        forced = teams_of(self.blocks, team)
        fits = blocks_of(forced, team) == self.blocks and least <= forced <= most
        return range(forced, forced + 1) if fits else range(0)


@dataclass(frozen=True)
class Homes:
    """Where weights live, for one tile, hop, team and number of warps: what fits a block follows from it. `layout` is a
    kernel's but for what is decided last: tiles in flight, and which layers are whose; `alone`: the head's block has
    none of them."""

    asked: Asked
    hop: str
    layout: Layout
    alone: bool
    _fewest: dict[int, int | None] = field(default_factory=dict, compare=False, repr=False)
    _most: dict[tuple[bool, int], int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def in_registers(self) -> bool:
        """Whether any weights are."""
        return self.layout.newest_in_registers or self.layout.residual_in_registers

    def shared(self, layers: int, head: bool, tiles: int) -> int:
        """Bytes of a block; beside the head, with as many places for x and gates as blocks full of layers ask for."""
        most = max(layers, self.most_layers(False, tiles)) if head else layers
        cut = dataclasses.replace(self.layout, tiles=tiles, first_layers=(0, most))
        return sum(cut.block_parts(layers, head).values())

    def holds(self, layers: int, head: bool, tiles: int) -> bool:
        """Whether one block has room for its share of so many layers, perhaps the head, and tiles in flight. What the
        compiler would have no registers for is refused: it would lie in memory, where the chain waits for it."""
        return (
            layers <= self._most_by_registers
            and not (self.alone and layers and head)
            and self.shared(layers, head, tiles) <= self.asked.device.shared_per_block
        )

    def fewest_teams(self, tiles: int) -> int | None:
        """None where no number holds the model."""
        if tiles not in self._fewest:
            alone = self.most_layers(False, tiles)
            beside = self.most_layers(True, tiles) if alone else -1
            left = self.asked.shape.LAYERS - beside  # for teams before the last
            self._fewest[tiles] = None if beside < 0 or (left and alone < 1) else 1 + -(-left // max(alone, 1))
        return self._fewest[tiles]

    def most_layers(self, head: bool, tiles: int) -> int:
        """Of a team; −1 where it has no room for the head even alone. With fewer layers there is room all the more."""
        if (head, tiles) not in self._most:
            low, high = -1 if head else 0, self._most_by_registers
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self.holds(middle, head, tiles) else (low, middle - 1)
            self._most[head, tiles] = low
        return self._most[head, tiles]

    @functools.cached_property
    def _most_by_registers(self) -> int:
        limit, layers = most_registers(self.asked.device, self.layout.threads), self.asked.shape.LAYERS
        most = min(layers, budget.MOST_UNROLLED_LAYERS if self.in_registers else budget.MOST_LAYERS)
        return next((own for own in range(most, 0, -1) if budget.registers(self.layout, own, self.alone) <= limit), 0)

    def first_layers(self, teams: int, tiles: int) -> tuple[int, ...]:
        costs, layers = stage_costs(self.layout), self.asked.shape.LAYERS
        alone, beside = self.most_layers(False, tiles), self.most_layers(True, tiles)
        found = cut(costs, teams, lambda first, end: end - first <= (alone if end <= layers else beside + 1))
        assert found is not None
        return found


@dataclass(frozen=True)
class Way:
    """One way: pipelines of so many teams, each with so many tiles in flight at most."""

    homes: Homes
    teams: int
    pipelines: int
    tiles: int

    @property
    def hop(self) -> str:
        return self.homes.hop

    @property
    def blocks(self) -> int:
        """Of a pipeline."""
        return blocks_of(self.teams, self.homes.layout.team)

    @property
    def streams(self) -> int:
        """At once."""
        return self.pipelines * self.tiles * self.homes.layout.tile

    @property
    def rounds(self) -> int:
        """Launches until the batch is through."""
        return -(-self.homes.asked.tiles_of(self.homes.layout.tile) // (self.pipelines * self.tiles))

    @property
    def hops(self) -> int:
        """Of a sample, one after another. Between teams: x, and after the last layer the skip sums or, from the head,
        the next input. Within a team gates and, but where it hands on x to the next, x."""
        layers = self.homes.asked.shape.LAYERS
        return 0 if self.hop == "none" else self.teams if self.homes.layout.team == 1 else 2 * layers + 1

    @property
    def waits(self) -> int:
        """Clock cycles that the chain of a sample waits for hops and for weights from memory."""
        layout, shape = self.homes.layout, self.homes.asked.shape
        layers = shape.LAYERS * layout.chain_bytes // budget.SHARED_PER_CYCLE
        late = 2 if layout.head_in_l2 else 1 if layout.out_in_l2 else 0  # matrices that L2 has to be asked for
        head = (layout.head_weights - layout.head_from_l2) // budget.SHARED_PER_CYCLE
        head += _far_cycles(layout) + late * budget.L2_CYCLES
        return layers + head + self.hops * budget.HOP_CYCLES[self.hop]

    @property
    def in_flight(self) -> int:
        """Tiles of a pipeline in one round: rounds and pipelines are filled evenly."""
        return -(-self.tiles_of_round // self.pipelines)

    @property
    def tiles_of_round(self) -> int:
        return -(-self.homes.asked.tiles_of(self.homes.layout.tile) // self.rounds)

    @property
    def busy(self) -> int:
        """Clock cycles that the block with most to do works on a sample of one tile, of a pipeline of several: the
        head's, with as many layers as make it least, or one of the others."""
        layout, layers, eights = self.homes.layout, self.homes.asked.shape.LAYERS, self.homes.layout.tile // 8
        layer = budget.BUSY_CYCLES_OF_LAYER + layout.layer_bytes * eights // budget.SHARED_PER_CYCLE
        head = _far_cycles(layout)
        head += layout.head_weights * eights // budget.SHARED_PER_CYCLE + budget.BUSY_CYCLES_OF_HEAD
        alone, beside = (self.homes.most_layers(head, self.tiles) for head in (False, True))
        shares = ((-(-(layers - own) // (self.teams - 1)), own) for own in range(beside + 1))
        return min(max(most * layer, head + own * layer) for most, own in shares if most <= alone)

    @property
    def latency(self) -> int:
        """Clock cycles from a sample to the next of its stream, by count, where no other tile is in the way."""
        return self.waits + self.homes.asked.shape.LAYERS * budget.LAYER_CYCLES + budget.HEAD_CYCLES

    @property
    def cycles(self) -> int:
        """Clock cycles from one sample of all streams to the next, by count: what a sample takes, or, with several
        tiles in flight, what the busiest block takes for all of them."""
        return self.latency if self.in_flight == 1 else max(self.latency, self.in_flight * self.busy)

    @property
    def total(self) -> int:
        """Of all rounds."""
        return self.rounds * self.cycles


@dataclass(frozen=True)
class Streamed:
    """The kernel streaming_weights. A multiprocessor has one block of it: registers, for which it is compiled, leave no
    room for another."""

    asked: Asked
    layout: Layout

    @property
    def blocks(self) -> int:
        """At once, each with one tile."""
        return self.asked.device.multiprocessors

    @property
    def rounds(self) -> int:
        return -(-self.asked.tiles_of(self.layout.tile) // self.blocks)

    @property
    def waits(self) -> int:
        """Clock cycles that the blocks of a launch need to read all weights from L2, each of them once a sample."""
        at_once = -(-self.asked.tiles_of(self.layout.tile) // self.rounds)
        return max(
            self.layout.model_weights // budget.L2_PER_CYCLE, at_once * self.layout.model_weights // budget.L2_OF_CHIP
        )

    @property
    def cycles(self) -> int:
        """Clock cycles of a sample, by count."""
        return self.waits + self.asked.shape.LAYERS * budget.LAYER_CYCLES + budget.HEAD_CYCLES

    @property
    def total(self) -> int:
        """Of all rounds."""
        return self.rounds * self.cycles


def blocks_of(teams: int, team: int) -> int:
    """Of a pipeline of so many teams; where teams have several blocks the last, the head's, has one."""
    return teams if team == 1 else (teams - 1) * team + 1


def teams_of(blocks: int, team: int) -> int:
    """Most teams that so many blocks make."""
    return blocks if team == 1 else (blocks - 1) // team + 1


def stage_costs(layout: Layout) -> list[int]:
    """Fragments that a block multiplies: for each layer, and for the head. What takes longest holds up the tiles in
    flight."""
    whole = dataclasses.replace(layout, newest_in_registers=False, residual_in_registers=False)
    return [whole.layer_weights // FRAGMENT_BYTES] * layout.shape.LAYERS + [layout.head_weights // FRAGMENT_BYTES]


def _far_cycles(layout: Layout) -> int:
    """Clock cycles in which the head's weights arrive from L2: in fp32 once more for every eight streams."""
    times = -(-layout.taken // 8) if layout.dtype == "fp32" else 1
    return times * layout.head_from_l2 // budget.L2_PER_CYCLE


def homes(asked: Asked, hop: str, tile: int, team: int) -> Iterator[list[Homes]]:
    """Those with as many warps as are useful, then those with fewer, each in order of preference."""
    cluster = hop != "grid" and asked.device.capability >= 90
    for chain, residual_warps, skip in budget.warps(asked.shape, team):
        layouts = [
            Layout(
                asked.shape, asked.dtype, "resident", tile, chain, skip, residual=residual_warps, team=team,
                cluster=cluster, newest_in_registers=newest, residual_in_registers=residual, head_in_l2=head_in_l2,
                used=used_of(asked.dtype, tile, asked.batch), out_in_l2=out_in_l2,
            )
            for newest, residual in _IN_REGISTERS
            for head_in_l2, out_in_l2 in _heads(asked, tile)
        ]  # fmt: skip
        of_teams = [Homes(asked, hop, layout, alone=team > 1) for layout in layouts]
        yield of_teams + [Homes(asked, hop, layout, alone=True) for layout in layouts if budget.may_take_fewer(layout)]


def _heads(asked: Asked, tile: int) -> list[tuple[bool, int]]:
    """`Layout.head_in_l2` and `out_in_l2`: the head in its block, and all of it in L2; where it is more than a block
    has, also with quarters of its second matrix there."""
    alone = Layout(asked.shape, asked.dtype, "resident", tile, 1, 1).block_parts(0, True)
    if sum(alone.values()) <= asked.device.shared_per_block:
        return [(False, 0), (True, 0)]
    of_out = steps(asked.shape.H, asked.dtype)
    parts = dict.fromkeys(-(-of_out * quarters // 4) for quarters in (1, 2, 3, 4))
    return [(False, 0), *((False, part) for part in parts), (True, 0)]


def best(asked: Asked, hop: str) -> Way | None:
    """The way with which the batch is through first."""
    found: Way | None = None
    for team in range(1, asked.most_of_a_team(hop) + 1):
        way = _best_of_team(asked, hop, team)
        if way is not None and (found is None or way.total < found.total):
            found = way
        # Where a block holds a layer alone, several would only add hops.
        if found is not None and (team == 1 or found.streams >= asked.batch):
            return found
        if blocks_of(2, team + 1) > asked.device.multiprocessors:
            return found
    return found


def streamed(asked: Asked) -> Streamed | None:
    """The smallest tile with which one block a multiprocessor takes the batch, so that weights are read for as many
    streams together as possible; or else the tile that takes the most of it. The ring is as deep as there is room."""
    fitting = []
    for tile in asked.tiles:
        for layout in streaming_layouts(asked, tile):
            registers, limit = budget.registers(layout, 0), most_registers(asked.device, layout.threads)
            if layout.shared <= asked.device.shared_per_block and registers <= limit:
                fitting.append(Streamed(asked, layout))
                break
    enough = [found for found in fitting if asked.tiles_of(found.layout.tile) <= found.blocks]
    return enough[0] if enough else max(fitting, key=lambda found: found.layout.tile, default=None)


def streaming_layouts(asked: Asked, tile: int) -> Iterator[Layout]:
    """In order of preference."""
    for warps in budget.streaming_warps(asked.shape):
        for stages in budget.STAGES:
            yield Layout(
                asked.shape, asked.dtype, "streaming_weights", tile, *warps, stages=stages,
                used=used_of(asked.dtype, tile, asked.batch),
            )  # fmt: skip


def blocks_needed(asked: Asked, hop: str) -> int | None:
    """Fewest blocks that hold the model's weights with one tile in flight, whole layers in each; None where no number
    does."""
    counts = [home.fewest_teams(1) for tile in asked.tiles for some in homes(asked, hop, tile, 1) for home in some]
    return min((count for count in counts if count is not None), default=None)


def _best_of_team(asked: Asked, hop: str, team: int) -> Way | None:
    """Fewer warps are looked at only where more of them do not take the batch at once; larger tiles where smaller ones
    do not, or wait for each other."""
    found: list[Way] = []
    for tile in asked.tiles:
        for some in homes(asked, hop, tile, team):
            of_warps = [way for home in some if (way := _fewest_teams(home)) is not None]
            found += of_warps
            if any(way.streams >= asked.batch for way in of_warps):
                break
        if any(way.streams >= asked.batch and way.cycles == way.latency for way in found):
            break
    return min(found, key=lambda way: (way.total, way.waits), default=None)


def _fewest_teams(home: Homes) -> Way | None:
    """The fewest teams with which the batch fits at once, or else the number that takes the most of it."""
    asked = home.asked
    allowed = asked.teams(home.hop, home.layout.team)
    least = home.fewest_teams(1) if allowed else None
    most: Way | None = None
    for teams in allowed:
        if least is None or teams < least:
            continue
        pipelines = asked.pipelines(home.hop, blocks_of(teams, home.layout.team))
        wanted = min(asked.tiles_of(home.layout.tile), teams)
        if pipelines * wanted <= (most.pipelines * most.tiles if most else 0):
            continue
        way = Way(home, teams, pipelines, _most_tiles(home, teams, wanted))
        if way.streams >= asked.batch:
            return way
        if most is None or way.streams > most.streams:
            most = way
    return most


def _most_tiles(home: Homes, teams: int, wanted: int) -> int:
    """Tiles in flight, at most so many, for which the model still fits the teams; one always does."""
    low, high = 1, wanted
    while low < high:
        middle = (low + high + 1) // 2
        needed = home.fewest_teams(middle)
        low, high = (middle, high) if needed is not None and needed <= teams else (low, middle - 1)
    return low
