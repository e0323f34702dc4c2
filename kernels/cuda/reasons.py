"""The planner's reasons, in sentences: what was considered, and why it was taken or passed over."""

from __future__ import annotations

from . import budget
from .ways import CLUSTERED, PORTABLE_CLUSTER, Asked, Streamed, Way, blocks_needed, homes

NAMES = {"none": "one block", "cluster": "a cluster", "grid": "a co-resident grid"}
"""What a pipeline of the resident kernel runs on, by its hop."""


def verdict(asked: Asked, hop: str, way: Way | None) -> str:
    """On the resident kernel over that kind of hop."""
    return f"resident on {NAMES[hop]}: " + (f"taken, {_taken(hop, way)}" if way else f"passed over, {_not(asked, hop)}")


def too_many_rounds(hop: str, way: Way, other: str, rounds: int) -> str:
    """On the resident kernel where something else takes a batch in far fewer rounds."""
    return (
        f"resident on {NAMES[hop]}: passed over, it takes {way.streams} streams at once, so the batch of "
        f"{way.homes.asked.batch} in {_count(way.rounds, 'round')}, and {other} in {rounds}."
    )


def taken(asked: Asked, way: Way, weights: int, assumed: bool) -> list[str]:
    """On what was chosen within the resident kernel: homes, tile, pipelines. `weights`: registers of a thread."""
    sentences = [_chain_home(asked, way, weights), *_head_home(asked, way), *_tile(asked, way)]
    if assumed:
        sentences.append(
            f"clusters: that {way.pipelines} of {way.blocks} blocks fit at once is an assumption about "
            f"{asked.device.name}; the driver is asked before the launch."
        )
    if way.hop == "cluster" and way.blocks > PORTABLE_CLUSTER:
        sentences.append(f"clusters: {way.blocks} blocks are more than the portable {PORTABLE_CLUSTER}, an opt-in.")
    if way.hop == "none":
        sentences.append("resident on a cluster: not needed, its hops take longer than none.")
    if way.hop != "grid":
        sentences.append("resident on a co-resident grid: not needed, its hops go through global memory.")
    sentences.append("streaming_weights: not needed, it reads all weights from L2 for every sample.")
    return sentences


def streaming(found: Streamed) -> list[str]:
    """On streaming_weights, where it is taken."""
    asked, tile = found.asked, found.tile
    weights = kib(budget.model_weights(asked.sizes, asked.fmt))
    at_once = tile * found.blocks
    return [
        f"streaming_weights: taken, a block needs room for one tile and {found.stages} stages of weights only, and "
        f"reads all {weights} of weights from L2 for every sample.",
        f"tile of {tile}: {'asked for' if len(asked.tiles) == 1 else 'taken'}, "
        f"{_count(found.a_multiprocessor, 'block')} on each of {asked.device.multiprocessors} multiprocessors take "
        f"{at_once} streams at once; the batch has {asked.batch}.",
        *_waiting(asked, at_once),
    ]


def no_room(asked: Asked) -> str:
    """An error's sentence: not even streaming_weights fits."""
    tile = min(asked.tiles)
    fixed = budget.streaming_shared(asked.sizes, asked.fmt, tile)
    least = sum(fixed.values()) + budget.ring(asked.sizes, budget.STAGES[0])
    return (
        f"a tile of {tile} streams of this model needs {kib(least)} of shared memory in {asked.fmt.name} "
        f"({', '.join(f'{name} {size:,}' for name, size in fixed.items())} bytes and two stages of weights), and a "
        f"block of {asked.device.name} has {kib(asked.device.shared_per_block)}; possible are a smaller "
        "number format, a smaller tile (8 is the smallest), or another backend"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def kib(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"


def _taken(hop: str, way: Way) -> str:
    if hop == "none":
        return "the whole model fits it, so nothing is handed on."
    if way.homes.asked.blocks is not None:
        return f"{way.blocks} blocks a pipeline were asked for; they hold {_count(way.tiles, 'tile')} in flight."
    return (
        f"{way.blocks} blocks a pipeline hold the weights where they live here and {_count(way.tiles, 'tile')} "
        "in flight; no fewer take as much of the batch."
    )


def _not(asked: Asked, hop: str) -> str:
    device, needed = asked.device, blocks_needed(asked)
    if hop == "cluster" and device.max_cluster == 1:
        return f"{device.name} has no clusters."
    if needed is None:
        return _too_large(asked)
    if not asked.blocks_of(hop) and asked.blocks is not None:
        return f"{asked.blocks} blocks were asked for."
    if asked.blocks is not None and asked.blocks < needed:
        return f"{asked.blocks} blocks were asked for and the weights need {needed}."
    weights = kib(budget.model_weights(asked.sizes, asked.fmt))
    has = f"a block has {kib(device.shared_per_block)}"
    if hop == "none":
        return f"{weights} of weights need {needed} blocks; {has}."
    if hop == "cluster":
        if needed > device.max_cluster:
            return f"{weights} of weights need {needed} blocks and a cluster has at most {device.max_cluster}; {has}."
        if device.capability not in CLUSTERED and not asked.clusters:
            return f"how many clusters fit sm_{device.capability} only the driver knows, and it was not asked."
        return f"no cluster of {needed} or more blocks fits."
    return f"{weights} of weights need {needed} blocks and there are {device.multiprocessors} multiprocessors; {has}."


def _too_large(asked: Asked) -> str:
    """Why one stage alone is too much for a block: the layer, or the head."""
    layer = min(sum(home.shared(1, False, 1).values()) for home in homes(asked))
    has = kib(asked.device.shared_per_block)
    if any(home.holds(1, False, 1) for home in homes(asked)):
        return f"the head with its buffers is more than the {has} of a block."
    return f"a single layer needs {kib(layer)} and a block has {has}, and layers are not cut by rows."


def _chain_home(asked: Asked, way: Way, weights: int) -> str:
    s, home = asked.sizes, way.homes
    what = "weights of the newest tap and of residual: "
    if home.in_registers:
        return f"{what}in registers, {weights} a thread, so that the chain reads none from memory."
    if asked.fmt.name == "fp32":
        return f"{what}in shared memory, fp32 is multiplied without tensor cores and would take twice the registers."
    one = budget.weight_registers(s, asked.fmt, 1)
    return (
        f"{what}in shared memory; a layer would take {one} registers a thread, and with at most "
        f"{budget.MOST_UNROLLED_LAYERS} layers a block that takes more blocks, leaves too few registers or takes fewer "
        "streams at once."
    )


def _head_home(asked: Asked, way: Way) -> list[str]:
    if not way.homes.head_in_l2:
        return []
    return [
        f"weights of the head: {kib(budget.head_weights(asked.sizes, asked.fmt))}, read from L2 for every sample; in "
        "shared memory they would leave too little of their block."
    ]


def _tile(asked: Asked, way: Way) -> list[str]:
    tile = way.homes.tile
    at_once = (
        f"{_count(way.pipelines, 'pipeline')} × {_count(way.tiles, 'tile')} in flight take {way.streams} "
        "streams at once"
    )
    if len(asked.tiles) == 1:
        return [f"tile of {tile}: asked for; {at_once}.", *_waiting(asked, way.streams)]
    if way.rounds > 1:
        return [
            f"tile of {tile}: taken, no other takes more of the batch; {at_once}.",
            *_waiting(asked, way.streams),
        ]
    return [f"tile of {tile}: taken, the smallest that takes the batch of {asked.batch} at once; up to {at_once}."]


def _waiting(asked: Asked, at_once: int) -> list[str]:
    if asked.batch <= at_once:
        return []
    return [f"rounds: {asked.batch} streams are more than {at_once}, so the rest waits for a next launch."]
