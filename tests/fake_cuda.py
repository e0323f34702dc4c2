"""A `libcuda.so.1` that stands in for the NVIDIA driver: memory is the machine's, and a launch of any kernel does what
`SOURCE` says.

It is as lazy as a driver may be: work waits in its stream until somebody waits for it, and is then done in an order
that streams and events allow. So what is read or freed too early is seen: freed memory is overwritten, and never taken
again.

It writes every call into the file FAKE_CUDA_LOG, with `WAITS` behind those that wait for work, and refuses those that
FAKE_CUDA_FAIL names ("cuMemAllocFromPoolAsync=2 cuLaunchKernelEx=700"). Where they are there: FAKE_CUDA_NO_POOLS, it
has no memory pools; FAKE_CUDA_IDLE, kernels do nothing; FAKE_CUDA_CAPTURED, the stream 0xCA, which otherwise is in a
capture, is not any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
#pragma once
struct Call {
  float* x;       // (n)
  int n;          // numbers
  float y;        // what is added
  long long far;
};
"""

KERNEL = """
#include "call.cuh"
#include "shape.cuh"
extern "C" __global__ void add(const __grid_constant__ Call call) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < call.n) call.x[i] += call.y;
}
"""

_DRIVER = r"""
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {
void say(const char* format, ...) {
  std::FILE* file = std::fopen(std::getenv("FAKE_CUDA_LOG"), "a");
  va_list rest;
  va_start(rest, format);
  std::vfprintf(file, format, rest);
  va_end(rest);
  std::fputc('\n', file);
  std::fclose(file);
}
int answer(const char* function) {
  const char* fail = std::getenv("FAKE_CUDA_FAIL");
  const char* found = fail ? std::strstr(fail, (std::string(function) + "=").c_str()) : nullptr;
  return found ? std::atoi(found + std::strlen(function) + 1) : 0;
}
std::uintptr_t next = 0x1000;
struct Attribute { int id, pad; union { unsigned cluster[3]; int cooperative; char room[64]; } value; };
struct Config { unsigned grid[3], block[3], shared; void* stream; Attribute* attributes; unsigned n; };
struct Call { float* x; int n; float y; long long far; };

// Work that waits. An event is a number of pieces of its stream that must have been done; a piece may wait for others.
struct Place { void* stream; std::size_t pieces; };
struct Piece { std::function<void()> work; bool waits; Place place; };
struct Stream { std::vector<Piece> pieces; std::size_t done = 0; };
std::map<void*, Stream> streams;
std::map<void*, Place> events;
std::map<char*, std::size_t> pinned;
std::map<void*, std::size_t> sizes;
void finish(Place place) {
  Stream& stream = streams[place.stream];
  while (stream.done < place.pieces) {
    const std::size_t now = stream.done++;
    if (stream.pieces[now].waits) finish(stream.pieces[now].place);
    else stream.pieces[now].work();
    stream.pieces[now].work = {};
  }
}
bool finished(Place place) { return streams[place.stream].done >= place.pieces; }
void finish_all() {
  for (auto& [name, stream] : streams) finish({name, stream.pieces.size()});
}
void queue(void* stream, std::function<void()> work) { streams[stream].pieces.push_back({std::move(work), false, {}}); }
Place here(void* stream) { return {stream, streams[stream].pieces.size()}; }
bool is_pinned(const void* at) {
  auto after = pinned.upper_bound((char*)at);
  return after != pinned.begin() && (--after, (char*)at < after->first + after->second);
}
void* taken(std::size_t n) {
  void* at = std::malloc(n);
  std::memset(at, 0xFF, n);
  sizes[at] = n;
  return at;
}
void freed(void* at) {
  std::memset(at, 0xEE, sizes[at]);  // and never taken again, so that late use shows
}
}

#define DO(name, ...) if (int code = answer(#name)) return code; __VA_ARGS__; return 0;
#define TOLD(name, format, ...) say(#name " " format, __VA_ARGS__); DO(name)
extern "C" {
using Ptr = unsigned long long;
int cuGetProcAddress_v2(const char* name, void** out, int, std::uint64_t, int* status) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_NOW);
  *out = dlsym(self, (std::string(name) + "_v2").c_str());
  if (!*out) *out = dlsym(self, name);
  if (status) *status = *out ? 0 : 1;
  return *out ? 0 : 500;
}
int cuInit(unsigned) { DO(cuInit) }
int cuGetExportTable(const void** table, const void*) { *table = nullptr; return 500; }  // NVRTC asks for one
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuGetErrorString(int, const char** text) { *text = "that is a pity"; return 0; }
int cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR"; return 0; }
int cuDeviceGet(int* device, int i) { *device = i; DO(cuDeviceGet, if (i) return 101) }
int cuDeviceGetName(char* name, int, int) { std::strcpy(name, "Fake H100"); return 0; }
int cuDeviceGetAttribute(int* v, int what, int) {
  switch (what) {
    case 75: *v = 9; break;  case 76: *v = 0; break;
    case 16: *v = 132; break;  case 97: *v = 232448; break;  case 81: *v = 233472; break;
    case 13: *v = 1755000; break;  case 115: *v = std::getenv("FAKE_CUDA_NO_POOLS") ? 0 : 1; break;
    case 82: *v = 65536; break;  case 39: *v = 2048; break;  case 106: *v = 32; break;
    default: *v = -1;
  }
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { *context = (void*)0x77; DO(cuDevicePrimaryCtxRetain) }
int cuCtxPushCurrent_v2(void*) { DO(cuCtxPushCurrent) }
int cuCtxPopCurrent_v2(void** context) { *context = (void*)0x77; return 0; }
int cuCtxSynchronize() { say("cuCtxSynchronize WAITS"); finish_all(); DO(cuCtxSynchronize) }
int cuStreamCreate(void** stream, unsigned flags) { *stream = (void*)(next += 0x10); TOLD(cuStreamCreate, "%u", flags) }
int cuStreamDestroy_v2(void* s) { TOLD(cuStreamDestroy, "%p", s) }
int cuStreamIsCapturing(void* stream, int* status) {
  *status = stream == (void*)0xCA && !std::getenv("FAKE_CUDA_CAPTURED"); return 0; }
int cuStreamSynchronize(void* s) { say("cuStreamSynchronize %p WAITS", s); finish(here(s)); DO(cuStreamSynchronize) }
int cuStreamWaitEvent(void* s, void* e, unsigned) {
  if (s == (void*)0xCA && !std::getenv("FAKE_CUDA_CAPTURED")) return 905;
  streams[s].pieces.push_back({{}, true, events[e]}); TOLD(cuStreamWaitEvent, "%p %p", s, e) }
int cuEventCreate(void** event, unsigned flags) {
  events[*event = (void*)(next += 0x10)] = {nullptr, 0}; TOLD(cuEventCreate, "%u", flags) }
int cuEventDestroy_v2(void*) { return 0; }
int cuEventRecord(void* e, void* s) { events[e] = here(s); TOLD(cuEventRecord, "%p %p", e, s) }
int cuEventQuery(void* e) { DO(cuEventQuery, if (!finished(events[e])) return 600) }
int cuEventSynchronize(void* e) { say("cuEventSynchronize %p WAITS", e); finish(events[e]); DO(cuEventSynchronize) }
int cuMemAlloc_v2(Ptr* p, size_t n) {
  say("cuMemAlloc %zu WAITS", n);
  DO(cuMemAlloc, finish_all(); *p = (Ptr)taken(n))
}
int cuMemFree_v2(Ptr p) { say("cuMemFree %zu WAITS", sizes[(void*)p]); finish_all(); freed((void*)p); DO(cuMemFree) }
int cuMemPoolCreate(void** pool, const void*) { *pool = (void*)0x99; TOLD(cuMemPoolCreate, "%d", 1) }
int cuMemPoolSetAttribute(void*, int what, void* v) { TOLD(cuMemPoolSetAttribute, "%d %llu", what, *(Ptr*)v) }
int cuMemPoolTrimTo(void*, size_t n) { TOLD(cuMemPoolTrimTo, "%zu", n) }
int cuMemPoolDestroy(void*) { TOLD(cuMemPoolDestroy, "%d", 1) }
int cuMemAllocFromPoolAsync(Ptr* p, size_t n, void*, void* s) {
  say("cuMemAllocFromPoolAsync %zu %p", n, s);
  DO(cuMemAllocFromPoolAsync, *p = (Ptr)taken(n); queue(s, [] {}))
}
int cuMemFreeAsync(Ptr p, void* s) {
  queue(s, [p] { freed((void*)p); }); TOLD(cuMemFreeAsync, "%zu %p", sizes[(void*)p], s) }
int cuMemHostAlloc(void** p, size_t n, unsigned) {
  say("cuMemHostAlloc %zu WAITS", n);
  DO(cuMemHostAlloc, finish_all(); pinned[(char*)(*p = taken(n))] = n)
}
int cuMemFreeHost(void* p) {
  say("cuMemFreeHost %zu WAITS", sizes[p]);
  finish_all();
  freed(p);
  pinned.erase((char*)p);
  DO(cuMemFreeHost)
}
int cuMemcpyHtoDAsync_v2(Ptr d, const void* h, size_t n, void* s) {
  const bool late = is_pinned(h);
  say("cuMemcpyHtoDAsync %zu %p%s", n, s, late ? "" : " WAITS");
  queue(s, [=] { std::memcpy((void*)d, h, n); });
  if (!late) finish(here(s));
  DO(cuMemcpyHtoDAsync)
}
int cuMemcpyDtoHAsync_v2(void* h, Ptr d, size_t n, void* s) {
  const bool late = is_pinned(h);
  say("cuMemcpyDtoHAsync %zu %p%s", n, s, late ? "" : " WAITS");
  queue(s, [=] { std::memcpy(h, (void*)d, n); });
  if (!late) finish(here(s));
  DO(cuMemcpyDtoHAsync)
}
int cuMemcpyDtoDAsync_v2(Ptr d, Ptr h, size_t n, void* s) {
  queue(s, [=] { std::memcpy((void*)d, (void*)h, n); }); TOLD(cuMemcpyDtoDAsync, "%zu %p", n, s) }
int cuMemsetD8Async(Ptr d, unsigned char v, size_t n, void* s) {
  queue(s, [=] { std::memset((void*)d, v, n); }); TOLD(cuMemsetD8Async, "%zu %p", n, s) }
int cuPointerGetAttributes(unsigned n, int* what, void** out, Ptr) {
  const int device = std::atoi(std::getenv("FAKE_CUDA_DEVICE"));
  for (unsigned i = 0; i < n; ++i) *(unsigned*)out[i] = what[i] == 2 ? 2 : what[i] == 9 ? device : 0;
  return 0;
}
int cuPointerGetAttribute(void* out, int what, Ptr p) { return cuPointerGetAttributes(1, &what, &out, p); }
int cuModuleLoadData(void** m, const void* image) {
  *m = (void*)0x11; TOLD(cuModuleLoadData, "%s", std::memcmp(image, "\x7f" "ELF", 4) ? "something" : "a cubin") }
int cuModuleGetFunction(void** f, void*, const char* name) { *f = (void*)0x22; TOLD(cuModuleGetFunction, "%s", name) }
int cuFuncGetAttribute(int* v, int what, void*) { *v = what == 1 ? 1000 : what == 4 ? 40 : -1; return 0; }
int cuFuncSetAttribute(void*, int what, int v) { TOLD(cuFuncSetAttribute, "%d %d", what, v) }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int threads, size_t shared) {
  *n = 3; TOLD(cuOccupancyMaxActiveBlocksPerMultiprocessor, "%d %zu", threads, shared) }
int cuOccupancyMaxActiveClusters(int* n, void*, const Config* c) {
  const unsigned cluster = c->attributes->value.cluster[0];
  *n = 5; TOLD(cuOccupancyMaxActiveClusters, "%u %u %u %u", c->grid[0], c->block[0], c->shared, cluster) }
int cuLaunchKernelEx(const Config* c, void*, void** arguments, void**) {
  std::string told;
  for (unsigned i = 0; i < c->n; ++i) {
    const Attribute& a = c->attributes[i];
    if (a.id == 4) told += " cluster " + std::to_string(a.value.cluster[0]) + "," + std::to_string(a.value.cluster[1]);
    else if (a.id == 2) told += " cooperative " + std::to_string(a.value.cooperative);
    else told += " unknown " + std::to_string(a.id);
  }
  Call call;
  std::memcpy(&call, arguments[0], sizeof call);
  if (std::getenv("FAKE_CUDA_IDLE")) call.n = 0, call.far = 0;
  say("cuLaunchKernelEx %u,%u,%u %u,%u,%u %u %p far %lld%s", c->grid[0], c->grid[1], c->grid[2], c->block[0],
      c->block[1], c->block[2], c->shared, c->stream, call.far, told.c_str());
  DO(cuLaunchKernelEx, queue(c->stream, [call] {
    say("a kernel runs");
    for (int i = 0; i < call.n; ++i) call.x[i] += call.y;
  }))
}
}
"""


def build(folder: Path) -> Path:
    """The folder of the stand-in, to be found before any driver of the machine."""
    from wavenet_fast.backends import gpu

    if sys.platform != "linux" or gpu.compiler() is None:
        pytest.skip("needs Linux and a C++ compiler")
    source = folder / "fake.cpp"
    source.write_text(_DRIVER)
    compiled = [str(gpu.compiler()), "-std=c++17", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run([*compiled, "-ldl"], check=True)
    sources = folder / "sources"
    sources.mkdir()
    (sources / "call.cuh").write_text(SOURCE)
    (sources / "add.cuh").write_text(KERNEL)
    return folder


BEGIN = """
import os, sys
import numpy as np
from wavenet_fast.errors import *
from wavenet_fast.kernels.cuda.cuda_device import CudaDevice

HEADERS = {"shape.cuh": ""}


def device():
    return CudaDevice(0, sources=os.environ["FAKE_CUDA_SOURCES"])


def refused(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise SystemExit(f"{kind.__name__} was not raised")


def said():
    lines = open(os.environ["FAKE_CUDA_LOG"]).read().splitlines()
    open(os.environ["FAKE_CUDA_LOG"], "w").close()
    return lines

"""


def run(folder: Path, code: str, **variables: str) -> str:
    """What Python prints that runs this code, after `BEGIN`, with the stand-in as its driver."""
    log = folder / "log"
    log.write_text("")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_CUDA_LOG": str(log),
        "FAKE_CUDA_DEVICE": "0",
        "FAKE_CUDA_SOURCES": str(folder / "sources"),
        "WAVENET_FAST_CACHE": str(folder / "cache"),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", BEGIN + code],
        env=environment,
        cwd=folder,  # not the repository, whose sources would hide the installed package
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr} {done.stdout}"
    return done.stdout
