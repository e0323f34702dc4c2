"""Builds the native engine; everything else about the package is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import find_packages, setup

# No -m flags: instruction sets are switched on inside the isa_*.cpp files, so that none leaks into shared code.
# -ffp-contract=off: a multiply and an add are fused where the source says so and nowhere else.
FLAGS = ["-O3", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-Wall", "-Wextra"]

ParallelCompile("WAVENET_FAST_BUILD_JOBS", default=os.cpu_count() or 1).install()

# kernels/ lies beside the package and ships inside it.
KERNELS = {"wavenet_fast.kernels": "kernels"}

setup(
    packages=[
        *find_packages(include=["wavenet_fast*"]),
        *KERNELS,
        *(f"wavenet_fast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir=KERNELS,
    ext_modules=[
        Pybind11Extension(
            "wavenet_fast._engine",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for pattern in ("*.h", "*.inl") for path in Path("csrc").glob(pattern)),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    ],
)
