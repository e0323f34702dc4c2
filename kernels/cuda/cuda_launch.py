"""Kernels on a GPU: loading them, the leave that a launch needs, and how the driver wants a launch described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .compile import Image
from .cuda_driver import Driver
from .device import Kernel, sizes

UNASKED_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without leave."""
PORTABLE_CLUSTER = 8
"""Blocks of a cluster that every GPU with clusters takes without leave."""
_WHOLE = 100
"""Percent of the memory that L1 cache and shared memory have in common."""


@dataclass(frozen=True)
class Loaded:
    """`given`: attributes of the function that have been set."""

    function: Any
    module: Any
    given: dict[str, int] = field(default_factory=dict)


def load(driver: Driver, name: str, image: Image) -> tuple[Loaded, int, int]:
    """With its static shared memory in bytes and its registers of a thread."""
    doing = f"loading the kernel {name!r}"
    module = driver("cuModuleLoadData", image.code, doing=doing)
    function = driver("cuModuleGetFunction", module, name.encode(), doing=doing)
    shared, registers = (
        int(driver("cuFuncGetAttribute", driver.constant("CUfunction_attribute", what), function, doing=doing))
        for what in ("SHARED_SIZE_BYTES", "NUM_REGS")
    )
    return Loaded(function, module), shared, registers


def allow(driver: Driver, kernel: Kernel, shared: int, cluster: int | None, most_shared: int) -> None:
    """Asks, once a kernel, for what a launch with so much dynamic shared memory and such clusters needs leave for.

    Blocks with much of it also get the whole of the memory that L1 cache and shared memory share, as otherwise fewer
    of them may be resident than there is room for: a hint to the driver, which may choose another share."""
    wanted = {}
    if kernel.shared + shared > UNASKED_SHARED:
        wanted["MAX_DYNAMIC_SHARED_SIZE_BYTES"] = most_shared - kernel.shared
        wanted["PREFERRED_SHARED_MEMORY_CARVEOUT"] = _WHOLE
    if cluster is not None and cluster > PORTABLE_CLUSTER:
        wanted["NON_PORTABLE_CLUSTER_SIZE_ALLOWED"] = 1
    for name, value in wanted.items():
        if name not in kernel.handle.given:
            which = driver.constant("CUfunction_attribute", name)
            driver("cuFuncSetAttribute", kernel.handle.function, which, value, doing="preparing a kernel")
            kernel.handle.given[name] = value


def configuration(
    driver: Driver,
    grid: Sequence[int],
    block: Sequence[int],
    shared: int,
    cluster: int | None,
    cooperative: bool = False,
) -> Any:
    """A `CUlaunchConfig` without its stream."""
    config = driver.api.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = sizes("grid", grid)
    config.blockDimX, config.blockDimY, config.blockDimZ = sizes("block", block)
    config.sharedMemBytes = shared
    attributes = []
    if cluster is not None:
        attributes.append(_attribute(driver, "CLUSTER_DIMENSION"))
        size = attributes[-1].value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
    if cooperative:
        attributes.append(_attribute(driver, "COOPERATIVE"))
        attributes[-1].value.cooperative = 1
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def _attribute(driver: Driver, name: str) -> Any:
    attribute = driver.api.CUlaunchAttribute()
    attribute.id = driver.constant("CUlaunchAttributeID", name)
    return attribute
