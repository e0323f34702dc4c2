"""Runs the PTX that Triton, nvcc and NVRTC write, on the CPU, and says what is wrong with it.

    program = Program(ptx, mode="plain")
    program.launch("kernel", grid=(2,), block=(128,), args=[array, 3, None], shared=4096, seed=1)

Approximate instructions (tanh.approx) and tensor cores are executed, but not with a GPU's own rounding; wgmma, tcgen05
and TMA are refused.
"""

from wavenet_fast.emulated.arguments import Struct
from wavenet_fast.emulated.program import Kernel, Program, Stats
from wavenet_fast.errors import BoundsError, EmulationError, RaceError

__all__ = ["BoundsError", "EmulationError", "Kernel", "Program", "RaceError", "Stats", "Struct"]
