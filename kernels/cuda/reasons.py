"""The planner's reasons, in sentences: what was considered, and why it was taken or passed over."""

from __future__ import annotations

from . import budget
from .layout import Layout
from .shapes import FRAGMENT_BYTES
from .ways import CLUSTERED, PORTABLE_CLUSTER, Asked, Homes, Streamed, Way, blocks_needed, homes, streaming_layouts

NAMES = {"none": "one block", "cluster": "a cluster", "grid": "a co-resident grid"}
"""What a pipeline of the resident kernel runs on, by its hop."""


def verdict(asked: Asked, name: str, way: Way | Streamed | None, taken: Way | Streamed | None) -> str:
    """On one kind of hop of the resident kernel, or on streaming_weights."""
    what = _name(name)
    if way is None:
        return f"{what}: passed over, {_not(asked, name)}"
    if way is taken:
        return f"{what}: taken, {_taken(way)}{_counted(way)}."
    return f"{what}: passed over, {_counted(way)}."


def details(asked: Asked, way: Way, layout: Layout, assumed: bool) -> list[str]:
    """On what was chosen within the resident kernel: homes, tile, pipelines."""
    sentences = [*_team(way), _chain_home(way, layout), *_head_home(layout), *_warps(asked, layout), *_tile(asked, way)]
    if assumed:
        sentences.append(
            f"clusters: that {way.pipelines} of {way.blocks} blocks fit at once is an assumption about "
            f"{asked.device.name}; the driver is asked before the launch."
        )
    if way.hop == "cluster" and way.blocks > PORTABLE_CLUSTER:
        sentences.append(f"clusters: {way.blocks} blocks are more than the portable {PORTABLE_CLUSTER}, an opt-in.")
    return sentences


def streaming_details(found: Streamed) -> list[str]:
    """On its tile."""
    asked, tile, at_once = found.asked, found.layout.tile, found.layout.tile * found.blocks
    return [
        f"tile of {tile}: {'asked for' if len(asked.tiles) == 1 else 'taken'}, a block on each of "
        f"{asked.device.multiprocessors} multiprocessors take {at_once} streams at once; the batch has {asked.batch}.",
        *_waiting(asked, at_once),
    ]


def no_room(asked: Asked) -> str:
    """An error's sentence: not even streaming_weights fits."""
    tile = min(asked.tiles)
    *_, layout = streaming_layouts(asked, tile)
    if layout.shared <= asked.device.shared_per_block:
        return (
            f"for a tile of {tile} streams of this model in {asked.dtype} a thread of {asked.device.name} has too few "
            "registers; possible are a smaller tile (8 is the smallest), a smaller number format, or another backend"
        )
    parts = ", ".join(f"{name} {size:,}" for name, size in layout.streaming_parts().items() if size)
    return (
        f"a tile of {tile} streams of this model needs {kib(layout.shared)} of shared memory in {asked.dtype} "
        f"({parts} bytes), and a block of {asked.device.name} has {kib(asked.device.shared_per_block)}; possible are a "
        "smaller number format, a smaller tile (8 is the smallest), or another backend"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def kib(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"


def _name(name: str) -> str:
    return f"resident on {NAMES[name]}" if name in NAMES else name


def _counted(way: Way | Streamed) -> str:
    """What a sample takes, and how often the batch takes it."""
    rounds = "" if way.rounds == 1 else f" in each of {way.rounds} rounds"
    return f"about {way.cycles:,} clock cycles a sample by count{rounds}"


def _taken(way: Way | Streamed) -> str:
    if isinstance(way, Streamed):
        return (
            "a block needs room for one tile and its rings only, and reads all "
            f"{kib(way.layout.model_weights)} of weights from L2 for every sample; "
        )
    if way.hop == "none":
        return "the whole model fits it, so nothing is handed on; "
    in_flight = f"{_count(way.in_flight, 'tile')} in flight and {_count(way.hops, 'hop')} a sample; "
    if way.homes.asked.blocks is not None:
        return f"{way.blocks} blocks a pipeline were asked for, {in_flight}"
    if way.homes.layout.team > 1:
        return f"{way.teams - 1} teams of {way.homes.layout.team} blocks and one block with the head, {in_flight}"
    return f"{way.blocks} blocks a pipeline hold the weights, {in_flight}"


def _not(asked: Asked, hop: str) -> str:
    device, needed = asked.device, blocks_needed(asked, hop)
    if hop == "cluster" and device.max_cluster == 1:
        return f"{device.name} has no clusters."
    if needed is None:
        return _too_large(asked, hop)
    if asked.blocks is not None and asked.blocks < needed:
        return f"{asked.blocks} blocks were asked for and the weights need {needed}."
    if asked.blocks is not None and not asked.teams(hop, 1):
        return f"{asked.blocks} blocks were asked for."
    weights = kib(_whole(asked).model_weights)
    has = f"a block has {kib(device.shared_per_block)}"
    if hop == "none":
        return f"{weights} of weights, less what registers hold, need {needed} blocks; {has}."
    if hop == "cluster":
        if needed > device.max_cluster:
            return (
                f"{weights} of weights, less what registers hold, need {needed} blocks and a cluster has at most "
                f"{device.max_cluster}; {has}."
            )
        if device.capability not in CLUSTERED and asked.clusters is None:
            return f"how many clusters fit sm_{device.capability} only the driver knows, and it was not asked."
        return f"no cluster of {needed} or more blocks fits."
    return (
        f"{weights} of weights, less what registers hold, need {needed} blocks and there are "
        f"{device.multiprocessors} multiprocessors; {has}."
    )


def _all_homes(asked: Asked, hop: str) -> list[Homes]:
    return [home for tile in asked.tiles for some in homes(asked, hop, tile, 1) for home in some]


def _whole(asked: Asked) -> Layout:
    return _all_homes(asked, "none")[0].layout


def _too_large(asked: Asked, hop: str) -> str:
    """Why one stage alone is too much for a block: the layer, or the head."""
    every, has = _all_homes(asked, hop), kib(asked.device.shared_per_block)
    if any(home.holds(1, False, 1) for home in every):
        return f"the head with its buffers is more than the {has} of a block."
    layer = min(home.shared(1, False, 1) for home in every)
    if layer <= asked.device.shared_per_block:
        return f"a single layer fits the {has} of a block, but a thread has too few registers for its sums and weights."
    said = f"a single layer needs {kib(layer)} and a block has {has}"
    if hop != "grid":
        return f"{said}."
    few = f"{asked.device.multiprocessors} multiprocessors" if asked.blocks is None else f"{asked.blocks} blocks"
    return f"{said}, and {few} are too few to share each among several."


def _team(way: Way) -> list[str]:
    layout = way.homes.layout
    if layout.team == 1:
        return []
    layer = FRAGMENT_BYTES * sum(_whole(way.homes.asked).layer_fragments.values())
    return [
        f"teams of {layout.team}: a layer has {kib(layer)} of weights, more than a block holds; no smaller teams take "
        "as much of the batch."
    ]


def _chain_home(way: Way, layout: Layout) -> str:
    what = "weights of the newest tap and of residual: "
    newest, residual = layout.weight_registers(max(layout.own))
    if newest and residual:
        return f"{what}in registers, {max(newest, residual)} a thread, so that the chain reads none from memory."
    lie = f"the newest tap's in registers, {newest} a thread" if newest else "in shared memory"
    lie = f"residual's in registers, {residual} a thread" if residual else lie
    return (
        f"{what}{lie}; the chain waits about {way.waits:,} clock cycles a sample for weights and hops; more weights in "
        "registers leave too few of them, or need more hops, or take fewer streams at once."
    )


def _head_home(layout: Layout) -> list[str]:
    held = "the first matrix in registers, since no layer needs them there"
    if layout.out_in_l2:
        first = held if layout.hidden_in_registers(layout.head_alone) else "the first matrix in shared memory"
        return [
            f"weights of the head: {first}; of the second {kib(layout.head_from_l2)} are read from L2 for every "
            "sample, since all of it is more than their block has room for."
        ]
    if layout.hidden_in_registers(layout.head_alone):
        return [f"weights of the head: {held}."]
    if not layout.head_in_l2:
        return []
    return [
        f"weights of the head: {kib(layout.head_weights)}, read from L2 for every sample; in shared memory they would "
        "leave too little of their block."
    ]


def _warps(asked: Asked, layout: Layout) -> list[str]:
    warps = (layout.chain, layout.residual, layout.skip)
    if warps == budget.warps(asked.shape, layout.team)[0]:
        return []
    return [
        "warps: {} for gates, {} for x, {} for skip sums, so that each has the registers for sums and weights of its "
        "tile.".format(*warps)
    ]


def _tile(asked: Asked, way: Way) -> list[str]:
    tile = way.homes.layout.tile
    at_once = (
        f"{_count(way.pipelines, 'pipeline')} × {_count(way.tiles, 'tile')} in flight take {way.streams} "
        "streams at once"
    )
    if len(asked.tiles) == 1:
        return [f"tile of {tile}: asked for; {at_once}.", *_waiting(asked, way.streams)]
    if way.rounds > 1 or tile != asked.tiles[0]:
        sooner = f"with no other tile is the batch of {asked.batch} through sooner by count"
        return [f"tile of {tile}: taken, {sooner}; {at_once}.", *_waiting(asked, way.streams)]
    return [f"tile of {tile}: taken, the smallest that takes the batch of {asked.batch} at once; up to {at_once}."]


def _waiting(asked: Asked, at_once: int) -> list[str]:
    if asked.batch <= at_once:
        return []
    return [f"rounds: {asked.batch} streams are more than {at_once}, so the rest waits for a next launch."]
