"""What this machine can run, and why the rest is off: the facts behind `wavenet-fast doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from .errors import BackendError, WavenetFastError

CPU_FLAGS = {
    # Linux's words for what bears on speed, used by the engine or not, on x86-64 and on arm64.
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "amx_bf16",
    "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve",
}  # fmt: skip
NEEDED = ("numpy", "safetensors", "soundfile", "soxr", "click", "tqdm", "msgspec")
OPTIONAL = ("torch", "triton", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "matplotlib")
VARIABLES = (
    "WAVENET_FAST_ISA", "WAVENET_FAST_SPLIT", "WAVENET_FAST_CACHE", "WAVENET_FAST_GPU_PATIENCE", "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
NOTES = {"emulated": "executes the kernels' compiled code on the CPU, for proof: slow, never chosen by auto"}
"""What to say of a device where it works."""


def examine() -> dict[str, Any]:
    """Versions, processor, instruction sets, GPUs, backends, verdicts of self-tests and voices as plain data. Loads no
    optional package, and runs no self-test."""
    return {
        "versions": {"wavenet_fast": _own_version(), "python": platform.python_version()}
        | {name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        "machine": _machine(),
        "isa": _instruction_sets(),
        "sharing": _sharing(),
        "gpu": _gpu(),
        "backends": _backends(),
        "cuda_plans": _cuda_plans(),
        "selftests": _selftests(),
        "voices": _voices(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _own_version() -> str:
    from . import __version__

    return __version__


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from .backends import usable_cores

    name, flags = _processor()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": name or platform.processor() or "unknown",
        "features": sorted(flags & CPU_FLAGS),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
    }


def _processor() -> tuple[str, set[str]]:
    """Name and feature flags as Linux tells them; nothing elsewhere."""
    name, flags = "", set[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = set(value.split())
                if name and flags:
                    break
    except OSError:
        pass
    return name, flags


def _instruction_sets() -> dict[str, Any]:
    try:
        from .backends import cpu
    except ImportError as error:
        return {"built": [], "possible": [], "chosen": None, "problem": f"the engine cannot be loaded: {error}"}
    try:
        chosen, problem = cpu.isa_in_use(), None
    except WavenetFastError as error:
        chosen, problem = None, str(error)
    return {"built": cpu.isas_built(), "possible": cpu.isas_possible(), "chosen": chosen, "problem": problem}


_STREAMS = (1, 16)


def _sharing() -> dict[str, Any] | None:
    """How calls share the cores: plans of `backends.cpu.Plan` by number of streams, for weights that fit the second
    cache and for larger ones."""
    from .backends import usable_cores

    try:
        from . import _engine
        from .backends.cpu import Plan, split_in_use

        cache, split, threads = _engine.second_cache(), split_in_use(), usable_cores()
    except ImportError:
        return None
    except WavenetFastError as error:
        return {"problem": str(error)}
    sizes = {"fits": cache, "larger": cache + 1}
    plans = {
        name: {str(n): Plan(*_engine.plan(size, n, threads, split))._asdict() for n in _STREAMS}
        for name, size in sizes.items()
    }
    return {"second_cache_bytes": cache, "split": split, "threads": threads, "plans": plans}


def _sharing_lines(told: dict[str, Any]) -> list[str]:
    if "problem" in told:
        return [f"threads           {told['problem']}"]
    from .backends.cpu import Plan

    cache = f"{told['second_cache_bytes'] / 2**20:.3g} MiB"
    lines = [f"threads           up to {told['threads']}, split {told['split']!r}; second cache {cache} a core"]
    for name, about in (("fits", "weights that fit it"), ("larger", "larger weights")):
        plans = [f"{n} stream{'s' * (n != '1')}: {Plan(**plan)}" for n, plan in told["plans"][name].items()]
        lines.append(f"  {about:<20}{'; '.join(plans)}")
    return lines


def _backends() -> dict[str, Any]:
    from .backends import BACKENDS, INT8_COST_LIMIT

    told = {}
    for name, backend in BACKENDS.items():
        places = {device: backend.why_not(device) for device in backend.devices}
        why_not = places[backend.devices[0]]
        try:
            auto_dtype = backend.auto_dtype({}) if why_not is None else None
        except WavenetFastError as error:
            why_not, auto_dtype = str(error), None
        told[name] = {
            "summary": backend.summary,
            "available": why_not is None,
            "why_not": why_not,
            "devices": list(backend.devices),
            "why_not_on": places,
            "tested": list(backend.tested),
            "dtypes": list(backend.dtypes),
            "auto_dtype": auto_dtype,
            "auto_dtype_where_int8_is_cheap": backend.auto_dtype({"int8": INT8_COST_LIMIT}) if auto_dtype else None,
        }
    return told


def _backend_lines(name: str, b: dict[str, Any]) -> list[str]:
    default = f", {b['auto_dtype']} by default" if b["auto_dtype"] else ""
    cheap = b["auto_dtype_where_int8_is_cheap"]
    if b["available"] and cheap != b["auto_dtype"]:
        default += f" ({cheap} for voices that record a small cost of it: wavenet-fast check)"
    if len(b["devices"]) == 1:
        state = f"works{default}" if b["available"] else f"off: {b['why_not']}"
        return [f"  {name:<16}{b['summary']}; {state}"]
    lines = [f"  {name:<16}{b['summary']}"]
    for device, why in b["why_not_on"].items():
        state = f"works{default}" if why is None else f"off: {why}"
        if why is None and device in b["tested"]:
            state += "; auto takes it for a model once a self-test of its shape has passed"
        if why is None and device in NOTES:
            state += f"; {NOTES[device]}"
        lines.append(f"    on {device:<11}{state}")
    return lines


def _gpu() -> dict[str, Any]:
    from .backends import gpu

    driver = gpu.look()
    if isinstance(driver, str):
        return {"problem": driver, "driver": None, "gpus": []}
    found = [
        {"name": g.name, "capability": ".".join(map(str, g.capability)), "memory_bytes": g.memory} for g in driver.gpus
    ]
    return {"problem": None, "driver": str(driver), "gpus": found}


def _gpu_lines(told: dict[str, Any]) -> list[str]:
    if told["problem"]:
        return [f"GPUs              none: {told['problem']}"]
    lines = [
        f"  cuda:{i:<11}{g['name']}, compute capability {g['capability']}, {g['memory_bytes'] / 2**30:.0f} GiB"
        for i, g in enumerate(told["gpus"])
    ]
    return [f"GPUs              NVIDIA driver {told['driver']}", *lines]


def _cuda_plans() -> dict[str, Any]:
    """What the CUDA kernels' planner decides for one stream of the first bundled voice on each GPU."""
    from .backends import BACKENDS, gpu
    from .checkpoint import bundled_voices, load_checkpoint, resolve
    from .kernels.cuda.devices import properties_of
    from .kernels.cuda.plan import as_dict, explain, plan
    from .kernels.cuda.shapes import Shape

    driver, voices = gpu.look(), bundled_voices()
    if isinstance(driver, str) or not voices:
        problem = "no GPU is found to plan for" if isinstance(driver, str) else "no voice is bundled"
        return {"problem": problem, "voice": None, "gpus": []}
    shape, dtype = Shape.of(load_checkpoint(resolve(voices[0])).config), BACKENDS["cuda"].auto_dtype({})
    plans = []
    for found in driver.gpus:
        try:
            device = properties_of(10 * found.capability[0] + found.capability[1], found.multiprocessors, found.name)
            decided = plan(shape, 1, dtype, device)
            plans.append({"problem": None, "text": explain(decided), "plan": as_dict(decided)})
        except WavenetFastError as error:
            plans.append({"problem": str(error), "text": None, "plan": None})
    return {"problem": None, "voice": voices[0], "gpus": plans}


def _cuda_plan_lines(told: dict[str, Any]) -> list[str]:
    if told["problem"]:
        return [f"CUDA plans        none: {told['problem']}"]
    lines = [f"CUDA plans        for one stream of {told['voice']}; of another voice, or more streams: Vocoder.plan"]
    for i, of in enumerate(told["gpus"]):
        first, *rest = (of["text"] or f"none: {of['problem']}").splitlines()
        lines += [f"  cuda:{i:<11}{first}", *(f"  {line}" for line in rest)]
    return lines


def _selftests() -> list[dict[str, Any]]:
    from .backends import selftest

    return [
        {"passed": v.passed, "reason": v.reason, "counts": selftest.counts_here(v), **v.key} for v in selftest.stored()
    ]


def _selftest_lines(told: list[dict[str, Any]]) -> list[str]:
    lines = []
    for test in told:
        where = f"{test.get('gpu', test.get('device'))}, driver {test.get('driver', 'unknown')}"
        outcome = "passed" if test["passed"] else f"failed, {test['reason']}"
        past = "" if test["counts"] else " (of other hardware, driver, packages or kernels: no longer counts)"
        lines.append(f"  {test.get('backend')} {test.get('dtype')}, {test.get('size')}, on {where}: {outcome}{past}")
    return lines


def run_selftests(voice: str, dtype: str = "auto") -> int:
    """Run the self-test again for a voice's shape, on the first GPU, with every backend that `auto` may choose there:
    how many ran. Verdicts are kept, and shown by `examine`.

    Raises `BackendError` where no GPU backend works, saying why, and for a number format that none has."""
    from .backends import BACKENDS, choose, selftest
    from .checkpoint import load_checkpoint, resolve

    config = load_checkpoint(resolve(voice)).config
    tested = [(name, device) for name, backend in BACKENDS.items() for device in backend.tested]
    reasons = {place: BACKENDS[place[0]].why_not(place[1]) for place in tested}
    if all(reasons.values()):
        told = ". ".join(f"{name} on {device}: {why}" for (name, device), why in reasons.items())
        raise BackendError(f"there is nothing to self-test here. {told}")
    works = [place for place in tested if reasons[place] is None]
    able = [(name, device) for name, device in works if dtype in ("auto", *BACKENDS[name].dtypes)]
    for name, device in able or works:  # `choose` refuses a format that none has
        selftest.verdict(config, name, device, choose(name, device, dtype).dtype, again=True)
    return len(able)


def _voices() -> list[str]:
    from .checkpoint import bundled_voices

    return bundled_voices()


def format_examination(told: dict[str, Any]) -> str:
    """`examine()` for people."""
    machine, isa = told["machine"], told["isa"]
    lines = [
        f"wavenet_fast {told['versions']['wavenet_fast']}, Python {told['versions']['python']}, {sys.platform}",
        "",
        f"processor         {machine['processor']} ({machine['architecture']})",
        f"features          {' '.join(machine['features']) or 'unknown'}",
        f"cores             {machine['usable_cores']} usable of {machine['cores']}",
        f"instruction sets  {', '.join(isa['possible']) or 'none'} possible here; {isa['chosen'] or 'none'} chosen",
    ]
    if isa["problem"]:
        lines.append(f"                  {isa['problem']}")
    if told["sharing"]:
        lines += _sharing_lines(told["sharing"])
    lines += ["", *_gpu_lines(told["gpu"]), "", "backends"]
    for name, b in told["backends"].items():
        lines += _backend_lines(name, b)
    lines += ["", *_cuda_plan_lines(told["cuda_plans"])]
    if told["selftests"]:
        lines += ["", "self-tests of GPU kernels", *_selftest_lines(told["selftests"])]
    lines += ["", "packages"]
    for name in NEEDED + OPTIONAL:
        missing = "not installed (optional)" if name in OPTIONAL else "missing: reinstall wavenet-fast"
        lines.append(f"  {name:<20}{told['versions'][name] or missing}")
    lines += ["", f"voices            {', '.join(told['voices']) or 'none bundled'}"]
    lines += [f"{name:<20}{value}" for name, value in told["environment"].items()]
    return "\n".join(lines)
