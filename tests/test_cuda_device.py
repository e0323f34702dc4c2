"""`struct Call` by name, and the emulated device: memory, foreign arrays, and launches of the tests' own kernels."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
from ptx_text import need_compiler

pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from wavenet_fast.kernels.cuda.arrays import CudaArray, HostArray
from wavenet_fast.kernels.cuda.call_struct import CallStruct
from wavenet_fast.kernels.cuda.compile import compile_kernel, why_not_kernels
from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice

from wavenet_fast.emulated.mutate import survivors
from wavenet_fast.errors import BackendError, EmulationError, InputError, RaceError, ShapeError

if why_not_kernels() is not None:
    pytest.skip(why_not_kernels(), allow_module_level=True)
need_compiler()

CALL = """
// What a launch is given; float* not_a_field;
#pragma once
struct Call {
  float* x;                 // (n); changed in place
  const unsigned* seeds;
  const  u16 *halves;       // or none
  int n;                    // numbers
  long long far;
  unsigned mask;
  float y;  /* what is added */
  u64* flags;
  unsigned char* bytes;
  const uint4* wide;
  u32 last;
};
"""
TYPES = "using u16 = unsigned short;\nusing u32 = unsigned int;\nusing u64 = unsigned long long;\n"
FIELDS = {
    "x": 0, "seeds": 8, "halves": 16, "n": 24, "far": 32, "mask": 40, "y": 44, "flags": 48, "bytes": 56, "wide": 64,
    "last": 72,
}  # fmt: skip
NOTHING = {
    "x": None, "seeds": None, "halves": None, "n": 0, "far": 0, "mask": 0, "y": 0.0, "flags": None, "bytes": None,
    "wide": None, "last": 0,
}  # fmt: skip

KERNELS = {
    "call": TYPES + CALL.replace("// What", "// what", 1),
    "add": """
#include "call.cuh"
extern "C" __global__ void add(const __grid_constant__ Call call) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < call.n) call.x[i] += call.y * shape_scale + call.far + call.mask + (call.halves ? call.halves[i] : 0);
}
""".replace("shape_scale", "SCALE"),
    # Turns the numbers of each block around, in dynamic shared memory.
    "turn": """
#include "call.cuh"
extern "C" __global__ void turn(const __grid_constant__ Call call) {
  extern __shared__ float room[];
  float* x = call.x + blockIdx.x * blockDim.x;
  room[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
""",
    # The same without the barrier.
    "race": """
#include "call.cuh"
extern "C" __global__ void race(const __grid_constant__ Call call) {
  __shared__ float room[64];
  room[threadIdx.x] = call.x[threadIdx.x];
  call.x[threadIdx.x] = room[63 - threadIdx.x];
}
""",
    # Each block of a cluster reads the other's shared memory.
    "swap": """
#include "call.cuh"
__device__ void meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
extern "C" __global__ void swap(const __grid_constant__ Call call) {
  __shared__ float room[32];
  unsigned rank, address, there;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  int i = blockIdx.x * 32 + threadIdx.x;
  room[threadIdx.x] = call.x[i];
  meet();
  address = static_cast<unsigned>(__cvta_generic_to_shared(room + threadIdx.x));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank ^ 1));
  float other;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(other) : "r"(there) : "memory");
  meet();
  call.x[i] = other;
}
""",
    # Block b waits for block b - 1: all must be resident.
    "chain": """
#include "call.cuh"
extern "C" __global__ void chain(const __grid_constant__ Call call) {
  u64 seen = 0;
  if (blockIdx.x > 0)
    do asm volatile("ld.acquire.gpu.u64 %0, [%1];" : "=l"(seen) : "l"(call.flags + blockIdx.x - 1) : "memory");
    while (seen == 0);
  u64 mine = seen + blockIdx.x + 1;
  asm volatile("st.release.gpu.u64 [%0], %1;" :: "l"(call.flags + blockIdx.x), "l"(mine) : "memory");
}
""",
}
HEADERS = {}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, text in KERNELS.items():
        (folder / f"{name}.cuh").write_text('#include "shape.cuh"\n' * (name == "add") + text)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WAVENET_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "images"))


@pytest.fixture
def device(sources):
    return EmulatedDevice(90, sources=sources)


# --- struct Call ------------------------------------------------------------------------------------------------


def test_fields_are_where_the_compiler_puts_them(device):
    call = CallStruct.parse(CALL)
    assert {field.name: field.offset for field in call.fields} == FIELDS and call.size == 80
    lines = [f"call.flags[{n}] = reinterpret_cast<u64>(&call.{f.name}) - start;" for n, f in enumerate(call.fields)]
    text = """
#include "call.cuh"
extern "C" __global__ void where(const __grid_constant__ Call call) {
  const u64 start = reinterpret_cast<u64>(&call);
"""
    flags = device.empty((12,), np.uint64)
    text += "\n".join([*lines, "call.flags[11] = sizeof(Call);", "}"])
    device.launch(device.load("where", {"where.cuh": text}), (1,), (1,), {**NOTHING, "flags": flags})
    assert device.download(flags).tolist() == [*FIELDS.values(), 80]


def test_bytes_of_a_call(device):
    call, x = CallStruct.parse(CALL), device.zeros((3,), np.float32)
    raw = call.pack({**NOTHING, "x": x, "n": -2, "far": -(2**40), "mask": 2**32 - 1, "y": 0.1, "last": True})
    assert raw == struct.pack("<QQQiiqIfQQQII", x.pointer, 0, 0, -2, 0, -(2**40), 2**32 - 1, 0.1, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("struct Other { int n; };", "has no `struct Call"),
        ("struct Call { };", "struct Call has no field"),
        ("struct Call {\n  int n;\n  float n;\n};", "two fields 'n'"),
        ("struct Call {\n  int n[3];\n};", r"`int n\[3\];` is no field"),
        ("struct Call {\n  int a, b;\n};", "`int a, b;` is no field"),
        ("struct Call {\n  float** x;\n};", "is no field"),
        ("struct Call {\n  double y;\n};", "`double y;` is no field .*a pointer, or a number of type int, "),
        ("struct Call {\n  Inner y;\n};", "`Inner y;` is no field"),
    ],
)
def test_structs_that_cannot_be_filled(text, told):
    with pytest.raises(BackendError, match=told):
        CallStruct.parse(text)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n": 2**31}, "n is of type int32, which 2147483648 does not fit"),
        ({"n": 1.5}, "n is of type int32"),
        ({"n": None}, "n is of type int32"),
        ({"mask": -1}, "mask is of type uint32"),
        ({"far": 2**63}, "far is of type int64"),
        ({"y": "a"}, "y is of type float32, which 'a' does not fit"),
        ({"y": 1e39}, r"y is of type float32, which 1e\+39"),
        ({"x": np.zeros(3, np.float32)}, "x is a pointer, not array"),
        ({"x": 4096}, "x is a pointer, not 4096"),
        ({"seeds": HostArray(4096, (3,), np.dtype(np.int32))}, "seeds points to uint32, and an array of int32"),
        ({"more": 1}, "more unknown; struct Call has bytes, far, flags"),
    ],
)
def test_arguments_that_do_not_fit(changed, told):
    call = CallStruct.parse(CALL)
    for pack in (call.pack, call.for_emulator):
        with pytest.raises(InputError, match=told):
            pack({**NOTHING, **changed})


def test_missing_arguments_are_named():
    with pytest.raises(InputError, match=r"far, y missing; more unknown; struct Call has"):
        CallStruct.parse(CALL).pack({k: v for k, v in NOTHING.items() if k not in ("y", "far")} | {"more": 3})


# --- memory -----------------------------------------------------------------------------------------------------


def test_memory_comes_and_goes(device):
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = device.upload(given[:, ::2])
    given[:] = 0
    assert device.download(x).tolist() == [[0, 2], [4, 6], [8, 10]]
    assert device.download(device.upload(np.arange(6).reshape(2, 3).T).reshape(6)).tolist() == [0, 3, 1, 4, 2, 5]
    out = np.empty((3, 2), np.float32)
    assert device.download(x, out) is out and out[2, 1] == 10
    y = device.empty((2, 3), np.float32)
    assert np.isnan(device.download(y)).all()
    device.copy(y, x)
    assert device.download(y).tolist() == [[0, 2, 4], [6, 8, 10]]
    device.fill_zero(x.part(1, 2))
    assert device.download(x).tolist() == [[0, 2], [0, 0], [8, 10]]
    assert device.upload(np.ones(3, np.float32), x.prefix(3)).shape == (3,)
    assert device.download(x.reshape(6)).tolist() == [1, 1, 1, 0, 8, 10]
    assert device.download(x.viewed(np.uint32))[0, 0] == 0x3F800000
    assert device.zeros((0, 3), np.int8).nbytes == 0 and device.download(device.empty((2, 0), np.int64)).size == 0
    host = device.pinned((3, 2), np.float32)
    pending = device.start_download(x, host)
    device.hold(pending)
    assert pending.wait() is host and host[2, 1] == 10
    device.synchronize()


def test_an_array_keeps_its_memory(device):
    view = np.asarray(device.upload(np.arange(100_000.0)).part(50_000, 50_003))
    np.zeros(100_000)
    assert view.tolist() == [50_000, 50_001, 50_002]


def test_what_memory_refuses(device):
    x = device.zeros((3, 4), np.float32)
    for wrong in (lambda: x.reshape(5), lambda: x.prefix(13), lambda: x.part(2, 4), lambda: x.viewed(np.int8)):
        with pytest.raises(ShapeError):
            wrong()
    with pytest.raises(ShapeError, match=r"\(2,\) of float64 was given, which does not fill \(4,\) of float32"):
        device.upload(np.zeros(2), x.prefix(4))
    with pytest.raises(ShapeError, match="does not fill"):
        device.copy(x, x.part(0, 2))
    with pytest.raises(ShapeError, match=r"out is \(4, 3\) of float32; needed: \(3, 4\)"):
        device.download(x, np.empty((4, 3), np.float32))
    with pytest.raises(InputError, match="out is not contiguous"):
        device.download(x, np.empty((4, 3), np.float32).T)
    for shape in ((-1, 2), (1.5,), "ab"):
        with pytest.raises(InputError, match=r"shape is .*whole numbers from 0"):
            device.empty(shape, np.float32)


# --- arrays of other libraries ----------------------------------------------------------------------------------


def test_foreign_arrays_are_taken_without_a_copy(device):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    x = device.view(array)
    assert (x.pointer, x.shape, x.dtype, x.readonly) == (array.ctypes.data, (2, 3), np.int32, False)
    assert device.view(x) is x
    device.fill_zero(x)
    assert not array.any()
    array.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        device.upload(np.zeros((2, 3), np.int32), device.view(array))

    class OnlyDlpack:
        __dlpack__ = np.ones(5, np.float32).__dlpack__
        __dlpack_device__ = np.ones(5, np.float32).__dlpack_device__

    assert device.download(device.view(OnlyDlpack())).tolist() == [1] * 5


def test_torch_tensors_are_taken_without_a_copy(device):
    torch = pytest.importorskip("torch", reason="shares memory with torch")
    tensor = torch.arange(6, dtype=torch.bfloat16, requires_grad=True)
    x = device.view(tensor)
    assert (x.pointer, x.dtype) == (tensor.data_ptr(), np.uint16)
    assert device.download(x).tolist() == [0, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0]
    assert device.view(torch.zeros(2, 3)[1]).shape == (3,)
    with pytest.raises(InputError, match=r"not contiguous; give its \.contiguous\(\)"):
        device.view(torch.zeros(2, 3).T)
    with pytest.raises(InputError, match="an array of complex64 was given"):
        device.view(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(BackendError, match=r"lies on meta, and the kernels run on cpu; give its \.to\('cpu'\)"):
        device.view(torch.zeros(2, device="meta"))


class Told:
    """What says this about itself."""

    def __init__(self, **told):
        self.__array_interface__ = told


class OnGpu:
    __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


@pytest.mark.parametrize(
    ("obj", "kind", "told"),
    [
        (OnGpu(), BackendError, "lies on a GPU, and the emulated device"),
        (CudaArray(4096, (4,), np.dtype(np.float32)), BackendError, "lies on a GPU"),
        ([1, 2], InputError, "list is no array"),
        (np.zeros((3, 4))[:, ::2], InputError, "not contiguous"),
        (np.zeros(3, ">f4"), InputError, "an array of >f4 was given"),
        (np.zeros(3, bool), InputError, "an array of bool was given"),
        (np.array([{}]), InputError, "an array of object was given"),
        (Told(shape=(-1,), typestr="<f4", data=(4096, False), version=3), BackendError, "negative dimensions"),
        (Told(shape=(4,), typestr="<f4", data=(0, False), version=3), BackendError, "without a copy"),
    ],
)
def test_what_is_no_array_of_the_device(device, obj, kind, told):
    with pytest.raises(kind, match=told):
        device.view(obj)


# --- launches ---------------------------------------------------------------------------------------------------


def test_a_launch_with_every_kind_of_argument(device):
    kernel = device.load("add", {"shape.cuh": "constexpr int SCALE = 4;"})
    assert kernel is device.load("add", {"shape.cuh": "constexpr int SCALE = 4;"})
    x, halves = device.zeros((2, 35), np.float32), device.upload(np.arange(70, dtype=np.uint16))
    device.launch(kernel, (3,), (32,), {**NOTHING, "x": x, "n": 70, "y": 0.25, "far": -3, "mask": 7, "halves": halves})
    assert device.download(x).reshape(-1).tolist() == [5 + i for i in range(70)]
    device.launch(kernel, (1,), (32,), {**NOTHING, "x": x.reshape(70).part(60, 62), "n": 2, "far": 1000})
    assert device.download(x).reshape(-1)[59:63].tolist() == [64, 1065, 1066, 67]
    other = device.load("add", {"shape.cuh": "constexpr int SCALE = 100;"})
    device.launch(other, (1,), (32,), {**NOTHING, "x": x, "n": 1, "y": 1.0})
    assert device.download(x)[0, 0] == 105


@pytest.mark.parametrize("mode", ["plain", "address"])
def test_the_bounds_are_the_arrays(sources, mode):
    device = EmulatedDevice(90, mode, sources=sources)
    kernel, x = device.load("add", {"shape.cuh": "constexpr int SCALE = 4;"}), device.zeros((8,), np.float32)
    device.launch(kernel, (1,), (32,), {**NOTHING, "x": x, "n": 8, "y": 1.0})
    with pytest.raises(EmulationError, match="out of bounds"):
        device.launch(kernel, (1,), (32,), {**NOTHING, "x": x.prefix(7), "n": 8, "y": 1.0})
    assert device.download(x).tolist()[7] == 4


def test_dynamic_shared_memory(device):
    x = device.upload(np.arange(64, dtype=np.float32))
    device.launch(device.load("turn", HEADERS), (2,), (32,), {**NOTHING, "x": x}, shared=128)
    assert device.download(x).tolist() == [*range(31, -1, -1), *range(63, 31, -1)]
    with pytest.raises(EmulationError, match="out of bounds"):
        device.launch(device.load("turn", HEADERS), (2,), (32,), {**NOTHING, "x": x}, shared=124)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_cluster_of_two(sources, seed):
    device = EmulatedDevice(90, seed=seed, sources=sources)
    x = device.upload(np.arange(128, dtype=np.float32))
    device.launch(device.load("swap", HEADERS), (4,), (32,), {**NOTHING, "x": x}, cluster=2)
    assert device.download(x).reshape(4, 32)[:, 0].tolist() == [32, 0, 96, 64]


@pytest.mark.parametrize("mode", ["plain", "thread"])
def test_a_cooperative_grid(sources, mode):
    device = EmulatedDevice(80, mode, seed=3, sources=sources)
    flags = device.zeros((9,), np.uint64)
    device.launch(device.load("chain", HEADERS), (9,), (1,), {**NOTHING, "flags": flags}, cooperative=True)
    assert device.download(flags).tolist() == [1, 3, 6, 10, 15, 21, 28, 36, 45]


def test_programs_are_made_once_and_may_be_anothers(sources):
    first, second = (EmulatedDevice(90, sources=sources).load("turn", HEADERS).handle for _ in range(2))
    counting = EmulatedDevice(90, sources=sources, count=True)
    assert first is second and counting.load("turn", HEADERS).handle is not first
    x = counting.upload(np.arange(64, dtype=np.float32))
    counting.launch(counting.load("turn", HEADERS), (2,), (32,), {**NOTHING, "x": x}, shared=128)
    assert counting.last.instructions["bar.sync"] == 64

    def run(program):
        device = EmulatedDevice(90, sources=sources, make=lambda ptx: program)
        x = device.upload(np.arange(64, dtype=np.float32))
        device.launch(device.load("turn", HEADERS), (1,), (64,), {**NOTHING, "x": x}, shared=256)
        return device.download(x)

    ptx = compile_kernel("turn", HEADERS, 90, "ptx", sources=sources).text
    report = survivors(ptx, run, workers=1)
    assert len(report.caught) == 1 and not report.survived


def test_races_are_found(sources):
    device = EmulatedDevice(90, "thread", sources=sources)
    x = device.upload(np.arange(64, dtype=np.float32))
    with pytest.raises(RaceError):
        device.launch(device.load("race", HEADERS), (1,), (64,), {**NOTHING, "x": x})


# --- what a GPU would refuse ------------------------------------------------------------------------------------


def test_grids_that_are_not_resident(device):
    kernel, p = device.load("race", HEADERS), device.properties
    assert kernel.shared == 256
    assert device.largest_grid(kernel, (32,), 0) == p.multiprocessors * 32
    assert device.largest_grid(kernel, (1024,), 0) == p.multiprocessors * 2
    assert device.largest_grid(kernel, (64,), 100 << 10) == p.multiprocessors * 2
    assert device.largest_grid(kernel, (64,), p.shared_per_block - kernel.shared) == p.multiprocessors
    assert device.largest_grid(dataclasses.replace(kernel, registers=128), (512,), 0) == p.multiprocessors
    assert device.clusters(kernel, (1024,), 0, 16) == 2 * p.multiprocessors // 16
    blocks = p.multiprocessors + 1
    with pytest.raises(BackendError, match=rf"{blocks} blocks of the kernel 'race' must be resident at once"):
        device.launch(kernel, (blocks,), (64,), NOTHING, shared=200_000, cooperative=True)


@pytest.mark.parametrize(
    ("capability", "launch", "kind", "told"),
    [
        (90, {"shared": 232_448 - 255}, BackendError, "needs 232,449 bytes of shared memory a block; .* 232,448"),
        (120, {"shared": 100 << 10}, BackendError, "an emulated sm_120 has 101,376"),
        (90, {"grid": (17,), "cluster": 17}, BackendError, "clusters of 17 blocks; an emulated sm_90 takes up to 16"),
        (120, {"grid": (16,), "cluster": 16}, BackendError, "takes up to 8"),
        (80, {"grid": (2,), "cluster": 2}, BackendError, "takes up to 1"),
        (90, {"grid": (3,), "cluster": 2}, InputError, "clusters of 2 blocks do not divide a grid of 3"),
        (90, {"grid": (3,), "cluster": 0}, InputError, "clusters of 0 blocks"),
        (90, {"block": (32, 33)}, InputError, "a block of 1056 threads; possible: up to 1024"),
        (90, {"block": (0,)}, InputError, r"block is \(0,\)"),
        (90, {"grid": (1, 1, 1, 1)}, InputError, "grid is .*one to three sizes"),
        (90, {"grid": ("a",)}, InputError, "grid is"),
    ],
)
def test_launches_that_no_gpu_of_this_kind_takes(sources, capability, launch, kind, told):
    device = EmulatedDevice(capability, sources=sources)
    given = {"grid": (1,), "block": (64,), **launch}
    with pytest.raises(kind, match=told):
        device.launch(device.load("race", HEADERS), given.pop("grid"), given.pop("block"), NOTHING, **given)


def test_devices_that_cannot_be(sources):
    with pytest.raises(BackendError, match="no GPU of capability 75 is known; there are 80, 86"):
        EmulatedDevice(75)
    with pytest.raises(BackendError, match="capability is 80, and the properties are of 90"):
        EmulatedDevice(80, properties=EmulatedDevice(90).properties)


def test_a_struct_that_was_read_wrongly_is_noticed(device):
    aligned = KERNELS["call"].replace("#pragma once", "#pragma once\n#define Call alignas(64) Call")
    with pytest.raises(BackendError, match=r"'race' takes \[128\] bytes, and struct Call was read as 80"):
        device.load("race", {"call.cuh": aligned + "\n#undef Call\n"})
