"""Readers of pickles that make tensors, arrays and plain containers, and nothing else: what else a pickle names is
neither imported nor called. They run in the reading process alone (child.py)."""

from __future__ import annotations

import pickle
import types
from collections.abc import Mapping
from typing import Any, ClassVar


class Refused(Exception):
    """A sentence for whoever converts."""


class Something:
    """Stands for an object of any class: it keeps what it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given = args

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update({str(name): value for name, value in part.items()})

    def __setitem__(self, name: Any, value: Any) -> None:
        vars(self)[str(name)] = value

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


_BUILTINS = {"dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "complex", "bytearray"}
_REBUILD = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}


class Inert(pickle.Unpickler):
    """Makes tensors and plain containers; anything else that a pickle names becomes `Something`, and is never imported
    or called."""

    def find_class(self, module: str, name: str) -> Any:
        import collections

        import torch

        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return super().find_class("builtins", name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return getattr(torch._utils, name)
        if module == "torch" and (name.endswith("Storage") or name == "Size"):
            return getattr(torch, name)
        if module in ("torch.nn.parameter", "torch.nn") and name == "Parameter":
            return torch.nn.Parameter
        return type(name, (Something,), {})


def _load(file: Any, **options: Any) -> Any:
    return Inert(file, **options).load()


INERT = types.SimpleNamespace(__name__="inert", Unpickler=Inert, load=_load)
"""What `torch.load` takes for the module `pickle`."""


class ScalerReader(pickle._Unpickler):
    """Reads a scaler that joblib or pickle wrote: its arrays and numbers, and `Something` for everything else.

    joblib leaves an array's numbers in the file behind the object that stands for it, after a byte that says how many
    more fill up to an even address; written by an older joblib, without."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        return np.dtype if (module, name) == ("numpy", "dtype") else type(name, (Something,), {})

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]
        if type(self.stack[-1]).__name__ == "NumpyArrayWrapper":  # type: ignore[attr-defined]
            self.stack[-1] = self._array(vars(self.stack[-1]))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def _array(self, told: Mapping[str, Any]) -> Any:
        import numpy as np

        dtype, count = np.dtype(told["dtype"]), int(np.prod(told["shape"], dtype=np.int64))
        if dtype.hasobject or not 0 <= count <= 1 << 16:
            raise Refused("holds an array that is none of statistics")
        if told.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        return np.frombuffer(self.file.read(count * dtype.itemsize), dtype)
