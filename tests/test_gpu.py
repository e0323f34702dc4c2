"""Every reason for which a GPU backend is off is a sentence with the next step, and is found without loading torch. The
probes are replaced: no GPU is needed, and none is in the way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from children import python
from click.testing import CliRunner

from wavenet_fast.backends import BACKENDS, availability, choose, gpu
from wavenet_fast.cli import cli
from wavenet_fast.errors import BackendError

A100, T4 = gpu.Gpu("NVIDIA A100", (8, 0), 40 << 30, 108), gpu.Gpu("Tesla T4", (7, 5), 16 << 30, 40)


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine with these GPUs, this driver, torch and further packages."""

    def make(
        *gpus, cuda=(13, 0), torch=("2.13.0+cu130", "13.0"), packages=("torch", "triton"), compiler="/usr/bin/g++"
    ):
        told = [dataclasses.asdict(g) for g in gpus]
        gpu._asked.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(gpu, "driver_loaded", lambda: True)
        monkeypatch.setattr(gpu, "_probe", lambda: {"cuda": cuda[0] * 1000 + cuda[1] * 10, "gpus": told})
        monkeypatch.setattr(gpu, "torch_build", lambda: torch)
        monkeypatch.setattr(gpu, "_installed", lambda package: package in packages)
        monkeypatch.setattr(gpu, "compiler", lambda: compiler)

    yield make
    gpu._asked.cache_clear()


def refusal(device="cuda", backend="triton"):
    with pytest.raises(BackendError) as caught:
        choose(backend, device)
    assert str(caught.value).startswith(f"backend '{backend}' is not available here on device '{device}': ")
    return str(caught.value)


def test_a_machine_that_has_everything_works(machine):
    machine(A100, T4)
    backend, device, dtype = choose("triton")
    assert (backend.name, device, dtype) == ("triton", "cuda", "bf16")
    assert choose("triton", "cuda:0", "fp32")[1:] == ("cuda:0", "fp32")
    assert choose("triton", "emulated")[1] == "emulated"
    assert availability()["triton"] is None


def test_without_a_driver_there_is_no_gpu_and_nothing_is_started(machine, monkeypatch):
    machine(A100)
    monkeypatch.setattr(gpu, "driver_loaded", lambda: False)
    monkeypatch.setattr(gpu, "_probe", lambda: pytest.fail("a process was started"))
    told = refusal()
    assert "no NVIDIA GPU is found here" in told and "install NVIDIA's driver" in told and "Available: cpu" in told
    assert choose("triton", "emulated")[1] == "emulated"
    assert choose()[0].name == "cpu"


@pytest.mark.parametrize("value", ["", " ", "-1"])
def test_gpus_that_are_hidden(machine, monkeypatch, value):
    machine(A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert "CUDA_VISIBLE_DEVICES" in refusal() and "unset it" in refusal()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose("triton")[1] == "cuda"


@pytest.mark.parametrize(
    "answer",
    [{"problem": "cuInit says 999, unknown error"}, "it does not answer within 30 s"],
    ids=["refuses", "hangs"],
)
def test_a_driver_that_does_not_work(machine, monkeypatch, answer):
    machine(A100)
    monkeypatch.setattr(gpu, "_probe", lambda: answer)
    told = refusal()
    assert "driver does not work here" in told and "nvidia-smi" in told
    assert (answer if isinstance(answer, str) else answer["problem"]) in told


def test_a_driver_without_a_gpu(machine):
    machine()
    assert "finds no GPU" in refusal() and "nvidia-smi -L" in refusal()


def test_a_gpu_that_is_too_old_is_named(machine):
    machine(T4, A100)
    told = refusal()
    assert "Tesla T4 (compute capability 7.5) is too old" in told and "8.0" in told and "backend 'cpu'" in told
    assert choose("triton", "cuda:1")[1] == "cuda:1"


def test_a_device_index_that_is_not_there(machine):
    machine(A100, T4)
    assert "there is no GPU 2; cuda:0 is NVIDIA A100, cuda:1 is Tesla T4" in refusal("cuda:2")


def test_torch_that_is_missing_without_cuda_or_too_new_for_the_driver(machine):
    machine(A100, torch=None)
    assert 'pip install "wavenet-fast[torch]"' in refusal() and "wavenet-fast[torch]" in refusal("emulated")
    machine(A100, torch=("2.13.0+cpu", None))
    assert "2.13.0+cpu was built without CUDA" in refusal() and "pytorch.org/get-started" in refusal()
    assert choose("triton", "emulated")[1] == "emulated"
    machine(A100, cuda=(12, 8))
    told = refusal()
    assert "needs CUDA 13.0" in told and "up to 12.8" in told and "update the driver" in told
    machine(A100, cuda=(13, 0), torch=("2.13.0+cu132", "13.2"))  # within one major version drivers serve newer builds
    assert choose("triton")[1] == "cuda"


def test_triton_that_is_missing(machine, monkeypatch):
    machine(A100, packages=("torch",))
    monkeypatch.setattr(gpu.sys, "platform", "linux")
    monkeypatch.setattr(gpu.platform, "machine", lambda: "x86_64")
    for device in ("cuda", "emulated"):
        assert "`pip install triton` adds it" in refusal(device)
    monkeypatch.setattr(gpu.platform, "machine", lambda: "riscv64")
    assert "there is none for linux on riscv64" in refusal()


@pytest.fixture
def kernels(machine, monkeypatch):
    """A machine with these GPUs, this driver, these packages and distributions, for the CUDA kernels."""

    def make(*gpus, cuda=(13, 0), packages=("cuda.core", "cuda.bindings"), compiler="/usr/bin/g++", **versions):
        machine(*gpus, cuda=cuda, torch=None, packages=packages, compiler=compiler)
        monkeypatch.setattr(gpu, "_version", lambda package: versions.get(package.replace("-", "_")))
        monkeypatch.setattr(gpu.ctypes.util, "find_library", lambda name: None)
        for name in gpu._CUDA_TOOLKITS:
            monkeypatch.delenv(name, raising=False)

    return make


def test_cuda_kernels_need_a_gpu_that_is_new_enough_and_no_torch(kernels):
    versions = {"nvidia_cuda_nvrtc": (13, 5)}
    kernels(A100, T4, **versions)
    assert gpu.why_not_cuda_kernels() is None and gpu.why_not_cuda_kernels("cuda:0") is None
    assert "Tesla T4 (compute capability 7.5) is too old" in gpu.why_not_cuda_kernels("cuda:1")
    assert "there is no GPU 2" in gpu.why_not_cuda_kernels("cuda:2")
    backend, device, dtype = choose("cuda")
    assert (backend.name, device, dtype) == ("cuda", "cuda", "bf16")
    assert choose("cuda", "cuda:0", "fp32")[1:] == ("cuda:0", "fp32")
    assert availability()["cuda"] is None and "wavenet-fast[torch]" in availability()["triton"]
    assert "Tesla T4 (compute capability 7.5) is too old" in refusal("cuda:1", "cuda")
    kernels(**versions)
    assert "finds no GPU" in refusal("cuda", "cuda") and choose("cuda", "emulated")[1] == "emulated"
    kernels(**versions, compiler=None)
    assert "no C++ compiler" in refusal("emulated", "cuda")


def test_cuda_kernels_need_their_packages(kernels):
    def refusals():
        for device in ("cuda", "emulated"):
            assert gpu.why_no_nvrtc() in refusal(device, "cuda")
        return {gpu.why_not_cuda_kernels(), gpu.why_not_emulated_cuda_kernels(), gpu.why_no_nvrtc()}

    adds = '`pip install "wavenet-fast[cuda]"` adds what the CUDA kernels need'
    kernels(A100, packages=())
    assert refusals() == {f"cuda-core and cuda-bindings cannot be found; {adds}"}
    kernels(A100, packages=("cuda.bindings",))
    assert refusals() == {f"cuda-core cannot be found; {adds}"}
    kernels(A100)
    assert refusals() == {f"NVRTC, NVIDIA's run-time compiler, cannot be found; {adds}"}


def test_an_nvrtc_that_is_newer_than_the_driver(kernels):
    kernels(A100, cuda=(12, 8), nvidia_cuda_nvrtc=(13, 5))
    told = refusal("cuda", "cuda")
    assert "makes code for CUDA 13, and the NVIDIA driver runs CUDA up to 12.8; update the driver" in told
    assert "`pip uninstall nvidia-cuda-nvrtc` and `pip install nvidia-cuda-nvrtc-cu12`" in told
    assert gpu.why_not_emulated_cuda_kernels() is None
    kernels(A100, cuda=(11, 8), nvidia_cuda_nvrtc=(13, 5))  # whose NVRTC would not be found
    assert gpu.why_not_cuda_kernels().endswith("runs CUDA up to 11.8; update the driver")
    kernels(A100, cuda=(12, 8), nvidia_cuda_nvrtc_cu12=(12, 9))
    assert gpu.why_not_cuda_kernels() is None and gpu.nvrtc_version() == (12, 9)
    kernels(A100, cuda=(13, 0), nvidia_cuda_nvrtc=(13, 5))
    assert gpu.why_not_cuda_kernels() is None


@pytest.mark.parametrize("file", ["lib64/libnvrtc.so.13", "lib/libnvrtc.so.13.0.88", "bin/nvrtc64_130_0.dll"])
def test_the_nvrtc_of_a_toolkit_counts(kernels, monkeypatch, tmp_path, file):
    kernels(A100)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.why_no_nvrtc() is not None
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).touch()
    assert gpu.why_no_nvrtc() is None and gpu.nvrtc_version() == (13, 0)


def test_emulation_without_a_compiler(machine):
    machine(A100, compiler=None)
    assert "no C++ compiler is found; install g++" in refusal("emulated")
    assert choose("triton")[1] == "cuda"


def test_the_compiler_is_the_one_that_is_named(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert gpu.compiler() == sys.executable
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert gpu.compiler() is None
    monkeypatch.delenv("CXX")
    assert gpu.compiler() == (shutil.which("g++") or shutil.which("c++"))


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:12345", "CUDA", "emulated:0", "cpu:0"])
def test_unknown_devices(machine, device):
    machine(A100)
    with pytest.raises(BackendError, match=r"^device is .*; backend 'triton' offers 'cuda', 'emulated' and 'auto'"):
        choose("triton", device)
    with pytest.raises(BackendError, match=r"^device is .*; there are 'cuda', 'emulated', 'cpu' and 'auto'"):
        choose("auto", device)


def test_auto_never_takes_the_emulated_device(machine, monkeypatch):
    machine()
    assert choose()[0].name == "cpu"
    with pytest.raises(BackendError, match=r"never chosen for you; name the backend too: 'cuda', 'triton'$"):
        choose(device="emulated")
    assert all(backend.devices[0] != "emulated" for backend in BACKENDS.values())
    off = dataclasses.replace(BACKENDS["cpu"], why_not=lambda device: "it was switched off")
    monkeypatch.setitem(BACKENDS, "cpu", off)
    monkeypatch.setitem(BACKENDS, "reference", dataclasses.replace(off, name="reference"))
    with pytest.raises(
        BackendError, match=r"no backend is available here\. cuda: .* finds no GPU.* triton: .* finds no GPU"
    ):
        choose()


def test_auto_with_a_device_takes_a_backend_that_runs_there(machine):
    machine(A100)
    assert choose(device="cpu")[0].name == "cpu"
    with pytest.raises(BackendError, match=r"dtype is 'fp64'; there are 'fp32', 'bf16', 'fp16', 'int8' and 'auto'"):
        choose(dtype="fp64")


def test_the_command_line_takes_the_words_and_gives_the_reasons(machine):
    machine(T4)
    for words, said in (
        (("--backend", "triton"), "Tesla T4 (compute capability 7.5) is too old"),
        (("--backend", "triton", "--device", "cuda:1"), "there is no GPU 1"),
        (("--device", "emulated"), "name the backend too"),
        (
            ("--backend", "triton", "--dtype", "int8", "--device", "emulated"),
            "offers 'fp32', 'fp16', 'bf16' and 'auto'",
        ),
    ):
        refused = CliRunner().invoke(cli, ["bench", "--case", "tiny", *words])
        assert refused.exit_code == 2 and said in refused.stderr, refused.stderr
    told = CliRunner().invoke(cli, ["doctor"]).stdout
    assert "Tesla T4, compute capability 7.5" in told and "on cuda       off: Tesla T4" in told
    assert "on emulated   works; executes the kernels' compiled code on the CPU, for proof: slow" in told


# --- the probes themselves --------------------------------------------------------------------------------------

FAKE_DRIVER = r"""
#include <cstring>
extern "C" {
int cuInit(unsigned) { return REFUSE; }
int cuGetErrorString(int, const char** text) { *text = "that is a pity"; return 0; }
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGet(int* device, int i) { *device = 10 + i; return 0; }
int cuDeviceGetName(char* name, int, int device) { std::strcpy(name, device == 10 ? "First" : "Second"); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = size_t(device) << 30; return 0; }
int cuDeviceGetAttribute(int* v, int what, int device) {
  *v = what == 75 ? device - 2 : what == 76 ? 6 : what == 16 ? 10 * device : -1;
  return 0;
}
}
"""


@pytest.mark.skipif(sys.platform != "linux" or gpu.compiler() is None, reason="needs Linux and a C++ compiler")
@pytest.mark.parametrize("refuse", [0, 804])
def test_the_probe_reads_a_driver(tmp_path, refuse):
    source = tmp_path / "fake.cpp"
    source.write_text(FAKE_DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([gpu.compiler(), "-shared", "-fPIC", f"-DREFUSE={refuse}", "-o", library, source], check=True)
    script = Path(gpu.__file__).with_name("gpu_probe.py")
    done = subprocess.run(
        [sys.executable, "-I", script], env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    if refuse:
        assert told == {"problem": "cuInit says 804, that is a pity"}
        return
    gpus = [
        {"name": "First", "capability": [8, 6], "memory": 10 << 30, "multiprocessors": 100},
        {"name": "Second", "capability": [9, 6], "memory": 11 << 30, "multiprocessors": 110},
    ]
    assert told == {"cuda": 12080, "gpus": gpus}


def test_a_probe_that_says_nothing_or_hangs_is_a_sentence(monkeypatch):
    def answer(*_, **__):
        return subprocess.CompletedProcess([], -11, "", "")

    monkeypatch.setattr(gpu.subprocess, "run", answer)
    assert "cannot be asked" in gpu._probe()

    def hang(*_, **options):
        raise subprocess.TimeoutExpired("probe", options["timeout"])

    monkeypatch.setattr(gpu.subprocess, "run", hang)
    assert gpu._probe() == "it does not answer within 30 s"


def test_the_build_of_torch_is_read_without_loading_it():
    torch = pytest.importorskip("torch", reason="reads the installed torch's own file")
    assert gpu.torch_build() == (torch.__version__, torch.version.cuda)
    code = (
        "import sys\nfrom wavenet_fast.backends import availability, choose, gpu\n"
        "gpu.torch_build(), availability(), choose(), gpu.why_not_emulated()\n"
        "print(sorted({'torch', 'triton'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_packages_that_are_blocked_count_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.torch_build() is None and not gpu._installed("torch")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not gpu._installed("cuda.bindings")


def test_versions_come_from_what_is_installed():
    assert gpu._version("no-such-package") is None
    assert gpu._version("wavenet-fast") == (0, 1)
