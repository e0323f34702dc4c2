"""The NVIDIA driver through cuda-bindings: what it answers as results, what it refuses as sentences."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from wavenet_fast.backends import gpu
from wavenet_fast.errors import BackendError, InputError

# After these the driver answers every call of the process with the same error.
_LOST = {
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ASSERT", "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_EXTERNAL_DEVICE", "CUDA_ERROR_CONTAINED",
}  # fmt: skip
_OLD_DRIVER = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_INVALID_SOURCE", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
}  # fmt: skip
_TOLD = {
    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": "its blocks cannot all be resident at once; launch fewer",
    "CUDA_ERROR_INVALID_CLUSTER_SIZE": "its clusters are larger than this GPU takes; use fewer blocks a cluster",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "a block of it needs more registers or shared memory than there are; use "
    "fewer threads or a smaller plan",
    "CUDA_ERROR_NO_DEVICE": "this process sees no GPU; look at what `nvidia-smi` lists and CUDA_VISIBLE_DEVICES leaves",
    "CUDA_ERROR_STUB_LIBRARY": "what was loaded is the CUDA toolkit's stub in the driver's place; take its folder out "
    "of LD_LIBRARY_PATH",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has this GPU to itself; end it, or let several use the GPU with "
    "`nvidia-smi -c DEFAULT`",
    "CUDA_ERROR_NOT_INITIALIZED": "CUDA has not begun in this process; one that was made by fork from a process that "
    "used the GPU cannot use it: start it with multiprocessing's method 'spawn'",
}
"""Code → what it means, and what to do."""


class CudaError(BackendError):
    """The driver refused; `code` is the name that CUDA gives it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class OutOfMemory(CudaError, InputError):
    """More was asked for than is free, of the GPU's memory or of pinned memory."""


_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


def sentence(code: str, doing: str, text: str = "") -> str:
    """What the driver refused, why, and what to do; `text` are the driver's own words."""
    if code == _OUT_OF_MEMORY:
        return (
            f"{doing}: the GPU's memory is full ({code}); use fewer streams, end other programs that use this GPU, or "
            "use backend 'cpu'"
        )
    if code in _LOST:
        return (
            f"{doing}: a kernel failed ({code}), this one or an earlier one, and this process cannot use the GPU any "
            "more; restart it"
        )
    if code in _OLD_DRIVER:
        version = gpu.nvrtc_version()
        made = f"NVRTC {version[0]}.{version[1]}" if version else "NVRTC"
        return (
            f"{doing}: the NVIDIA driver does not take what {made} makes for this GPU ({code}); update the driver, or "
            "install an older nvidia-cuda-nvrtc of the CUDA version that `nvidia-smi` names"
        )
    if code in _TOLD:
        return f"{doing}: {_TOLD[code]} ({code})"
    if code.startswith("CUDA_ERROR_STREAM_CAPTURE"):
        return f"{doing}: cannot be part of a CUDA graph ({code}); do it before the capture begins"
    return f"{doing}: the NVIDIA driver says {code}{f', {text}' if text else ''}"


class Driver:
    """`cuda.bindings.driver`, loaded when first made; `api` is the module.

    Raises `BackendError` where it is not installed or there is no driver."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise BackendError(gpu.why_no_nvrtc() or f"{error}; {gpu.INSTALL_CUDA}") from None
        self.api: Any = driver
        try:
            self("cuInit", 0, doing="starting CUDA")
        except BackendError:
            raise
        except Exception as error:  # whatever cuda-bindings raises where libcuda is not found
            found = gpu.look()
            raise BackendError(found if isinstance(found, str) else f"CUDA cannot be started: {error}") from None

    def __call__(self, function: str, *arguments: Any, doing: str) -> Any:
        """Calls a function: its result, or a tuple of them, or None. Raises `CudaError` where it does not return 0."""
        try:
            code, *results = getattr(self.api, function)(*arguments)
        except (RuntimeError, AttributeError) as error:
            if "not found" in str(error) or isinstance(error, AttributeError):
                raise BackendError(f"{doing}: the NVIDIA driver has no {function}; update it ({error})") from None
            raise
        except ValueError as error:  # a code of a newer driver than cuda-bindings knows
            if "CUresult" not in str(error):
                raise
            raise BackendError(f"{doing}: the NVIDIA driver says what cuda-bindings does not know ({error})") from None
        if int(code):
            name = getattr(code, "name", str(code))
            kind = OutOfMemory if name == _OUT_OF_MEMORY else CudaError
            raise kind(sentence(name, doing, self._text(code)), name)
        return results[0] if len(results) == 1 else tuple(results) or None

    def _text(self, code: Any) -> str:
        with suppress(Exception):  # an error about an error
            told = self.api.cuGetErrorString(code)[1]
            return str(told.decode(errors="replace")) if told else ""
        return ""

    def constant(self, kind: str, name: str) -> Any:
        """A member of an enumeration: `constant("CUdevice_attribute", "MULTIPROCESSOR_COUNT")`."""
        prefix = {
            "CUdevice_attribute": "CU_DEVICE_ATTRIBUTE_", "CUfunction_attribute": "CU_FUNC_ATTRIBUTE_",
            "CUlaunchAttributeID": "CU_LAUNCH_ATTRIBUTE_", "CUevent_flags": "CU_EVENT_", "CUstream_flags": "CU_STREAM_",
            "CUstreamCaptureStatus": "CU_STREAM_CAPTURE_STATUS_",
        }[kind]  # fmt: skip
        return getattr(getattr(self.api, kind), prefix + name)
