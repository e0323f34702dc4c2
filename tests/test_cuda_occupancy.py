"""Our occupancy rules against NVIDIA's own header, and the device table against NVIDIA's other one."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from wavenet_fast.kernels.cuda.devices import DEVICES, RESERVED_SHARED, properties_of
from wavenet_fast.kernels.cuda.occupancy import MAX_REGISTERS, most_registers, occupancy

PROGRAM = r"""
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
    cudaOccDeviceProp p;
    cudaOccFuncAttributes f;
    cudaOccDeviceState s;
    p.maxThreadsPerBlock = 1024, p.warpSize = 32, p.sharedMemPerBlock = 49152;
    f.maxThreadsPerBlock = 1024, f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    int threads;
    size_t shared;
    while (std::scanf("%d %d %d %d %zu %zu %zu %d %d %d %zu %d", &p.computeMajor, &p.computeMinor, &p.numSms,
                      &p.maxThreadsPerMultiprocessor, &p.sharedMemPerMultiprocessor, &p.sharedMemPerBlockOptin,
                      &p.reservedSharedMemPerBlock, &p.regsPerMultiprocessor, &threads, &f.numRegs, &shared,
                      &f.numBlockBarriers) == 12) {
        p.regsPerBlock = p.regsPerMultiprocessor;
        f.maxDynamicSharedSizeBytes = p.sharedMemPerBlockOptin;
        cudaOccResult r;
        cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared);
        std::printf("%d %d %d %d %d %d\n", error, r.activeBlocksPerMultiprocessor, r.blockLimitRegs,
                    r.blockLimitSharedMem, r.blockLimitWarps, r.blockLimitBarriers);
    }
}
"""


def header(name: str) -> Path:
    """A header of a package from PyPI: NVIDIA's own, or the copy inside triton."""
    for package in ("nvidia", "triton"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for found in sorted(Path(folder).rglob(name)):
                return found
    pytest.skip(f"{name} comes with `pip install nvidia-cuda-runtime nvidia-cuda-cccl`, which is not here")


@pytest.fixture(scope="module")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ compiles NVIDIA's header, and is not here")
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "main.cpp").write_text(PROGRAM)
    include = header("cuda_occupancy.h").parent
    subprocess.run(["g++", "-O1", f"-I{include}", "main.cpp", "-o", "main"], cwd=folder, check=True)
    return folder / "main"


def test_occupancy_is_that_of_nvidias_header(calculator: Path) -> None:
    rng = np.random.default_rng(0)
    asked = []
    for device in DEVICES.values():
        for _ in range(600):
            threads = int(rng.integers(1, 1025)) if rng.random() < 0.3 else 32 * int(rng.integers(1, 34))
            shared = int(rng.choice([0, 1, rng.integers(0, 40_000), rng.integers(0, device.shared_per_block + 2000)]))
            asked.append((device, threads, int(rng.integers(0, MAX_REGISTERS + 1)), shared, int(rng.integers(0, 17))))
        edge = device.shared_per_block
        asked += [(device, 384, 168, shared, 3) for shared in (edge - 1, edge, edge + 1, edge // 2, edge // 2 - 512)]
    lines = [
        f"{d.capability // 10} {d.capability % 10} {d.multiprocessors} {d.threads_per_multiprocessor} "
        f"{d.shared_per_multiprocessor} {d.shared_per_block} {RESERVED_SHARED} {d.registers_per_multiprocessor} "
        f"{threads} {registers} {shared} {barriers}"
        for d, threads, registers, shared, barriers in asked
    ]
    answer = subprocess.run([calculator], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    theirs = [tuple(map(int, line.split())) for line in answer.splitlines()]
    assert len(theirs) == len(asked) > 6000
    no_limit = 2**31 - 1
    blocks = set()
    for question, (error, *expected) in zip(asked, theirs, strict=True):
        ours = occupancy(*question)
        assert error == 0
        found = [ours.blocks, ours.by_registers, ours.by_shared, ours.by_threads, ours.by_barriers]
        assert [no_limit if n is None else n for n in found] == expected, question
        blocks.add(ours.blocks)
    assert blocks >= {0, 1, 2, 3, 4}


def test_most_registers_is_the_last_count_that_fits() -> None:
    for device in DEVICES.values():
        for threads in range(32, 1025, 32):
            most = most_registers(device, threads)
            assert occupancy(device, threads, most, 0).by_registers
            assert most == MAX_REGISTERS or not occupancy(device, threads, most + 1, 0).by_registers
    # 384 threads are 12 warps: 65,536 / 12 = 5,461, in units of 256 are 5,376, a thread 168.
    assert most_registers(DEVICES["H100"], 384) == 168
    # 416 threads are 13 warps, which the launch counts as 16: 65,536 / 16 / 32 = 128.
    assert most_registers(DEVICES["H100"], 416) == 128


def test_limits_are_those_of_nvidias_architecture_traits() -> None:
    text = header("arch_traits.h").read_text()
    common = dict(re.findall(r"__traits\.(\w+) += ([^;]+);", text.split("template <>")[0]))
    assert common["max_registers_per_multiprocessor"] == "64 * 1024"
    assert "? 1024 : 0" in common["reserved_shared_memory_per_block"]
    known: dict[str, dict[str, str]] = {}
    for name, body in re.findall(r"arch_traits<arch_id::(sm_\d+)>\(\) noexcept\n\{(.*?)\n\}", text, re.S):
        base = re.search(r"= ::cuda::arch_traits<arch_id::(\w+)>", body)
        known[name] = known.get(base[1], {}) if base else {}
        known[name] = known[name] | dict(re.findall(r"__traits\.(\w+) += (\d+(?: \* 1024)?);", body))
    for capability in (80, 86, 87, 89, 90, 100, 103, 110, 120, 121):
        theirs, ours = known[f"sm_{capability}"], properties_of(capability, 100)
        kib = int(theirs["max_shared_memory_per_multiprocessor"].removesuffix(" * 1024"))
        assert ours.shared_per_multiprocessor == kib * 1024
        assert ours.shared_per_block == kib * 1024 - RESERVED_SHARED
        assert ours.threads_per_multiprocessor == int(theirs["max_threads_per_multiprocessor"])
        assert ours.blocks_per_multiprocessor == int(theirs["max_blocks_per_multiprocessor"])
        assert (ours.max_cluster > 1) == (capability >= 90)


def test_assumed_gpcs_add_up() -> None:
    for device in DEVICES.values():
        assert sum(device.gpcs) == (device.multiprocessors if device.max_cluster > 1 else 0)
        counts = [device.clusters_at_once(size) for size in range(1, 17)]
        assert counts == sorted(counts, reverse=True)
        assert all(size * count <= device.multiprocessors for size, count in enumerate(counts, start=1))
    assert DEVICES["H100"].clusters_at_once(8) == 15
    assert DEVICES["H100"].clusters_at_once(16) == 7
