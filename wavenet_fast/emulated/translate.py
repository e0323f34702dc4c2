"""A PTX module as C++: one function per kernel, registers as local variables, labels and goto as they stand."""

from __future__ import annotations

# These fill the table of instructions.
from wavenet_fast.emulated import accesses, arithmetic, comparison, flow, together  # noqa: F401
from wavenet_fast.emulated.calls import RESERVE, frame, identifier
from wavenet_fast.emulated.emitter import Emitter, Options, Site, Translation
from wavenet_fast.emulated.ptx import Function, Module
from wavenet_fast.errors import EmulationError

# What CUDA allows a thread.
MAX_LOCAL = 512 << 10


def _shared_layout(function: Function, module: Module, gap: int) -> tuple[dict[str, int], int, list[tuple[int, int]]]:
    """Offsets of the `.shared` variables in the block's window; dynamic ones begin where the static ones end.

    Those of device functions come before a kernel's own, so that they lie alike in every kernel.
    The last item: where there are gaps between variables, from byte to byte.
    """
    variables = [v for v in module.variables if v.space == "shared"]
    variables += [v for other in module.functions.values() if not other.is_kernel for v in other.shared]
    variables += function.shared if function.is_kernel else []
    offsets: dict[str, int] = {}
    used: list[tuple[int, int]] = []
    end = 0
    for variable in variables:
        if variable.size is not None:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            used.append((start, start + variable.size))
            end = start + variable.size + gap
    align = max([16, *(v.align for v in variables if v.size is None)])
    end = -(-end // align) * align if any(v.size is None for v in variables) else end
    offsets.update({v.name: end for v in variables if v.size is None})
    begins = [*(start for start, _ in used[1:]), end]
    pairs = zip(used, begins, strict=False)
    return offsets, end, [(last, begin) for (_, last), begin in pairs if begin - last >= gap > 0]


def translate(module: Module, options: Options | None = None) -> Translation:
    """A module as C++ that includes `ptx.h`.

    Raises:
        EmulationError: an instruction, modifier or operand is not known; the message names it and its line.
    """
    options = options or Options()
    out = Translation("", [])
    memory = [v for v in module.variables if v.space in ("global", "const")]
    addresses = {v.name: f"reinterpret_cast<u64>(variable_{identifier(v.name)})" for v in memory}
    text = ['#include "ptx.h"', "namespace {"]
    for variable in memory:
        initial = ", ".join(map(str, variable.initial.rstrip(b"\0"))) if variable.initial else ""
        align, size = max(variable.align, 16), max(variable.size or 0, 1)
        text.append(f"alignas({align}) u8 variable_{identifier(variable.name)}[{size}] = {{{initial}}};")
    bodies: list[str] = []
    entries: list[str] = []
    guards: list[str] = []
    called = [function for function in module.functions.values() if function.defined and not function.is_kernel]
    local_of_called = 0
    for function in module.functions.values():
        if not function.defined:
            continue
        offsets, static, gaps = _shared_layout(function, module, options.gap)
        emitter = Emitter(function, module, {**addresses, **{k: str(v) for k, v in offsets.items()}}, out, options)
        body = emitter.run()
        if emitter.local_size > MAX_LOCAL:
            raise EmulationError(
                f"line {function.line}: `{function.name}` has {emitter.local_size} bytes of local memory; "
                f"possible: {MAX_LOCAL}",
                function.line,
            )
        name = f"{'kernel' if function.is_kernel else 'function'}_{identifier(function.name)}"
        text.append(f"void {name}(Thread& t, void* const* PARAM);")
        bodies += [f"void {name}(Thread& t, void* const* PARAM) {{", "  (void)PARAM; bool carry = false; (void)carry;"]
        if emitter.local_size:
            bodies.append(f"  LocalMemory<{emitter.local_size}> local_memory(t);")
        bodies += [*body, "}"]
        if not function.is_kernel:
            local_of_called += emitter.local_size
        else:
            out.kernels.append(function.name)
            out.shared[function.name] = static
            out.local[function.name] = emitter.local_size
            stack = 2 * RESERVE + sum(map(frame, [function, *called]))
            listed = ", ".join(f"{{{first}, {last}}}" for first, last in [*gaps, (0, 0)])
            guards.append(f"const Gap gaps_{len(entries)}[] = {{{listed}}};")
            sizes = ", ".join(str(p.size or 0) for p in function.parameters)
            guards.append(f"const u64 parameters_{len(entries)}[] = {{{sizes or 0}}};")
            entries.append(
                f'{{"{function.name}", {name}, {static}, {-(-stack // 4096) * 4096}, gaps_{len(entries)}, {len(gaps)}, '
                f"parameters_{len(entries)}, {len(function.parameters)}}}"
            )
    out.local = {name: size + local_of_called for name, size in out.local.items()}
    regions = [
        f"{{{addresses[v.name]}, {v.size or 0}, {1 if v.space == 'global' else 0}, -3}}" for v in memory if v.size
    ]
    out.source = "\n".join(
        [
            *text,
            *bodies,
            '#line 1 "table"',
            "}",
            "namespace simt {",
            *guards,
            f"const Kernel kernels[] = {{{', '.join(entries) or '{nullptr, nullptr, 0, 0, nullptr, 0, nullptr, 0}'}}};",
            f"const Region module_regions[] = {{{', '.join(regions) or '{0, 0, 0, -3}'}}};",
            f"const u32 n_module_regions = {len(regions)};",
            "}",
            "",
        ]
    )
    return out


__all__ = ["Options", "Site", "Translation", "translate"]
