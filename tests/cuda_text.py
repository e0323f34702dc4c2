"""CUDA C++ of `tests/cuda_kernels` as PTX, by NVRTC: for tests of the executor with what a CUDA compiler writes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).parent / "cuda_kernels"


def need_nvrtc() -> Any:
    """The bindings of NVRTC; skips the module's tests where they or the library are missing."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs pip install cuda-bindings nvidia-cuda-nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC cannot be loaded ({error}): pip install nvidia-cuda-nvrtc", allow_module_level=True)
    return nvrtc


@functools.cache
def cuda_ptx(name: str, target: int, defines: str = "") -> str:
    """The PTX of a source of `tests/cuda_kernels` for `sm_<target>`; `defines` are macros, as in `"A=1 B=2"`."""
    nvrtc = need_nvrtc()
    text = "\n".join((SOURCES / part).read_text() for part in ("device.cuh", name))
    options = [f"--gpu-architecture=compute_{target}", "--std=c++17", "--fmad=false"]
    options += [f"--define-macro={define}" for define in defines.split()]
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise AssertionError(log.decode())
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.rstrip(b"\0").decode()
