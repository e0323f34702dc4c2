"""How a model runs on a device: kernel, tile, blocks, homes of the weights. Decided from sizes and counts alone, the
same every time, and with reasons. No plan changes a sample: every variant and tile adds in the same order.

The rules stand in `ways` (order of preference) and `budget` (limits, and the clock cycles that are counted with), what
a choice takes in `layout`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wavenet_fast.errors import BackendError, InputError

from . import budget, reasons, ways
from .devices import DeviceProperties
from .layout import FORMATS, Layout, used_of
from .occupancy import WARP, most_registers
from .shapes import FRAGMENT_BYTES, Shape, padded
from .ways import HOPS, PORTABLE_CLUSTER, Asked, Streamed, Way

VARIANTS = ("resident", "streaming_weights")
_OLDEST = 80


@dataclass(frozen=True)
class Plan:
    """A decision, of plain data.

    hop               how activations get from block to block: "cluster", "grid" or "none"
    tiles_in_flight   of `tile` streams, in each of `pipelines`
    rounds            launches until the batch is through
    blocks            of a pipeline: `teams` of `team` blocks each; of several blocks a team, the last team has one
    first_layers      of each team, which owns the layers from there on; the last, `head_block`, has the head too
    homes             of newest, past, residual, skip, head and the newest input's table: "registers", "shared" or "l2";
                      of a head that lies in its block but for steps of its second matrix, "shared and l2", and
                      `out_in_l2` is how many
    stages            fragments of each warp's ring; 0 without a ring
    shared            bytes by name, in a block of each team
    registers         that a thread needs; the compiler takes up to `register_limit` where that is of use
    weight_registers  of these, what holds weights
    clusters_assumed  that so many clusters fit is the table's assumption, and the driver is to be asked
    """

    variant: str
    hop: str
    dtype: str
    device: str
    capability: int
    batch: int
    tile: int
    tiles_in_flight: int
    pipelines: int
    rounds: int
    blocks: int
    teams: int
    team: int
    first_layers: tuple[int, ...]
    layers: int
    head_block: int
    chain_warps: int
    residual_warps: int
    skip_warps: int
    homes: dict[str, str]
    out_in_l2: int
    stages: int
    shared: tuple[dict[str, int], ...]
    registers: int
    register_limit: int
    weight_registers: int
    clusters_assumed: bool
    why: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * (self.chain_warps + self.residual_warps + self.skip_warps)

    @property
    def grid(self) -> int:
        """Blocks of a launch."""
        return self.pipelines * self.blocks

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a launch: what its largest block needs."""
        return max(sum(block.values()) for block in self.shared)

    @property
    def streams_at_once(self) -> int:
        return self.pipelines * self.tiles_in_flight * self.tile

    @property
    def portable_cluster(self) -> bool:
        """Whether the cluster needs no opt-in."""
        return self.hop != "cluster" or self.blocks <= PORTABLE_CLUSTER

    def layers_of(self, team: int) -> range:
        ends = (*self.first_layers[1:], self.layers)
        return range(self.first_layers[team], ends[team])

    def layout(self, shape: Shape) -> Layout:
        """For the shape that was planned."""
        used = used_of(self.dtype, self.tile, self.batch)
        if self.variant == "streaming_weights":
            return Layout(
                shape, self.dtype, self.variant, self.tile, self.chain_warps, self.skip_warps, stages=self.stages,
                used=used,
            )  # fmt: skip
        return Layout(
            shape, self.dtype, self.variant, self.tile, self.chain_warps, self.skip_warps, self.tiles_in_flight,
            (*self.first_layers, self.layers), self.team, self.hop != "grid" and self.capability >= 90,
            self.homes["newest"] == "registers", self.homes["residual"] == "registers", self.homes["head"] == "l2",
            self.homes["input"] == "shared", residual=self.residual_warps, used=used, out_in_l2=self.out_in_l2,
        )  # fmt: skip


def plan(
    shape: Shape,
    batch: int,
    dtype: str,
    properties: DeviceProperties,
    *,
    variant: str = "auto",
    tile: int | str = "auto",
    blocks: int | str = "auto",
    clusters: Mapping[int, int] | None = None,
) -> Plan:
    """The plan for `batch` streams. `variant`, `tile` (streams) and `blocks` (of a pipeline) force a choice.
    `clusters`: what the driver answered so far, blocks of a cluster → clusters at once; it goes before the table's
    assumption, and 0 rules a size out. Where it is given, though empty, other sizes are assumed to fit until asked.

    Raises `InputError` for an argument without meaning, `BackendError` where the device has no room."""
    asked = _asked(shape, batch, dtype, properties, tile, blocks, clusters)
    if variant not in ("auto", *VARIANTS):
        raise InputError(f"variant is {variant!r}; possible are auto, {' and '.join(VARIANTS)}")
    if variant == "streaming_weights" and asked.blocks is not None:
        raise InputError("blocks says how many share a model, which in streaming_weights none do; leave it out")
    streams = ways.streamed(asked) if variant != "resident" and asked.blocks is None else None
    if variant == "streaming_weights":
        if streams is None:
            raise BackendError(reasons.no_room(asked))
        considered = "resident: not considered, streaming_weights was asked for."
        return _streaming(asked, streams, [considered, reasons.verdict(asked, variant, streams, streams)])
    found: dict[str, Way | Streamed | None] = {hop: ways.best(asked, hop) for hop in HOPS}
    if streams is not None:
        found["streaming_weights"] = streams
    taken = min((way for way in found.values() if way is not None), key=lambda way: way.total, default=None)
    why = [reasons.verdict(asked, name, way, taken) for name, way in found.items()]
    if isinstance(taken, Way):
        return _resident(asked, taken, why)
    if taken is not None:
        return _streaming(asked, taken, why)
    if variant == "auto" and asked.blocks is None:
        raise BackendError(reasons.no_room(asked))
    size = "" if asked.blocks is None else f" on {asked.blocks} blocks"
    raise BackendError(
        f"the resident kernel{size} does not fit {properties.name}: {' '.join(why)} "
        "The variant streaming_weights keeps no weights in a block; int8 needs the least room."
    )


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain data, for JSON."""
    return dataclasses.asdict(plan) | {
        "threads": plan.threads,
        "grid": plan.grid,
        "shared_bytes": plan.shared_bytes,
        "streams_at_once": plan.streams_at_once,
        "first_layers": list(plan.first_layers),
        "shared": [dict(block) for block in plan.shared],
        "why": list(plan.why),
    }


def explain(plan: Plan) -> str:
    """A few lines: what runs where, what it takes, and why."""
    fullest = max(range(plan.teams), key=lambda team: sum(plan.shared[team].values()))
    memory = ", ".join(f"{name} {size:,}" for name, size in plan.shared[fullest].items())
    homes = ", ".join(f"{name} {home}" for name, home in plan.homes.items())
    cut = "blocks" if plan.team == 1 else f"{plan.team} blocks each"
    ring = f"; a ring of {plan.stages} × {FRAGMENT_BYTES} bytes for each warp" if plan.stages else ""
    lines = [
        f"{plan.variant} on {plan.device} (sm_{plan.capability}), {plan.dtype}, {plan.batch} streams",
        f"  grid: {plan.grid} blocks = {plan.pipelines} pipelines × {plan.blocks}, hop {plan.hop}; "
        f"{plan.chain_warps} chain, {plan.residual_warps} residual and {plan.skip_warps} skip warps a block",
        f"  streams: {plan.streams_at_once} at once = {plan.pipelines} × {plan.tiles_in_flight} tiles of {plan.tile}; "
        f"rounds: {plan.rounds}",
        f"  layers, {cut}: {_spans(plan)}; the head in block {plan.head_block}",
        f"  weights: {homes}{ring}",
        f"  shared memory: {plan.shared_bytes:,} bytes in a block of team {fullest}: {memory}",
        f"  registers: {plan.registers} of {plan.register_limit} a thread, {plan.weight_registers} of weights",
    ]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in plan.why)])


def _asked(
    shape: Shape,
    batch: int,
    dtype: str,
    device: DeviceProperties,
    tile: int | str,
    blocks: int | str,
    clusters: Mapping[int, int] | None,
) -> Asked:
    if dtype not in FORMATS:
        raise InputError(f"dtype is {dtype!r}; possible are {', '.join(FORMATS)}")
    for name in ("R", "HALF", "S", "H"):
        if (size := getattr(shape, name)) != padded(size, dtype):
            raise InputError(
                f"{name} is {size}, and {dtype} pads it to {padded(size, dtype)}; use Shape.of for {dtype}"
            )
    if batch < 1:
        raise InputError(f"a plan is for at least one stream, not for {batch}")
    if device.capability < _OLDEST:
        raise BackendError(f"{device.name} is sm_{device.capability}; the kernels need sm_{_OLDEST} or newer")
    if tile != "auto" and tile not in budget.TILES:
        raise InputError(f"tile is {tile!r}; possible are auto, {', '.join(map(str, budget.TILES))}")
    if blocks != "auto" and (not isinstance(blocks, int) or blocks < 1):
        raise InputError(f"blocks is {blocks!r}; possible are auto and numbers from 1")
    tiles = budget.TILES if tile == "auto" else (int(tile),)
    return Asked(shape, dtype, batch, device, tiles, None if blocks == "auto" else int(blocks), clusters)


def _resident(asked: Asked, way: Way, why: list[str]) -> Plan:
    in_flight = way.in_flight
    pipelines = -(-way.tiles_of_round // in_flight)
    first = way.homes.first_layers(way.teams, in_flight)
    layout = dataclasses.replace(way.homes.layout, tiles=in_flight, first_layers=(*first, asked.shape.LAYERS))
    roomy = dataclasses.replace(layout, input_shared=True)
    layout = roomy if roomy.shared <= asked.device.shared_per_block else layout
    assumed = way.hop == "cluster" and way.blocks not in (asked.clusters or {})
    why += reasons.details(asked, way, layout, assumed)
    homes = {
        "newest": "registers" if layout.newest_in_registers else "shared", "past": "shared",
        "residual": "registers" if layout.residual_in_registers else "shared", "skip": "shared",
        "head": "l2" if layout.head_in_l2 else "shared and l2" if layout.out_in_l2 else "shared",
        "input": "shared" if layout.input_shared else "l2",
    }  # fmt: skip
    shared = tuple(layout.block_parts(own, team + 1 == way.teams) for team, own in enumerate(layout.own))
    return _plan(asked, layout, way.hop, pipelines, way.rounds, homes, shared, why, assumed)


def _streaming(asked: Asked, found: Streamed, why: list[str]) -> Plan:
    layout = found.layout
    why += reasons.streaming_details(found)
    homes = dict.fromkeys(("newest", "past", "residual", "skip", "head", "input"), "l2")
    pipelines = -(-asked.tiles_of(layout.tile) // found.rounds)
    return _plan(
        asked,
        layout,
        "none",
        pipelines,
        found.rounds,
        homes,
        ({name: size for name, size in layout.streaming_parts().items() if size},),
        why,
    )


def _plan(
    asked: Asked,
    layout: Layout,
    hop: str,
    pipelines: int,
    rounds: int,
    homes: dict[str, str],
    shared: tuple[dict[str, int], ...],
    why: list[str],
    clusters_assumed: bool = False,
) -> Plan:
    own = max(layout.own, default=0)
    return Plan(
        variant=layout.variant,
        hop=hop,
        dtype=asked.dtype,
        device=asked.device.name,
        capability=asked.device.capability,
        batch=asked.batch,
        tile=layout.tile,
        tiles_in_flight=layout.tiles,
        pipelines=pipelines,
        rounds=rounds,
        blocks=layout.blocks,
        teams=layout.teams,
        team=layout.team,
        first_layers=layout.first_layers[:-1] or (0,),
        layers=asked.shape.LAYERS,
        head_block=layout.blocks - 1,
        chain_warps=layout.chain,
        residual_warps=layout.residual,
        skip_warps=layout.skip,
        homes=homes,
        out_in_l2=layout.out_in_l2,
        stages=layout.stages,
        shared=shared,
        registers=budget.registers(layout, own, layout.head_alone),
        register_limit=most_registers(asked.device, layout.threads),
        weight_registers=max(layout.weight_registers(own)) if layout.resident else 0,
        clusters_assumed=clusters_assumed,
        why=tuple(why),
    )


def _spans(plan: Plan) -> str:
    """Layers of each team: "0–2 | 3–5 | –"."""
    owned = [plan.layers_of(team) for team in range(plan.teams)]
    return " | ".join("–" if not span else f"{span[0]}–{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in owned)
