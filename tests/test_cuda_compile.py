"""Kernels compiled by the real NVRTC: for every target, cached on disk whatever lies there, refused in sentences."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import pytest
from children import HERE, python

pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from wavenet_fast.kernels.cuda import compile as under_test
from wavenet_fast.kernels.cuda.compile import Image, compile_kernel, why_not_kernels

from wavenet_fast.backends import gpu
from wavenet_fast.errors import BackendError, BackendWarning

if why_not_kernels() is not None:
    pytest.skip(why_not_kernels(), allow_module_level=True)

TARGETS = (80, 86, 89, 90, 100, 120)
SHAPE = {"shape.cuh": "namespace shape { constexpr int R = 64; }\n"}
SCALE = """
#include "call.cuh"
#include "shape.cuh"
extern "C" __global__ void scale(const __grid_constant__ Call call) {
  if (threadIdx.x < call.n) call.x[threadIdx.x] = call.x[threadIdx.x] * shape::R + call.y;
}
"""


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "call.cuh").write_text("#pragma once\nstruct Call {\n  float* x;\n  int n;\n  float y;\n};\n")
    (folder / "scale.cuh").write_text(SCALE)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVENET_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cuda"


@pytest.fixture
def compiled(monkeypatch):
    """How often the compiler ran."""
    ran = []
    real = under_test._Nvrtc.compile
    monkeypatch.setattr(
        under_test._Nvrtc, "compile", lambda self, name, *rest: ran.append(name) or real(self, name, *rest)
    )
    return ran


@pytest.mark.parametrize("capability", TARGETS)
def test_every_target(sources, cache, capability):
    ptx = compile_kernel("scale", SHAPE, capability, "ptx", sources=sources)
    assert f".target sm_{capability}" in ptx.text and ".visible .entry scale(" in ptx.text
    assert (ptx.registers, ptx.spills) == (None, None)
    cubin = compile_kernel("scale", SHAPE, capability, "cubin", sources=sources)
    assert cubin.code.startswith(b"\x7fELF") and 4 <= cubin.registers <= 32 and cubin.spills == 0


def test_products_and_sums_are_fused_only_by_name(sources, cache):
    assert "fma.rn" not in compile_kernel("scale", SHAPE, 90, "ptx", sources=sources).text
    (sources / "scale.cuh").write_text(
        SCALE.replace("call.x[threadIdx.x] * shape::R + call.y", "__fmaf_rn(2, 3, call.y)")
    )
    assert "fma.rn.f32" in compile_kernel("scale", SHAPE, 90, "ptx", sources=sources).text


def test_spills_are_told(sources, cache):
    (sources / "spill.cuh").write_text("""
extern "C" __global__ void __launch_bounds__(1024, 2) spill(float* x) {
  float kept[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[(95 - i) * 1024 + threadIdx.x] = kept[i];
}
""")
    image = compile_kernel("spill", {}, 90, sources=sources)
    assert image.registers == 32 and image.spills > 0 and "spill" in image.log


def test_line_numbers_when_asked_for(sources, cache):
    plain = compile_kernel("scale", SHAPE, 90, "ptx", sources=sources)
    lined = compile_kernel("scale", SHAPE, 90, "ptx", sources=sources, line_info=True)
    assert "\t.loc\t" in lined.text and "\t.loc\t" not in plain.text


# --- refusals ---------------------------------------------------------------------------------------------------


def test_a_source_with_a_fault_is_told_with_its_line(sources, cache):
    with pytest.raises(BackendError) as caught:
        compile_kernel("scale", {"shape.cuh": "namespace shape {\n constexpr int R = 64\n}\n"}, 90, sources=sources)
    assert "cannot compile the kernel 'scale' for sm_90:\nshape.cuh(3): error: expected a" in str(caught.value)
    assert not list(cache.glob("*"))


def test_what_cannot_be(sources, cache):
    with pytest.raises(BackendError, match=r"there is no kernel 'other' in .*; there is call, scale$"):
        compile_kernel("other", {}, 90, sources=sources)
    with pytest.raises(BackendError, match=r"for sm_33 .*: it knows .*90.*pip install --upgrade nvidia-cuda-nvrtc"):
        compile_kernel("scale", SHAPE, 33, sources=sources)
    with pytest.raises(BackendError, match="kind is 'fatbin'; there are 'ptx' and 'cubin'"):
        compile_kernel("scale", SHAPE, 90, "fatbin", sources=sources)
    (sources / "broken.cuh").write_bytes(b"\xff\xfe")
    with pytest.raises(BackendError, match=r"sources cannot be read .*install wavenet-fast anew"):
        compile_kernel("scale", SHAPE, 90, sources=sources)


def test_packages_that_are_missing(sources, cache, monkeypatch):
    monkeypatch.setattr(under_test._Nvrtc, "_loaded", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert 'pip install "wavenet-fast[cuda]"' in why_not_kernels()
    with pytest.raises(BackendError, match=r'cuda-bindings cannot be found; `pip install "wavenet-fast\[cuda\]"` adds'):
        compile_kernel("scale", SHAPE, 90, sources=sources)


@pytest.mark.parametrize("error", [RuntimeError("Failed to dlopen libnvrtc.so.13\nsearched: a, b"), OSError()])
def test_a_library_that_cannot_be_loaded(sources, cache, monkeypatch, error):
    from cuda.bindings import nvrtc

    def fail():
        raise error

    monkeypatch.setattr(under_test._Nvrtc, "_loaded", None)
    monkeypatch.setattr(nvrtc, "nvrtcVersion", fail)
    told = str(error).splitlines()[0] if str(error) else "OSError"
    with pytest.raises(BackendError, match=rf"NVRTC cannot be loaded \({told}\); .*wavenet-fast\[cuda\]"):
        compile_kernel("scale", SHAPE, 90, sources=sources)


def test_nothing_of_nvidias_is_imported_before_it_is_used():
    code = (
        "import sys, wavenet_fast\n"
        "from wavenet_fast.kernels.cuda import compile, cuda_device, device, emulated_device\n"
        "compile.why_not_kernels()\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('cuda', 'torch') and name != 'cuda'))"
    )
    assert python(code).strip() == "[]"


# --- the cache --------------------------------------------------------------------------------------------------


def test_an_image_is_compiled_once_and_only_for_what_it_was_made_from(sources, cache, compiled, monkeypatch):
    first = compile_kernel("scale", SHAPE, 90, sources=sources)
    assert compile_kernel("scale", SHAPE, 90, sources=sources) == first and compiled == ["scale"]
    made = [
        first,
        compile_kernel("scale", SHAPE, 80, sources=sources),
        compile_kernel("scale", SHAPE, 90, "ptx", sources=sources),
        compile_kernel("scale", {"shape.cuh": SHAPE["shape.cuh"].replace("64", "65")}, 90, sources=sources),
        compile_kernel("scale", {**SHAPE, "more.cuh": ""}, 90, sources=sources),
        compile_kernel("scale", SHAPE, 90, sources=sources, line_info=True),
    ]
    (sources / "call.cuh").write_text((sources / "call.cuh").read_text() + "// more\n")
    made.append(compile_kernel("scale", SHAPE, 90, sources=sources))
    monkeypatch.setattr(under_test, "__version__", "0.0.0")
    made.append(compile_kernel("scale", SHAPE, 90, sources=sources))
    monkeypatch.setattr(under_test._Nvrtc.here(), "version", (99, 9))
    made.append(compile_kernel("scale", SHAPE, 90, sources=sources))
    assert len(compiled) == len(made) == len(list(cache.iterdir()))


def spoil_end(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"x",
        spoil_end,
        lambda data: b"#!/bin/sh\n" + data,
        lambda data: os.urandom(len(data)),
        lambda data: data.replace(b"image 1", b"image 9"),
    ],
    ids=["empty", "half", "short", "long", "flipped", "script", "noise", "other format"],
)
def test_a_spoilt_file_is_made_anew_without_a_word(sources, cache, compiled, spoil):
    first = compile_kernel("scale", SHAPE, 90, sources=sources)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_kernel("scale", SHAPE, 90, sources=sources) == first
    assert len(compiled) == 2 and path.read_bytes() == whole and list(cache.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_and_what_is_far_too_large_are_not_read(sources, cache, compiled):
    first = compile_kernel("scale", SHAPE, 90, sources=sources)
    (path,) = cache.iterdir()
    path.unlink()
    os.mkfifo(path)
    assert compile_kernel("scale", SHAPE, 90, sources=sources) == first and path.is_file()
    with path.open("ab") as file:
        file.truncate(1 << 40)  # takes no room
    assert compile_kernel("scale", SHAPE, 90, sources=sources) == first and path.stat().st_size < 1 << 20


def test_another_kernels_image_is_not_taken(sources, cache, compiled):
    first = compile_kernel("scale", SHAPE, 90, sources=sources)
    (path,) = cache.iterdir()
    compile_kernel("scale", {"shape.cuh": SHAPE["shape.cuh"].replace("64", "65")}, 90, sources=sources)
    (other,) = set(cache.iterdir()) - {path}
    other.replace(path)
    assert compile_kernel("scale", SHAPE, 90, sources=sources) == first and len(compiled) == 3


def test_a_folder_that_cannot_be_written_costs_one_warning(sources, tmp_path, compiled, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("WAVENET_FAST_CACHE", str(blocked))
    with pytest.warns(BackendWarning, match="cannot be kept in .*WAVENET_FAST_CACHE") as caught:
        for _ in range(2):
            assert compile_kernel("scale", SHAPE, 90, sources=sources).spills == 0
    assert len(caught) == 1 and len(compiled) == 2 and blocked.read_text() == "not a folder"


def test_a_full_disk_costs_one_warning_and_leaves_nothing(sources, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(under_test, "write_all", full)
    with pytest.warns(BackendWarning, match="no space left on device"):
        assert compile_kernel("scale", SHAPE, 90, sources=sources).spills == 0
    assert not list(cache.iterdir())


def test_without_a_home_there_is_no_cache(sources, compiled, monkeypatch):
    monkeypatch.setattr(under_test, "cache_directory", lambda: None)
    for _ in range(2):
        compile_kernel("scale", SHAPE, 90, sources=sources)
    assert len(compiled) == 2


def test_what_is_used_least_goes_first(sources, cache, monkeypatch):
    monkeypatch.setattr(under_test, "_KEPT", 3)
    for number, capability in enumerate((80, 86, 89)):
        compile_kernel("scale", SHAPE, capability, sources=sources)
        (path,) = cache.glob(f"scale-{capability}-*")
        os.utime(path, (1000 + number, 1000 + number))
    compile_kernel("scale", SHAPE, 80, sources=sources)  # used again
    compile_kernel("scale", SHAPE, 90, sources=sources)
    assert sorted(path.name.split("-")[1] for path in cache.iterdir()) == ["80", "89", "90"]


RACE = """
import sys
from pathlib import Path
from wavenet_fast.kernels.cuda.compile import compile_kernel
room = Path(sys.argv[1])
(room / f"ready-{sys.argv[2]}").touch()
while len(list(room.glob("ready-*"))) < 2:
    pass
for n in range(12):
    header = {"shape.cuh": "namespace shape { constexpr int R = %d; }" % n}
    image = compile_kernel("scale", header, 90, sources=room / "sources")
    print(n, image.registers, sum(image.code))
"""


def test_two_processes_at_once(sources, cache, tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RACE, str(tmp_path), str(n)], cwd=HERE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert said[0][0] == said[1][0] and len(said[0][0].splitlines()) == 12
    assert len(list(cache.iterdir())) == 12 and not list(cache.glob("*partial*"))


def test_threads_at_once(sources, cache):
    images: list[Image] = []
    threads = [
        threading.Thread(target=lambda: images.append(compile_kernel("scale", SHAPE, 90, sources=sources)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 4 and len(set(images)) == 1 and len(list(cache.iterdir())) == 1


def test_the_version_that_is_told_without_loading_is_the_one_that_is_loaded():
    told, loaded = gpu.nvrtc_version(), under_test._Nvrtc.here().version
    assert told[0] == loaded[0] and told[1] in (0, loaded[1])
