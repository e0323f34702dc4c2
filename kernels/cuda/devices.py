"""What the planner knows of a device: limits that follow from its compute capability, and counts of the product.

Sources, by number:

[1] CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the same limits as compiled
    into NVIDIA's headers (cuda_occupancy.h; CCCL's cuda/__device/arch_traits.h, CUDA 13).
[2] NVIDIA A100 Tensor Core GPU Architecture (white paper): 108 multiprocessors.
[3] NVIDIA H100 Tensor Core GPU Architecture (white paper): SXM5 has 132 multiprocessors in 8 GPCs.
[4] NVIDIA Ada GPU Architecture (white paper): RTX 4090 has 128; L40S (data sheet): 18,176 CUDA cores, 128 each, so 142.
[5] NVIDIA RTX Blackwell GPU Architecture (white paper): RTX 5090 has 170.
[6] Hopper and Blackwell Tuning Guides: clusters of 8 blocks are portable, 16 is an opt-in of H100 and B200.
[A] An assumption, because NVIDIA publishes no such number. Named where it is used in an explanation; at run time the
    driver's answer takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

RESERVED_SHARED = 1024
"""Bytes of shared memory that CUDA keeps of every block on capability 8.0 and newer [1]."""


@dataclass(frozen=True)
class DeviceProperties:
    """Limits of one device. Sizes in bytes, registers of 32 bit, `capability` 90 for sm_90. `shared_per_block` is what
    one block may ask for (the opt-in limit), without the KiB that is reserved."""

    name: str
    capability: int
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    registers_per_multiprocessor: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    max_cluster: int
    """Most blocks of a cluster, with the opt-in above 8; 1 where there are no clusters."""
    gpcs: tuple[int, ...] = ()
    """Multiprocessors of each GPC, which no cluster crosses: an assumption [A]; chips of one product differ in it.
    Empty where there are no clusters, or nothing is assumed because a driver is at hand."""

    def clusters_at_once(self, blocks: int) -> int:
        """Clusters of so many blocks, one block a multiprocessor, that the assumed GPCs take together; without such an
        assumption as many as there are multiprocessors for."""
        return sum(size // blocks for size in self.gpcs or (self.multiprocessors,)) if blocks <= self.max_cluster else 0


@dataclass(frozen=True)
class _Capability:
    shared_kib: int
    """Of a multiprocessor; a block may use one KiB less [1]."""
    threads: int
    blocks: int
    max_cluster: int


CAPABILITIES = {
    # [1]; clusters [6]. 110 and 12x: the opt-in above 8 is documented for neither, so 8.
    80: _Capability(164, 2048, 32, 1),
    86: _Capability(100, 1536, 16, 1),
    87: _Capability(164, 1536, 16, 1),
    89: _Capability(100, 1536, 24, 1),
    90: _Capability(228, 2048, 32, 16),
    100: _Capability(228, 2048, 32, 16),
    103: _Capability(228, 2048, 32, 16),
    110: _Capability(228, 1536, 24, 8),
    120: _Capability(100, 1536, 24, 8),
    121: _Capability(100, 1536, 24, 8),
}


def properties_of(
    capability: int, multiprocessors: int, name: str = "", gpcs: tuple[int, ...] = ()
) -> DeviceProperties:
    """Of any device with that capability; of the nearest older one where it is not in the table. Without `gpcs`, 16
    multiprocessors a GPC are assumed [A]."""
    of = CAPABILITIES[max((c for c in CAPABILITIES if c <= capability), default=80)]
    whole, rest = divmod(multiprocessors, 16)
    return DeviceProperties(
        name=name or f"sm_{capability}",
        capability=capability,
        multiprocessors=multiprocessors,
        shared_per_block=of.shared_kib * 1024 - RESERVED_SHARED,
        shared_per_multiprocessor=of.shared_kib * 1024,
        registers_per_multiprocessor=65536,
        threads_per_multiprocessor=of.threads,
        blocks_per_multiprocessor=of.blocks,
        max_cluster=of.max_cluster,
        gpcs=() if of.max_cluster == 1 else gpcs or (16,) * whole + (rest,) * (rest > 0),
    )


# [A] for all GPCs here. H100: 132 in 8 GPCs of at most 18 each cannot all be equal; one of them is taken to be short of
# 16, so that the table never counts on the last cluster.
_GH100 = (18, 18, 18, 16, 16, 16, 16, 14)

DEVICES = {
    device.name: device
    for device in (
        properties_of(80, 108, "A100"),  # [2]
        properties_of(89, 142, "L40S"),  # [4]
        properties_of(89, 128, "RTX 4090"),  # [4]
        properties_of(90, 132, "H100", _GH100),  # [3]
        # [A]: NVIDIA states no count for H200; it is the H100's chip, with other memory.
        properties_of(90, 132, "H200", _GH100),
        # [A]: NVIDIA states no count for B200; 148 is what devices report.
        properties_of(100, 148, "B200", (20, 20, 18, 18, 18, 18, 18, 18)),
        properties_of(120, 170, "RTX 5090", (16,) * 8 + (14,) * 3),  # [5]
        # One product of each further capability that kernels are compiled for.
        properties_of(86, 84, "RTX A6000"),  # NVIDIA Ampere GA102 (white paper)
        properties_of(87, 16, "Jetson AGX Orin"),  # its data sheet: 2048 CUDA cores, 128 each
        properties_of(110, 20, "Jetson AGX Thor"),  # its data sheet: 2560 CUDA cores, 128 each
    )
}
"""By name. Smaller siblings (other memory sizes, MIG slices) differ in counts: ask the driver and `properties_of`."""
