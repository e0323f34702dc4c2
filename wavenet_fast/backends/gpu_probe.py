"""Asks the NVIDIA driver what is there, in a process of its own: a driver that hangs or crashes hurts nobody, and the
caller may still fork. A script of the standard library alone; `gpu.look` runs it and reads its one line of JSON."""

import ctypes
import json
import sys

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT.
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16


class _Refused(Exception):
    """A function of the driver did not return 0."""


def _told() -> dict[str, object]:
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(code, ctypes.byref(text))
            raise _Refused(f"{name} says {code}, {(text.value or b'unknown error').decode(errors='replace')}")

    def number(name: str, *arguments: object) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", 0)
    gpus = []
    for i in range(number("cuDeviceGetCount")):
        device, name, memory = number("cuDeviceGet", i), ctypes.create_string_buffer(256), ctypes.c_size_t()
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        capability = [number("cuDeviceGetAttribute", attribute, device) for attribute in (_MAJOR, _MINOR)]
        gpus.append(
            {
                "name": name.value.decode(errors="replace"),
                "capability": capability,
                "memory": memory.value,
                "multiprocessors": number("cuDeviceGetAttribute", _MULTIPROCESSORS, device),
            }
        )
    return {"cuda": number("cuDriverGetVersion"), "gpus": gpus}


if __name__ == "__main__":
    try:
        answer = _told()
    except (OSError, AttributeError, _Refused) as error:
        answer = {"problem": str(error)}
    print(json.dumps(answer))
