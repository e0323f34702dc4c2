"""The CPU engine in the place of a GPU engine, right or wrong in one way: what the self-test must tell apart. As a
script it is the self-test's process with that engine: stand_in.py WAY."""

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

    name = "triton"
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


def put_in_place(way: str) -> None:
    """`BACKENDS["triton"]` makes stand-ins from now on, in this process."""
    kind = type("StandIn", (StandIn,), {"way": way})
    BACKENDS["triton"] = dataclasses.replace(BACKENDS["triton"], make=kind)


if __name__ == "__main__":
    put_in_place(sys.argv[1])
    selftest.main()
