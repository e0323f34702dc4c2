"""A PTX module as C++: one function per kernel, registers as local variables, labels and goto as they stand."""

from __future__ import annotations

# These fill the table of instructions.
from wavenet_fast.emulated import accesses, arithmetic, comparison, flow, together  # noqa: F401
from wavenet_fast.emulated.emitter import Emitter, Options, Site, Translation, identifier
from wavenet_fast.emulated.ptx import Function, Module


def _shared_layout(function: Function, module: Module) -> tuple[dict[str, int], int]:
    """Offsets of the `.shared` variables in the block's window; dynamic ones begin where the static ones end."""
    variables = [*(v for v in module.variables if v.space == "shared"), *function.shared]
    offsets, end = {}, 0
    for variable in variables:
        if variable.size is not None:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            end = start + variable.size
    align = max([16, *(v.align for v in variables if v.size is None)])
    end = -(-end // align) * align if any(v.size is None for v in variables) else end
    offsets.update({v.name: end for v in variables if v.size is None})
    return offsets, end


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
    bodies, entries = [], []
    for function in module.functions.values():
        if not function.defined:
            continue
        offsets, static = _shared_layout(function, module)
        emitter = Emitter(function, module, {**addresses, **{k: str(v) for k, v in offsets.items()}}, out, options)
        body = emitter.run()
        name = f"{'kernel' if function.is_kernel else 'function'}_{identifier(function.name)}"
        text.append(f"void {name}(Thread& t, void* const* PARAM);")
        bodies += [f"void {name}(Thread& t, void* const* PARAM) {{", "  (void)PARAM; bool carry = false; (void)carry;"]
        if emitter.local_size:
            bodies += [
                f"  alignas(64) char local_memory[{emitter.local_size}];",
                "  for (char& x : local_memory) x = char(-1);",
            ]
            bodies += ["  t.local = local_memory; t.local_size = sizeof local_memory;"]
        bodies += [*body, "}"]
        if function.is_kernel:
            out.kernels.append(function.name)
            out.shared[function.name] = static
            stack = (256 << 10) + 512 * len(function.body) + 4096 * -(-emitter.local_size // 4096)
            entries.append(f'{{"{function.name}", {name}, {static}, {-(-stack // 4096) * 4096}}}')
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
            f"const Kernel kernels[] = {{{', '.join(entries) or '{nullptr, nullptr, 0, 0}'}}};",
            f"const Region module_regions[] = {{{', '.join(regions) or '{0, 0, 0, -3}'}}};",
            f"const u32 n_module_regions = {len(regions)};",
            "}",
            "",
        ]
    )
    return out


__all__ = ["Options", "Site", "Translation", "translate"]
