"""The GPU device through the real cuda-bindings, with a stand-in for the driver's library (`fake_cuda`): which calls it
makes, in which order, and what becomes of refusals. What a driver and a GPU do with them is not shown by this."""

from __future__ import annotations

import fake_cuda
import pytest

pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from wavenet_fast.backends import gpu

if gpu.why_no_nvrtc() is not None:
    pytest.skip(gpu.why_no_nvrtc(), allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = fake_cuda.build(tmp_path_factory.mktemp("driver"))
    return lambda code, **variables: fake_cuda.run(folder, code, **variables)


def test_memory_and_kernels_go_there_and_back(run):
    run("""
d = device()
p = d.properties
assert (p.name, d.capability, p.multiprocessors, p.shared_per_block) == ("Fake H100", 90, 132, 232448)
assert (p.shared_per_multiprocessor, p.registers_per_multiprocessor) == (233472, 65536)
assert (p.threads_per_multiprocessor, p.blocks_per_multiprocessor, p.max_cluster) == (2048, 32, 16)
k = d.load("add", HEADERS)
assert d.load("add", HEADERS) is k and (k.shared, k.registers) == (1000, 40)
assert said()[-2:] == ["cuModuleLoadData a cubin", "cuModuleGetFunction add"]
given = np.arange(6, dtype=np.float32)
x = d.upload(given)
given[:] = 0
d.launch(k, (4, 3), (32, 2), dict(x=x.part(1, 6), n=5, y=2.5, far=-7), shared=5000, cluster=2, cooperative=True)
lines = said()
assert not any(line.startswith("cuFunc") for line in lines)
(told,) = [line for line in lines if line.startswith("cuLaunch")]
assert told.startswith("cuLaunchKernelEx 4,3,1 32,2,1 5000 0x") and told.endswith("far -7 cluster 2,1 cooperative 1")
assert d.download(x).tolist() == [0, 3.5, 4.5, 5.5, 6.5, 7.5]
d.launch(k, (1,), (32,), dict(x=x, n=0, y=0, far=1))
assert [line.split("far")[1] for line in said() if line.startswith("cuLaunch")] == [" 1"]
y = d.zeros((2, 3), np.float32)
d.copy(y.reshape(6), x)
assert d.download(y, np.empty((2, 3), np.float32))[1, 2] == 7.5
assert d.download(d.empty((0, 3), np.int16)).shape == (0, 3)
assert np.isnan(d.download(d.empty((3,), np.float32))).all()
""")


def test_a_launch_asks_once_for_what_needs_leave(run):
    run("""
d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)

def asked(shared, cluster):
    said()
    d.launch(k, (16,), (32,), dict(x=x, n=0, y=0, far=0), shared=shared, cluster=cluster)
    return [line.removeprefix("cuFuncSetAttribute ") for line in said() if line.startswith("cuFunc")]

# 8: dynamic shared memory, of which a block may have what the static leaves; 9: its share of the L1 cache, in percent;
# 14: clusters of more than 8 blocks. With 1,000 bytes of static shared memory, 48 KiB are had unasked.
assert asked((48 << 10) - 1000, 8) == []
assert asked((48 << 10) - 999, None) == ["8 231448", "9 100"]
assert asked(231448, 16) == ["14 1"] and asked(231448, 16) == []
other = d.load("add", {"shape.cuh": "//"})
said()
assert d.largest_grid(other, (32,), 50_000)
assert [line[:20] for line in said()[:2]] == ["cuFuncSetAttribute 8", "cuFuncSetAttribute 9"]
""")


def test_what_fits_is_asked_of_the_driver(run):
    run("""
d = device()
k = d.load("add", HEADERS)
said()
assert d.largest_grid(k, (64, 2), 100) == 3 * 132
assert d.clusters(k, (64,), 100, 16) == 5 and d.clusters(k, (64,), 100, 17) == 0
assert said() == ["cuOccupancyMaxActiveBlocksPerMultiprocessor 128 100", "cuFuncSetAttribute 14 1",
                  "cuOccupancyMaxActiveClusters 16 64 100 16"]
os.environ["FAKE_CUDA_FAIL"] = "cuOccupancyMaxActiveClusters=912"
assert d.clusters(k, (64,), 100, 16) == 0
os.environ["FAKE_CUDA_FAIL"] = "cuOccupancyMaxActiveClusters=1"
assert "CUDA_ERROR_INVALID_VALUE, that is a pity" in refused(BackendError, lambda: d.clusters(k, (64,), 100, 16))
""")


def test_memory_is_given_back_behind_the_work_that_used_it(run):
    run("""
d = device()
k = d.load("add", HEADERS)
x = d.empty((3,), np.float32)
part, y = x.part(1, 2), d.empty((4,), np.float32)
d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0), stream=0x5550)
said()
del x
assert said() == []
del part
wait, freed, mark = said()
own = wait.split()[1]
assert wait.startswith("cuStreamWaitEvent") and freed == f"cuMemFreeAsync 12 {own}" and mark.endswith(own)
os.environ["FAKE_CUDA_FAIL"] = "cuCtxPushCurrent=700"
del y
""")


def test_without_pools_memory_serves_again(run):
    run(
        """
from wavenet_fast.kernels.cuda import cuda_memory
d = device()
k = d.load("add", HEADERS)
x = d.zeros((3,), np.float32)
d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0))
first = x.pointer
del x
said()
y = d.upload(np.full(3, 5, np.float32))
assert y.pointer == first and [line for line in said() if line.startswith("cuMem")] == ["cuMemHostAlloc 1048576 WAITS",
    f"cuMemcpyHtoDAsync 12 {d._queue.own:#x}"]
assert d.download(y).tolist() == [5, 5, 5] and d.empty((4,), np.float32).pointer != first
z = d.empty((4,), np.float32)
cuda_memory.KEPT_BYTES = 1000
del y, z
assert any(line == "cuMemFree 512 WAITS" for line in said())
""",
        FAKE_CUDA_NO_POOLS="1",
    )


@pytest.mark.parametrize("pools", [{}, {"FAKE_CUDA_NO_POOLS": "1"}])
def test_what_a_running_kernel_uses_may_be_forgotten(run, pools):
    run(
        """
d = device()
k, total = d.load("add", HEADERS), d.zeros((1000,), np.float32)
for turn in range(4):
    if turn == 2:
        said()
    x = d.upload(np.full(1000, turn, np.float32))
    d.launch(k, (1,), (32,), dict(x=x, n=1000, y=1, far=0))
    d.copy(total.part(turn, turn + 1), x.part(999, 1000))
    host = d.pinned((1000,), np.float32)
    pending = d.start_download(x, host)
    if turn == 0:
        kept, ending = host, pending
    del x, host, pending
# Memory is taken for the first time, or, without pools, while all of it is in use; a driver may wait for that.
assert not [line for line in said() if "WAITS" in line and not line.startswith(("cuMemHostAlloc", "cuMemAlloc "))]
# All kernels are done, and all that was given back behind them is free; the copies still wait.
assert d.download(total)[:5].tolist() == [1, 2, 3, 4, 0]
fresh = d.pinned((1000,), np.float32)
d.synchronize()
assert ending.wait() is kept and (kept == 1).all() and not fresh.any()
""",
        **pools,
    )


def test_uploads_go_through_pinned_memory_that_serves_again(run):
    run("""
from wavenet_fast.kernels.cuda import cuda_device
d = device()
given = [np.full((300, 5), turn, np.int16) for turn in range(5)]
there = [d.upload(array) for array in given]
for array in given:
    array[:] = -1
copies = said()
assert {line for line in copies if "WAITS" in line} == {"cuMemHostAlloc 1048576 WAITS"}
for turn, array in enumerate(there):
    assert (d.download(array) == turn).all()
said()
assert d.upload(given[0]).shape == (300, 5) and not [line for line in said() if "WAITS" in line]
assert d.download(d.upload(np.array(7))).tolist() == 7 and d.upload(np.zeros((0, 2))).shape == (0, 2)

# More than may be on their way: in pieces, and the first is waited for.
cuda_device.PIECE, cuda_device.STAGED_BYTES = 1000, 3000
large = np.arange(2500, dtype=np.float32)
said()
x = d.upload(large)
large[:] = 0
lines = said()
assert sum(line.startswith("cuMemcpyHtoDAsync 1000") for line in lines) == 10
assert sum(line.startswith("cuEventSynchronize") for line in lines) >= 5
assert d.download(x).tolist() == list(range(2500))
""")


def test_pinned_memory_serves_again_and_is_freed_where_much_is_idle(run):
    run("""
from wavenet_fast.kernels.cuda import cuda_memory
d = device()
host = d.pinned((50000,), np.float32)
row = host[1:]
host[:] = 3
del host
row[:] = 4
del row
said()
again = d.pinned((40000,), np.float32)
assert (again == 0).all() and said() == []
del again
d._pinned.trim(1 << 20)
assert said() == []
d._pinned.trim(1 << 17)
assert said() == ["cuMemFreeHost 262144 WAITS"]
""")


def test_a_device_leaves_nothing_behind(run):
    run("""
d = device()
x, kept, host = d.upload(np.arange(3)), d.pinned((3,), np.int8), d.pinned((100000,), np.int8)
d.start_download(d.empty((100000,), np.int8), host).wait()
said()
del d, host
assert said() == []
del x
lines = said()
kept[:] = 3  # in the slab that the upload went through, so that this is not freed
assert "cuMemFreeHost 131072 WAITS" in lines
assert sum(line.startswith("cuMemFreeHost") for line in lines) == 1 and {line.split()[0] for line in lines} >= {
    "cuMemFreeAsync", "cuStreamDestroy", "cuMemPoolDestroy", "cuMemFreeHost"}
""")


def test_finished_audio_is_copied_while_the_next_kernel_runs(run):
    run("""
d = device()
k, x, host = d.load("add", HEADERS), d.zeros((3,), np.float32), d.pinned((3,), np.float32)
d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0))
said()
copied = d.start_download(x, host)
d.launch(k, (1,), (32,), dict(x=None, n=0, y=1, far=0))
d.hold(copied)
assert copied.wait() is host and host.tolist() == [1, 1, 1]
lines = [line.split() for line in said() if line != "a kernel runs"]
made, recorded, held, copy, ended = lines[:5]
work, copies, event = recorded[2], held[1], recorded[1]
assert recorded[0] == "cuEventRecord" and held == ["cuStreamWaitEvent", copies, event] and work != copies
assert copy == ["cuMemcpyDtoHAsync", "12", copies] and ended == ["cuEventRecord", event, copies]
assert lines[6][0] == "cuLaunchKernelEx" and lines[6][4] == work
assert ["cuStreamWaitEvent", work, event] in lines[7:] and lines[-1] == ["cuEventSynchronize", event, "WAITS"]
assert sum(line[-1] == "WAITS" for line in lines) == 1
refused(ShapeError, lambda: d.start_download(x, np.zeros(2, np.float32)))
""")


def test_work_stays_in_order_when_the_stream_changes(run):
    run("""
class Stream:
    def __init__(self, **kinds):
        self.__dict__.update(kinds)

class Protocol:
    def __cuda_stream__(self):
        return 0, 0x6666

class Torch:
    class cuda:
        begun, stream = False, 0x7777
        is_available = staticmethod(lambda: True)
        is_initialized = staticmethod(lambda: Torch.cuda.begun)
        current_stream = staticmethod(lambda index: Stream(cuda_stream=Torch.cuda.stream + index))

d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)
call = dict(x=x, n=3, y=1, far=0)
own = said()[-1].split()[2]

def launched(stream=None):
    d.launch(k, (1,), (32,), call, stream=stream)
    lines = [line.split() for line in said()]
    place = [line[0] for line in lines].index("cuLaunchKernelEx")
    assert lines[-1][0] == "cuEventRecord" and lines[-1][2] == lines[place][4]
    waits = [line[1] for line in lines[:place] if line[0] == "cuStreamWaitEvent"]
    assert waits in ([], [lines[place][4]])
    return lines[place][4], bool(waits)

assert launched() == (own, False)
assert launched(0x5555) == ("0x5555", True) and launched(Stream(ptr=0x5555)) == ("0x5555", False)
assert launched(Stream(cuda_stream=0x5550)) == ("0x5550", True) and launched(Protocol()) == ("0x6666", True)
assert launched() == (own, True)
sys.modules["torch"] = Torch
assert launched() == (own, False)
Torch.cuda.begun = True
assert launched() == ("0x7777", True)
assert d.download(x).tolist() == [8, 8, 8] and said()[0].endswith("0x7777 WAITS")
assert "stream is 'fast'; possible: a CUDA stream" in refused(InputError, lambda: launched("fast"))
""")


def test_under_a_cuda_graph(run):
    run("""
d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)
d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0), stream=0x10)
said()
d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0), stream=0xCA)
assert [line.split()[0] for line in said()] == ["cuLaunchKernelEx"]
class torch:
    class cuda:
        is_available = is_initialized = staticmethod(lambda: True)
        class current_stream:
            cuda_stream = 0xCA
            def __init__(self, index): pass
sys.modules["torch"] = torch
d.fill_zero(x)
d.copy(x, x)
out, y = np.zeros(3, np.float32), [d.view(x)]
for call in (lambda: d.download(x), lambda: d.upload(out), lambda: d.upload(out, x), lambda: d.start_download(x, out),
             lambda: d.empty((3,), np.int8)):
    assert "cannot be part of a CUDA graph; do it before the capture begins" in refused(BackendError, call)
# Nothing is freed inside: a graph would do that at every replay.
del sys.modules["torch"]
z = d.zeros
said()
y = d.reshaped = x.reshape(3)
del x, y, d.reshaped, call
assert not [line for line in said() if "Free" in line]
os.environ["FAKE_CUDA_CAPTURED"] = "1"
z((3,), np.int8)
assert sum(line.startswith("cuMemFreeAsync") for line in said()) == 2
""")


def test_what_is_no_stream_is_refused(run):
    run("""
d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)
class Odd:
    def __init__(self, told): self.told = told
    def __cuda_stream__(self): return self.told
class Pointer:
    ptr = "x"
for stream in (-5, 2**70, 1.5, "s", [1], Odd(None), Odd((0,)), Odd((0, "x")), Pointer(), Odd):
    told = refused(InputError, lambda: d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0), stream=stream))
    assert "a CUDA stream of torch, CuPy or cuda-core, its address, or None" in told
""")


def test_a_process_made_by_fork_and_an_unknown_error(run):
    run("""
d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)
call = lambda: d.launch(k, (1,), (32,), dict(x=x, n=3, y=1, far=0))
os.environ["FAKE_CUDA_FAIL"] = "cuLaunchKernelEx=3"
assert "made by fork" in refused(BackendError, call) and "'spawn'" in refused(BackendError, call)
for code, told in ((100, "CUDA_VISIBLE_DEVICES"), (34, "LD_LIBRARY_PATH"), (46, "`nvidia-smi -c DEFAULT`")):
    os.environ["FAKE_CUDA_FAIL"] = f"cuLaunchKernelEx={code}"
    assert told in refused(BackendError, call)
os.environ["FAKE_CUDA_FAIL"] = "cuLaunchKernelEx=35"
assert "35" in refused(BackendError, call)
""")


def test_foreign_arrays_on_the_gpu(run):
    run("""
class Cai:
    def __init__(self, pointer=4096, shape=(2, 3), typestr="<f4", strides=None, readonly=False):
        self.__cuda_array_interface__ = dict(shape=shape, typestr=typestr, data=(pointer, readonly), version=3,
                                             strides=strides, stream=None)

d = device()
x = d.view(Cai())
assert (x.pointer, x.shape, x.dtype, x.readonly) == (4096, (2, 3), np.float32, False)
assert x.__cuda_array_interface__["data"] == (4096, False) and not hasattr(x, "__array_interface__")
assert d.view(Cai(strides=(12, 4))).shape == (2, 3) and d.view(Cai(readonly=True)).readonly
assert d.view(x) is x and d.view(d.zeros((2,), np.int8)).shape == (2,)
assert "not contiguous" in refused(InputError, lambda: d.view(Cai(strides=(24, 8))))
assert "an array of complex64" in refused(InputError, lambda: d.view(Cai(typestr="<c8")))
assert "lies in this machine's memory; `upload` it to GPU 0" in refused(BackendError, lambda: d.view(np.zeros(3)))
assert "int is no array on a GPU" in refused(InputError, lambda: d.view(3))
os.environ["FAKE_CUDA_DEVICE"] = "1"
assert "the array lies on GPU 1, and the kernels run on GPU 0" in refused(BackendError, lambda: d.view(Cai()))

class Where:
    type = "cuda"
    def __init__(self, index): self.index = index
    def __str__(self): return f"cuda:{self.index}"

class Tensor:
    dtype, shape, whole = "torch.bfloat16", (4,), True
    def __init__(self, index): self.device = Where(index)
    def data_ptr(self): return 8192
    def is_contiguous(self): return self.whole

y = d.view(Tensor(0))
assert (y.pointer, y.shape, y.dtype) == (8192, (4,), np.uint16)
assert "lies on cuda:1, and the kernels run on cuda:0; give its .to('cuda:0')" in refused(
    BackendError, lambda: d.view(Tensor(1)))
Tensor.whole = False
assert "give its .contiguous()" in refused(InputError, lambda: d.view(Tensor(0)))

from wavenet_fast.kernels.cuda.arrays import HostArray
host = HostArray(4096, (2,), np.dtype(np.float32))
k = d.load("add", HEADERS)
assert "array of the emulated device was given to Fake H100" in refused(
    InputError, lambda: d.launch(k, (1,), (32,), dict(x=host, n=3, y=1, far=0)))
""")


# (what the driver refuses, what is asked for, what is told)
ERRORS = [
    ("cuMemAllocFromPoolAsync=2", "d.empty((1 << 20,), np.float32)",
     "taking 4.0 MiB on Fake H100: the GPU's memory is full (CUDA_ERROR_OUT_OF_MEMORY); use fewer streams"),
    ("cuMemHostAlloc=2", "d.pinned((5000,), np.float32)",
     "taking 1,048,576 bytes of pinned memory: the GPU's memory is full"),
    ("cuCtxSynchronize=700", "d.synchronize()",
     "waiting for the GPU: a kernel failed (CUDA_ERROR_ILLEGAL_ADDRESS), this one or an earlier one, and this process "
     "cannot use the GPU any more; restart it"),
    ("cuStreamSynchronize=719", "d.download(x)", "copying from the GPU: a kernel failed (CUDA_ERROR_LAUNCH_FAILED)"),
    ("cuEventSynchronize=702", "d.start_download(x, np.zeros(3, np.float32)).wait()", "CUDA_ERROR_LAUNCH_TIMEOUT"),
    ("cuCtxPushCurrent=214", "d.empty((3,), np.int8)", "using GPU 0: a kernel failed (CUDA_ERROR_ECC_UNCORRECTABLE)"),
    ("cuModuleLoadData=209", "d.load('add', {'shape.cuh': '//'})",
     "loading the kernel 'add': the NVIDIA driver does not take what NVRTC 1"),
    ("cuModuleLoadData=222", "d.load('add', {'shape.cuh': '//'})",
     "(CUDA_ERROR_UNSUPPORTED_PTX_VERSION); update the driver, or install an older nvidia-cuda-nvrtc"),
    ("cuLaunchKernelEx=720", "d.launch(k, (1,), (32,), call, cooperative=True)",
     "launching the kernel 'add': its blocks cannot all be resident at once; launch fewer"),
    ("cuLaunchKernelEx=701", "d.launch(k, (1,), (32,), call)", "needs more registers or shared memory"),
    ("cuLaunchKernelEx=912", "d.launch(k, (16,), (32,), call, cluster=16)", "clusters are larger than this GPU takes"),
    ("cuMemsetD8Async=905", "d.fill_zero(x)",
     "filling memory: cannot be part of a CUDA graph (CUDA_ERROR_STREAM_CAPTURE_ISOLATION)"),
    ("cuMemcpyDtoDAsync=1", "d.copy(x, x)",
     "copying on the GPU: the NVIDIA driver says CUDA_ERROR_INVALID_VALUE, that is a pity"),
    ("", "CudaDevice(3)", "opening GPU 3: the NVIDIA driver says CUDA_ERROR_INVALID_DEVICE"),
    ("cuDevicePrimaryCtxRetain=2", "device()", "starting CUDA on GPU 0: the GPU's memory is full"),
    ("", "d.launch(k, (1,), (32,), call, shared=232448)",
     "needs 233,448 bytes of shared memory a block; Fake H100 has 232,448"),
    ("", "d.launch(k, (17,), (32,), call, cluster=17)", "clusters of 17 blocks; Fake H100 takes up to 16"),
]  # fmt: skip


def test_refusals_are_sentences_and_do_not_end_the_process(run):
    run(f"""
errors = {ERRORS!r}
d = device()
k, x = d.load("add", HEADERS), d.zeros((3,), np.float32)
call = dict(x=x, n=3, y=1, far=0)
for fail, code, told in errors:
    os.environ["FAKE_CUDA_FAIL"] = fail
    message = refused(BackendError, lambda: eval(code))
    assert told in message, (told, message)
os.environ["FAKE_CUDA_FAIL"] = ""
before = d.download(x).tolist()
d.launch(k, (1,), (32,), call)
assert d.download(x).tolist() == [v + 1 for v in before]
""")


def test_a_full_memory_is_an_error_of_the_input_too(run):
    run("""
d = device()
x = d.zeros((3,), np.float32)
said()
os.environ["FAKE_CUDA_FAIL"] = "cuMemAllocFromPoolAsync=2"
told = refused(InputError, lambda: d.zeros((3 << 20,), np.float32))
assert "taking 12.0 MiB on Fake H100" in told and refused(BackendError, lambda: d.empty((1,), np.int8))
# What others may still give back is waited for, and what is idle let go, before it is refused.
assert [line.split()[0] for line in said()[:4]] == [
    "cuMemAllocFromPoolAsync", "cuCtxSynchronize", "cuMemPoolTrimTo", "cuMemAllocFromPoolAsync"]
os.environ["FAKE_CUDA_FAIL"] = ""
assert d.download(d.zeros((3,), np.float32)).tolist() == [0, 0, 0]
""")


def test_a_driver_that_does_not_start(run):
    run("""
os.environ["FAKE_CUDA_FAIL"] = "cuInit=803"
told = refused(BackendError, device)
assert "starting CUDA: the NVIDIA driver does not take" in told and "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in told
""")


def test_without_a_driver_the_reason_is_told(monkeypatch):
    from wavenet_fast.kernels.cuda.cuda_device import CudaDevice

    from wavenet_fast.errors import BackendError

    monkeypatch.setattr(gpu, "driver_loaded", lambda: False)
    if isinstance(gpu.look(), gpu.Driver):
        pytest.skip("there is a driver")
    with pytest.raises(BackendError, match="no NVIDIA GPU is found here"):
        CudaDevice(0)
