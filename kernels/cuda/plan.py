"""How a model runs on a device: kernel, tile, blocks, homes of the weights. Decided from sizes and counts alone, the
same every time, and with reasons. No plan changes a sample: every variant and tile adds in the same order.

The rules stand in `ways` (order of preference) and `budget` (what a block needs); nothing in them was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wavenet_fast.errors import BackendError, InputError

from . import budget, reasons, ways
from .budget import FORMATS, TILES, Sizes
from .devices import DeviceProperties
from .occupancy import WARP, most_registers
from .ways import HOPS, PORTABLE_CLUSTER, Asked, Streamed, Way

VARIANTS = ("resident", "streaming_weights")
_OLDEST = 80


@dataclass(frozen=True)
class Plan:
    """A decision, of plain data. `hop`: how activations get from block to block, "cluster", "grid" or "none".
    `tiles_in_flight` of `tile` streams in each of `pipelines`; a pipeline is `blocks` blocks, of which block b owns the
    layers from `first_layers[b]` on and the last, `head_block`, the head too. `rounds`: launches until the batch is
    through. `homes` of newest, past, residual, skip and head: "registers", "shared" or "l2". `stages` of the cp.async
    ring, of `stage_bytes` each; 0 without a ring. `shared`: bytes by name, for each block of a pipeline. `registers`:
    estimate for a thread, of which `weight_registers` hold weights. `clusters_assumed`: that so many clusters fit is
    the table's assumption, and the driver is to be asked."""

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
    first_layers: tuple[int, ...]
    layers: int
    head_block: int
    chain_warps: int
    skip_warps: int
    homes: dict[str, str]
    stages: int
    stage_bytes: int
    shared: tuple[dict[str, int], ...]
    registers: int
    register_limit: int
    weight_registers: int
    clusters_assumed: bool
    why: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * (self.chain_warps + self.skip_warps)

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

    def layers_of(self, block: int) -> range:
        ends = (*self.first_layers[1:], self.layers)
        return range(self.first_layers[block], ends[block])


def plan(
    shape: Sizes,
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
    `clusters`: what the driver answered, blocks of a cluster → clusters at once; it goes before the table's assumption,
    and 0 rules a size out.

    Raises `InputError` for an argument without meaning, `BackendError` where the device has no room."""
    asked = _asked(shape, batch, dtype, properties, tile, blocks, clusters or {})
    if variant not in ("auto", *VARIANTS):
        raise InputError(f"variant is {variant!r}; possible are auto, {' and '.join(VARIANTS)}")
    if variant == "streaming_weights" and asked.blocks is not None:
        raise InputError("blocks says how many share a model, which in streaming_weights none do; leave it out")
    streams = ways.streamed(asked) if variant != "resident" and asked.blocks is None else None
    if variant == "streaming_weights":
        why = ["resident: not considered, streaming_weights was asked for."]
        if streams is None:
            raise BackendError(reasons.no_room(asked))
        return _streaming(asked, streams, why)
    found = {hop: ways.best(asked, hop) for hop in HOPS}
    rounds = {reasons.NAMES[hop]: way.rounds for hop, way in found.items() if way is not None}
    if streams is not None:
        rounds["streaming_weights"] = streams.rounds
    fewest = min(rounds, key=lambda name: rounds[name], default="")
    why = []
    for hop, way in found.items():
        taken = way is not None and way.rounds <= ways.ROUNDS_WORTH * rounds[fewest]
        if way is not None and not taken:
            why.append(reasons.too_many_rounds(hop, way, fewest, rounds[fewest]))
            continue
        why.append(reasons.verdict(asked, hop, way))
        if way is not None:
            return _resident(asked, way, why)
    if streams is not None:
        return _streaming(asked, streams, why)
    if variant == "auto" and asked.blocks is None:
        raise BackendError(reasons.no_room(asked))
    size = "" if asked.blocks is None else f" on {asked.blocks} blocks"
    raise BackendError(
        f"the resident kernel{size} does not fit {properties.name}: {' '.join(why)} "
        "The variant streaming_weights runs any model; int8 needs the least room."
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
    fullest = max(range(plan.blocks), key=lambda block: sum(plan.shared[block].values()))
    memory = ", ".join(f"{name} {size:,}" for name, size in plan.shared[fullest].items())
    homes = ", ".join(f"{name} {home}" for name, home in plan.homes.items())
    lines = [
        f"{plan.variant} on {plan.device} (sm_{plan.capability}), {plan.dtype}, {plan.batch} streams",
        f"  grid: {plan.grid} blocks = {plan.pipelines} pipelines × {plan.blocks}, hop {plan.hop}; "
        f"{plan.chain_warps} chain and {plan.skip_warps} skip warps a block",
        f"  streams: {plan.streams_at_once} at once = {plan.pipelines} × {plan.tiles_in_flight} tiles of {plan.tile}; "
        f"rounds: {plan.rounds}",
        f"  layers: {_spans(plan)}; the head in block {plan.head_block}",
        f"  weights: {homes}" + (f"; ring of {plan.stages} × {plan.stage_bytes:,} bytes" if plan.stages else ""),
        f"  shared memory: {plan.shared_bytes:,} bytes in block {fullest}: {memory}",
        f"  registers: about {plan.registers} of {plan.register_limit} a thread, {plan.weight_registers} of weights",
    ]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in plan.why)])


def _asked(
    shape: Sizes,
    batch: int,
    dtype: str,
    device: DeviceProperties,
    tile: int | str,
    blocks: int | str,
    clusters: Mapping[int, int],
) -> Asked:
    if dtype not in FORMATS:
        raise InputError(f"dtype is {dtype!r}; possible are {', '.join(FORMATS)}")
    if batch < 1:
        raise InputError(f"a plan is for at least one stream, not for {batch}")
    if device.capability < _OLDEST:
        raise BackendError(f"{device.name} is sm_{device.capability}; the kernels need sm_{_OLDEST} or newer")
    if tile != "auto" and tile not in TILES:
        raise InputError(f"tile is {tile!r}; possible are auto, {', '.join(map(str, TILES))}")
    if blocks != "auto" and (not isinstance(blocks, int) or blocks < 1):
        raise InputError(f"blocks is {blocks!r}; possible are auto and numbers from 1")
    tiles = TILES if tile == "auto" else (int(tile),)
    return Asked(shape, FORMATS[dtype], batch, device, tiles, None if blocks == "auto" else int(blocks), clusters)


def _resident(asked: Asked, way: Way, why: list[str]) -> Plan:
    s, home, device = asked.sizes, way.homes, asked.device
    # Even rounds over as few pipelines as take one, with as few tiles in flight in each.
    tiles = -(-asked.tiles_of(home.tile) // way.rounds)
    pipelines = -(-tiles // way.tiles)
    in_flight = -(-tiles // pipelines)
    first = home.first_layers(way.blocks, in_flight)
    ends = (*first[1:], s.LAYERS)
    head = way.blocks - 1
    shared = tuple(home.shared(ends[b] - first[b], b == head, in_flight) for b in range(way.blocks))
    chain = "registers" if home.in_registers else "shared"
    weights = home.weight_registers(max(end - begin for begin, end in zip(first, ends, strict=True)))
    assumed = way.hop == "cluster" and way.blocks not in asked.clusters
    why += reasons.taken(asked, way, weights, assumed)
    return Plan(
        variant="resident",
        hop=way.hop,
        dtype=asked.fmt.name,
        device=device.name,
        capability=device.capability,
        batch=asked.batch,
        tile=home.tile,
        tiles_in_flight=in_flight,
        pipelines=pipelines,
        rounds=way.rounds,
        blocks=way.blocks,
        first_layers=first,
        layers=s.LAYERS,
        head_block=head,
        chain_warps=budget.chain_warps(s),
        skip_warps=budget.skip_warps(s),
        homes={"newest": chain, "past": "shared", "residual": chain, "skip": "shared"}
        | {"head": "l2" if home.head_in_l2 else "shared"},
        stages=budget.STAGES[0] if home.head_in_l2 else 0,
        stage_bytes=budget.ring(s, 1) if home.head_in_l2 else 0,
        shared=shared,
        registers=budget.registers(s, home.tile, weights),
        register_limit=most_registers(device, asked.threads),
        weight_registers=weights,
        clusters_assumed=assumed,
        why=tuple(why),
    )


def _streaming(asked: Asked, found: Streamed, why: list[str]) -> Plan:
    s, device, tile, stages = asked.sizes, asked.device, found.tile, found.stages
    why += reasons.streaming(found)
    return Plan(
        variant="streaming_weights",
        hop="none",
        dtype=asked.fmt.name,
        device=device.name,
        capability=device.capability,
        batch=asked.batch,
        tile=tile,
        tiles_in_flight=1,
        pipelines=-(-asked.tiles_of(tile) // found.rounds),
        rounds=found.rounds,
        blocks=1,
        first_layers=(0,),
        layers=s.LAYERS,
        head_block=0,
        chain_warps=budget.chain_warps(s),
        skip_warps=budget.skip_warps(s),
        homes=dict.fromkeys(("newest", "past", "residual", "skip", "head"), "l2"),
        stages=stages,
        stage_bytes=budget.ring(s, 1),
        shared=({"ring": budget.ring(s, stages)} | budget.streaming_shared(s, asked.fmt, tile),),
        registers=budget.registers(s, tile, 0),
        register_limit=most_registers(device, asked.threads),
        weight_registers=0,
        clusters_assumed=False,
        why=tuple(why),
    )


def _spans(plan: Plan) -> str:
    """Layers of each block: "0–2 | 3–5 | –"."""
    owned = [plan.layers_of(block) for block in range(plan.blocks)]
    return " | ".join("–" if not span else f"{span[0]}–{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in owned)
