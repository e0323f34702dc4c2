"""The CPU engine in the place of the GPU engines, right or wrong in one way: what the self-test must tell apart. As a
script it is the self-test's process with those engines: stand_in.py CUDA_WAY TRITON_WAY."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from wavenet_fast.backends import BACKENDS, selftest
from wavenet_fast.backends.cpu import CpuEngine
from wavenet_fast.errors import BackendError


class StandIn(CpuEngine):
    """On one thread; `way` is what is wrong with it, "right" for nothing."""

    name = "cuda"
    way = "right"

    def __init__(self, config: Any, weights: Any, dtype: str, device: str) -> None:
        if self.way == "does not fit":
            raise BackendError("the model needs 999 GiB of GPU memory; use backend 'cpu'")
        if self.way == "raises":
            raise RuntimeError("no kernel image is available\nfor this device")
        if self.way == "exits":
            os._exit(3)
        if self.way == "crashes":
            print("a last word", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.way == "hangs":
            time.sleep(600)
        if self.way == "wrong network":
            weights = {**weights, "layers.2.dilated.weight": -weights["layers.2.dilated.weight"]}
        super().__init__(config, weights, dtype)

    def _new_state(self, seeds: Any, speakers: Any) -> Any:
        return super()._new_state(seeds + np.uint64(self.way == "wrong draws"), speakers)

    def _run(self, state: Any, call: Any) -> None:
        if self.way == "notices its batch" and state.batch == 1:
            state.inputs[:] = 0
        if self.way == "forgets" and state.positions.any():
            state._zero_rings(np.ones(state.batch, bool))
        super()._run(state, call)
        if self.way == "chatters":
            os.write(1, b"a library says hello without ending the line")
        if self.way == "wrong sound" and call.audio is not None:
            np.multiply(call.audio, np.float32(1.01), out=call.audio)
        if self.way == "NaN" and call.logits is not None:
            call.logits[1, 7, 3] = np.nan


def stand_in(name: str, way: str) -> Any:
    """The backend of that name, with stand-ins for its engines."""
    kind = type("StandIn", (StandIn,), {"way": way, "name": name})
    return dataclasses.replace(BACKENDS[name], make=kind)


if __name__ == "__main__":
    BACKENDS.update({name: stand_in(name, way) for name, way in zip(("cuda", "triton"), sys.argv[1:], strict=True)})
    selftest.main()
