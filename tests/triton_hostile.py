"""An emulated GPU whose memory is as unfriendly as it may be: NaN in everything that must not be read, and a watch on
everything that must not be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from wavenet_fast.kernels.triton.launch import EmulatedLauncher
from wavenet_fast.kernels.triton.tuning import Options

NAN = float("nan")


class HostileLauncher(EmulatedLauncher):
    """Same results, bit for bit, or `AssertionError`. `launched` lists the kernels in the order of their launches."""

    def __init__(self, capability: int = 90, mode: str = "plain", seed: int = 0) -> None:
        super().__init__(capability, mode, seed)
        self.launched: list[str] = []

    def run(self, name: str, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Options) -> None:
        self.launched.append(name)
        a = dict(arguments)
        watched = list(getattr(self, f"_{name}")(a)) if hasattr(self, f"_{name}") else []
        before = [part.clone() for part in watched]
        super().run(name, grid, a, options)
        for part, was in zip(watched, before, strict=True):
            assert torch.equal(_bits(part), _bits(was)), f"{name} wrote where nothing of its own is"
        self._restore(a)

    # Each of these poisons a launch's arguments and gives the parts that must be as they are when it ends.

    def _generate(self, a: dict[str, Any]) -> Iterator[Tensor]:
        outputs = ["audio", "draws", "logits_out", *(key for key in a if key.endswith("_trace"))]
        for key in (*outputs, "logits_room", "skip_room"):
            if a[key] is not None:
                a[key].fill_(NAN)
        self._kept = {key: a[key].clone() for key in ("rings", "inputs", "filters")}
        if a["forced"] is not None:
            a["forced"] = a["forced"].clone()
        a["projected"] = a["projected"].clone()
        for b, count in enumerate(a["counts"].tolist()):
            a["projected"][b, int(a["last_column"][b]) + 1 :] = NAN
            if a["forced"] is not None:
                a["forced"][b, count:] = NAN
            if not count:
                for key in self._kept:
                    a[key][b] = NAN
                    yield a[key][b]
            yield from (a[key][b, count:] for key in outputs if a[key] is not None)

    def _residual_block(self, a: dict[str, Any]) -> Iterator[Tensor]:
        reach = (a["K"] - 1) * a["dilation"]
        if a["RESIDUAL"]:
            a["x_next"].fill_(NAN)
        for b, count in enumerate(a["counts"].tolist()):
            a["x"][b, reach + count :] = NAN
            a["skip"][b, count:] = NAN
            yield a["x"][b]
            yield a["skip"][b, count:]
            if a["RESIDUAL"]:
                yield a["x_next"][b, count:]

    def _embed(self, a: dict[str, Any]) -> Iterator[Tensor]:
        a["x"].fill_(NAN)
        a["heard"] = a["heard"].clone()
        for b, count in enumerate(a["counts"].tolist()):
            a["heard"][b, a["IN_TAPS"] - 1 + count :] = NAN
            yield a["x"][b, count:]

    def _sample(self, a: dict[str, Any]) -> Iterator[Tensor]:
        a["draws"].fill_(NAN)
        a["logits"][:, a["width"] :] = NAN
        a["uniforms"][:, 2:] = NAN
        yield a["logits"]

    def _decode(self, a: dict[str, Any]) -> Iterator[Tensor]:
        a["audio"].fill_(NAN)
        a["heard"] = a["heard"].clone()
        for b, count in enumerate(a["counts"].tolist()):
            a["draws"][b, count:] = a["heard"][b, count:] = NAN
            yield a["draws"][b]
            yield a["audio"][b, count:]
            if not count:
                yield a["filters"][b]

    def _dense(self, a: dict[str, Any]) -> Iterator[Tensor]:
        a["out"].fill_(NAN)
        yield a["x"]

    def _restore(self, a: dict[str, Any]) -> None:
        for b, count in enumerate(a["counts"].tolist() if "rings" in a else []):
            if not count:
                for key, was in self._kept.items():
                    a[key][b] = was[b]


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])
