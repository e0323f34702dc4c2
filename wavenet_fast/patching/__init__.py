"""Models of r9y9's and kan-bayashi's WaveNets that are held in memory, made to speak by these engines.

    with wavenet_fast.patch(model):
        y = model.incremental_forward(c=c, T=T, tqdm=tqdm)

Inside the block the model's own methods (`incremental_forward`; `generate`, `fast_generate`, `batch_fast_generate`)
take the same arguments and give the same shapes. What cannot be done here goes to the original method.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..errors import InputError, PatchWarning, WavenetFastError
from ..importers import detect, kan_bayashi, r9y9
from ..peer_calls import require_torch
from .terms import Settings, Unsupported

METHODS = {
    r9y9.FAMILY: ("incremental_forward",),
    kan_bayashi.FAMILY: ("generate", "fast_generate", "batch_fast_generate"),
}
"""Family → the methods that are replaced, where a model has them."""


@contextmanager
def patch(
    model: Any,
    strict: bool = False,
    *,
    seed: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    skip_rule: Literal["running", "sum"] | None = None,
) -> Iterator[Any]:
    """A context in which `model`, a module of r9y9's or kan-bayashi's project (or ESPnet's copy of it), generates by
    these engines. At exit its methods are again what they were; its weights are never touched, and may change
    inside, as every call takes them as they are.

    strict     whatever cannot be done here is an `InputError`; else the original method does it, and a `PatchWarning`
               says why, once for each reason
    seed       utterance b of every call gets seed + b; None draws seeds from torch's generator, so that
               `torch.manual_seed` makes a script repeatable
    backend, device, dtype, threads  as for `Vocoder`; dtype "fp32" computes as the original does
    skip_rule  of a model of r9y9's old generation that has no attribute `legacy`: "running" or "sum"

    Raises `InputError` for a model that has none of the methods."""
    require_torch("wavenet_fast.patch")
    family = _family(model)
    settings = Settings(seed, backend, device, dtype, threads, skip_rule)
    told: set[str] = set()

    def refuse(why: str, level: int) -> None:
        if strict:
            raise InputError(f"{why}; leave strict out, and the model's own code does it")
        if why not in told:
            told.add(why)
            warnings.warn(f"{why}; the model's own code does it, as slowly as ever", PatchWarning, stacklevel=level)

    try:
        calls = _calls_of(family, model, settings)
    except (WavenetFastError, Unsupported) as error:
        refuse(f"this model cannot run here: {error}", 4)
        yield model
        return
    before = {name: vars(model).get(name) for name in calls}
    for name, call in calls.items():
        setattr(model, name, _replacement(getattr(model, name), call, refuse))
    try:
        yield model
    finally:
        for name, old in before.items():
            vars(model).pop(name, None)
            if old is not None:
                setattr(model, name, old)


def _family(model: Any) -> str:
    """Raises `InputError` where the model is none that can be patched."""
    inner = getattr(model, "module", None)
    if inner is not None and any(hasattr(inner, name) for names in METHODS.values() for name in names):
        raise InputError(f"the model is wrapped in a {type(model).__name__}; patch what is inside, model.module")
    has = [name for names in METHODS.values() for name in names if callable(getattr(model, name, None))]
    if not has or not hasattr(model, "state_dict"):
        raise InputError(
            f"{type(model).__name__} has no method that can be replaced; models of r9y9/wavenet_vocoder have"
            " incremental_forward, those of kan-bayashi/PytorchWaveNetVocoder generate and fast_generate"
        )
    try:
        family = detect(model.state_dict())
    except WavenetFastError as error:
        raise InputError(f"{type(model).__name__} cannot be patched: {error}") from None
    if not set(METHODS.get(family, ())) & set(has):
        raise InputError(f"{type(model).__name__} is a model of {family}, which has nothing to patch; import it")
    return family


def _calls_of(family: str, model: Any, settings: Settings) -> dict[str, Callable[..., Any]]:
    """Method → what stands in for it: the bound arguments in, the answer out; raises `Unsupported`."""
    from .kan_bayashi_calls import KanBayashiCalls
    from .r9y9_calls import R9y9Calls

    calls = R9y9Calls(model, settings) if family == r9y9.FAMILY else KanBayashiCalls(model, settings)
    return {name: getattr(calls, name) for name in METHODS[family] if callable(getattr(model, name, None))}


def _replacement(original: Any, call: Callable[..., Any], refuse: Callable[[str, int], None]) -> Callable[..., Any]:
    """The original's signature, and `call` under it. An argument that `call` does not know is no matter to it until it
    is given."""
    signature, known = inspect.signature(original), inspect.signature(call).parameters

    @functools.wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        try:
            given = signature.bind(*arguments, **named)
        except TypeError:
            return original(*arguments, **named)  # its own error is what its user knows
        asked = set(given.arguments)
        given.apply_defaults()
        try:
            return call(**{n: value for n, value in given.arguments.items() if n in known or n in asked})
        except Unsupported as why:
            refuse(f"{original.__name__}: {why}", 3)
        return original(*arguments, **named)

    return replacement
