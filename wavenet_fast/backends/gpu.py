"""Which GPUs are there, and why a GPU backend cannot run: found out without loading torch, which takes seconds, and
without starting CUDA in this process."""

from __future__ import annotations

import ctypes.util
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIN_CAPABILITY = (8, 0)
"""Compute capability that the kernels are written for: tensor cores that take bf16, and asynchronous copies."""

PROBE_SECONDS = 30.0
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/dxg")
"""One of these is there on Linux where an NVIDIA driver is loaded: a desktop's or server's, a Jetson's, Windows'."""
INSTALL_TORCH = 'PyTorch is not installed; `pip install "wavenet-fast[torch]"` adds it'
INSTALL_CUDA = '`pip install "wavenet-fast[cuda]"` adds what the CUDA kernels need'
_CUDA_TOOLKITS = ("CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX")
_NVRTC_PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
_NVRTC_FILES = ("lib64/libnvrtc.so.*", "lib/libnvrtc.so.*", "bin/nvrtc64_*_0.dll")


@dataclass(frozen=True)
class Gpu:
    """One device of the driver: `memory` in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int

    @property
    def too_old(self) -> bool:
        return self.capability < MIN_CAPABILITY

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True)
class Driver:
    """An NVIDIA driver that works: the newest CUDA it can run, its own release ("" where unknown), and its GPUs in the
    order of torch's device indices."""

    cuda: tuple[int, int]
    release: str
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        return f"{self.release or 'of unknown release'}, for CUDA up to {self.cuda[0]}.{self.cuda[1]}"


def look() -> Driver | str:
    """The driver and its GPUs, or a sentence that says why there are none. The first call takes about as long as
    starting CUDA where a driver is loaded, and no time where none is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.strip().startswith("-1")):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU from this process; unset it, or name one"
    if not driver_loaded():
        return "no NVIDIA GPU is found here (no driver is loaded); on a machine with one, install NVIDIA's driver"
    return _asked(visible)


def driver_loaded() -> bool:
    """Whether the files of an NVIDIA driver are there."""
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32", "nvcuda.dll").exists()
    return any(os.path.exists(name) for name in _DRIVER_FILES)


@functools.lru_cache
def _asked(visible: str | None) -> Driver | str:
    """What the driver answers under this CUDA_VISIBLE_DEVICES, which the probe inherits."""
    told = _probe()
    if isinstance(told, str) or "problem" in told:
        problem = told if isinstance(told, str) else told["problem"]
        return f"the NVIDIA driver does not work here ({problem}); see whether `nvidia-smi` does, and mend the driver"
    gpus = tuple(
        Gpu(g["name"], (g["capability"][0], g["capability"][1]), g["memory"], g["multiprocessors"])
        for g in told["gpus"]
    )
    if not gpus:
        return "the NVIDIA driver finds no GPU; see what `nvidia-smi -L` and CUDA_VISIBLE_DEVICES say"
    release = ""
    with suppress(OSError):
        release = Path("/sys/module/nvidia/version").read_text().strip()
    return Driver((told["cuda"] // 1000, told["cuda"] % 1000 // 10), release, gpus)


def _probe() -> dict[str, Any] | str:
    """What gpu_probe.py prints, or what became of it instead."""
    script = Path(__file__).with_name("gpu_probe.py")
    try:
        done = subprocess.run(
            [sys.executable or "", "-I", script], capture_output=True, text=True, check=False, timeout=PROBE_SECONDS
        )
        told: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"it does not answer within {PROBE_SECONDS:g} s"
    except (OSError, ValueError) as error:
        return f"it cannot be asked: {error}"
    return told


# --- why not ----------------------------------------------------------------------------------------------------


def cuda_index(device: str) -> int:
    """0 for "cuda", N for "cuda:N"."""
    return int(device.partition(":")[2] or 0)


def why_not_cuda(device: str = "cuda") -> str | None:
    """Why Triton kernels cannot run on this device, "cuda" or "cuda:N", with the next step; None where they can."""
    driver = _driver_with(device)
    return driver if isinstance(driver, str) else _why_not_torch_cuda(driver) or _why_not_triton()


def why_not_cuda_kernels(device: str = "cuda") -> str | None:
    """Why the CUDA kernels cannot run on this device, "cuda" or "cuda:N", with the next step; None where they can."""
    driver = _driver_with(device)
    return driver if isinstance(driver, str) else why_no_nvrtc() or _why_not_driver_of(nvrtc_version(), driver)


def why_not_emulated_cuda_kernels() -> str | None:
    """Why the CUDA kernels cannot be executed on the CPU, with the next step; None where they can."""
    return why_no_nvrtc() or _why_no_compiler()


def _driver_with(device: str) -> Driver | str:
    """The driver, where it has this GPU and the kernels are written for it; a sentence where not."""
    driver, index = look(), cuda_index(device)
    if isinstance(driver, str):
        return driver
    if index >= len(driver.gpus):
        there = ", ".join(f"cuda:{i} is {gpu.name}" for i, gpu in enumerate(driver.gpus))
        return f"there is no GPU {index}; {there}"
    if (gpu := driver.gpus[index]).too_old:
        needs = ".".join(map(str, MIN_CAPABILITY))
        return f"{gpu} is too old: its kernels need {needs} (Ampere) or newer; use another GPU or backend 'cpu'"
    return driver


def why_not_emulated() -> str | None:
    """Why GPU kernels cannot be executed on the CPU, with the next step; None where they can."""
    return why_no_kernels() or _why_no_compiler()


def why_no_kernels() -> str | None:
    """Why the Triton kernels cannot even be imported, with the next step; None where they can."""
    return INSTALL_TORCH if torch_build() is None else _why_not_triton()


def why_no_nvrtc() -> str | None:
    """Why the CUDA kernels cannot even be compiled, with the next step; None where they can. Loads nothing."""
    missing = [name for name in ("cuda.core", "cuda.bindings") if not _installed(name)]
    if missing:
        return f"{' and '.join(missing).replace('.', '-')} cannot be found; {INSTALL_CUDA}"
    if nvrtc_version() is None:
        return f"NVRTC, NVIDIA's run-time compiler, cannot be found; {INSTALL_CUDA}"
    return None


def nvrtc_version() -> tuple[int, int] | None:
    """The toolkit of the NVRTC that cuda-bindings would load, from what is written about it; a minor version of 0 where
    only the library's name tells; None where there is none."""
    for package in _NVRTC_PACKAGES:  # as cuda-bindings looks for them
        if (version := _version(package)) is not None:
            return version
    folders = [Path(os.environ[name]) for name in _CUDA_TOOLKITS if os.environ.get(name)]
    files = [file.name for folder in folders for pattern in _NVRTC_FILES for file in folder.glob(pattern)]
    for name in [*files, ctypes.util.find_library("nvrtc") or ""]:
        if match := re.match(r"libnvrtc\.so\.(\d+)|nvrtc64_(\d\d)\d?_0\.dll", name):
            return int(match[1] or match[2]), 0
    return None


def _version(package: str) -> tuple[int, int] | None:
    """Major and minor version of an installed distribution; None where it is not installed."""
    try:
        major, minor, *_ = importlib.metadata.version(package).split(".")
        return int(major), int(minor)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _why_not_driver_of(version: tuple[int, int] | None, driver: Driver) -> str | None:
    """Cubins run on every driver of their toolkit's major version and on newer ones."""
    if version is None or version[0] <= driver.cuda[0]:
        return None
    old = driver.cuda[0]
    told = (
        f"the installed NVRTC makes code for CUDA {version[0]}, and the NVIDIA driver runs CUDA up to "
        f"{old}.{driver.cuda[1]}; update the driver"
    )
    if (package := f"nvidia-cuda-nvrtc-cu{old}") not in _NVRTC_PACKAGES:
        return told
    return (
        f"{told}, or put the compiler for it in this one's place: `pip uninstall nvidia-cuda-nvrtc` and "
        f"`pip install {package}`"
    )


def _why_no_compiler() -> str | None:
    if compiler() is None:
        return "no C++ compiler is found; install g++ (Debian: `apt install g++`), or name one in CXX"
    return None


def compiler() -> str | None:
    """Path of the C++ compiler that CXX names, else of g++ or c++; None where there is none."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")


def _why_not_torch_cuda(driver: Driver) -> str | None:
    build = torch_build()
    if build is None:
        return INSTALL_TORCH
    version, cuda = build
    if cuda is None:
        return (
            f"the installed PyTorch {version} was built without CUDA; pytorch.org/get-started names the command that "
            "installs a build with it, in place of this one"
        )
    if int(cuda.partition(".")[0]) > driver.cuda[0]:
        return (
            f"the installed PyTorch {version} needs CUDA {cuda}, and the NVIDIA driver runs CUDA up to "
            f"{driver.cuda[0]}.{driver.cuda[1]}; update the driver, or install a PyTorch for CUDA {driver.cuda[0]}"
        )
    return None


def _why_not_triton() -> str | None:
    if _installed("triton"):
        return None
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        return "triton is not installed; `pip install triton` adds it"
    return f"triton is not installed, and there is none for {sys.platform} on {platform.machine()}; use Linux"


def torch_build() -> tuple[str, str | None] | None:
    """Version of the installed torch and of the CUDA that it was built for ("13.0"; None without), from the one file
    that says so; None where torch is not installed."""
    if not _installed("torch"):
        return None
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    told: dict[str, Any] = {}
    with suppress(OSError, ValueError, ImportError, AttributeError):
        told = runpy.run_path(str(path))
    return str(told.get("__version__", "of unknown version")), told.get("cuda")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # what lies in sys.modules under this name is no package
        return False
