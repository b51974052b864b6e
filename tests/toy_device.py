"""A GPU that is played: its tensors lie in memory, marked; an operation on both kinds is refused, as CUDA does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from partwise.runtimes import devices
from partwise.runtimes.executors.folded import Held

PLAYED = torch.device("cuda", 0)
_T = Tensor
_DEVICE, _IS_CPU, _GRAD = _T.device.__get__, _T.is_cpu.__get__, _T.grad.__get__  # type: ignore[attr-defined]
_ALLOWED = {_T.__getitem__, _T.__setitem__, _T.copy_}  # an index, or a source, may lie elsewhere
_is_batched = torch._C._functorch.is_batchedtensor


def is_there(t: object) -> bool:
    """Whether a tensor lies on the GPU that is played."""
    return isinstance(t, Tensor) and (getattr(t, "_is_there", False) or _is_batched(t))  # all that is mapped over is


def mark(tree: Any, there: bool = True) -> Any:
    """Every tensor of a tree on that GPU, or in memory."""
    if isinstance(tree, Tensor):
        tree._is_there = there  # type: ignore[attr-defined]
    elif isinstance(tree, Mapping):
        for value in tree.values():
            mark(value, there)
    elif isinstance(tree, tuple | list):
        for value in tree:
            mark(value, there)
    return tree


class _Played(TorchFunctionMode):
    """What torch's functions do with tensors on two devices."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        for thing in args:
            if not isinstance(thing, Tensor) and hasattr(type(thing), "__torch_function__"):
                with self:  # what stands for a parameter calls functions of its own
                    return type(thing).__torch_function__(func, types, args, kwargs)
        given = list(_tensors([*args, *kwargs.values()]))
        there = [t for t in given if is_there(t)]
        if func == _DEVICE:
            return PLAYED if there else func(*args, **kwargs)
        if func == _IS_CPU:
            return not there
        if func == _GRAD:
            return mark(func(*args, **kwargs), bool(there))
        asked = kwargs.pop("device", None)
        if func is _T.to:
            return self._to(args, kwargs, asked)
        if func is _T.cpu:
            return self._to([*args, "cpu"], kwargs, None)
        here = [t for t in given if not is_there(t) and t.dim()]
        if there and here and func not in _ALLOWED:
            raise RuntimeError(f"{getattr(func, '__name__', func)}: expected all tensors to be on the same device")
        if func in (_T.numpy, _T.__array__) and there:
            raise TypeError("can't convert a tensor of a GPU to numpy")
        goes = PLAYED.type == torch.device(asked).type if asked is not None else bool(there)
        found = func(*args, **kwargs)
        if func in (_T.copy_, _T.__setitem__):  # the destination stays where it is
            return found
        return mark(found) if goes else found

    def _to(self, args: Sequence[Any], kwargs: dict[str, Any], asked: Any) -> Tensor:
        source, *rest = args
        goes, kept = is_there(source), []
        for arg in [*rest, *([] if asked is None else [asked])]:
            if isinstance(arg, Tensor):
                goes, arg = is_there(arg), arg.dtype
            if isinstance(arg, str | torch.device):
                goes = torch.device(arg).type == PLAYED.type
            else:
                kept.append(arg)
        found = _T.to(source, *kept, **kwargs) if kept or kwargs else source
        if goes != is_there(source) and found is source:
            found = source.clone()
        return mark(found, goes)  # type: ignore[no-any-return]


def _tensors(things: Sequence[Any]) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, tuple | list):
            yield from _tensors(thing)


@contextmanager
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have `OnDevice("cuda")` find a GPU, which is played."""

    vmap = torch.func.vmap

    def precise(device: torch.device, precision: devices.Precision) -> AbstractContextManager[None]:
        return devices.precise(torch.device("cpu"), precision)

    with monkeypatch.context() as patch:
        for module in ("runtimes.executors.on_device", "experiment.experiment", "experiment.recorder"):
            patch.setattr(f"partwise.{module}.found_device", lambda part, device: PLAYED)
        for module in ("runtimes.executors.on_device", "experiment.evaluate"):
            patch.setattr(f"partwise.{module}.precise", precise)
        patch.setattr("torch.autograd.backward", _unwatched(torch.autograd.backward))
        patch.setattr("torch.func.vmap", lambda *args, **more: _marked(vmap(*args, **more)))
        patch.setattr(Held, "settle", _marked(Held.settle))
        patch.setattr("partwise.runtimes.executors.plain.seed_device_", _seed_)
        patch.setattr("partwise.runtimes.executors.tape.states_of_chance", lambda device: (torch.get_rng_state(),))
        with _Played():
            yield


def _seed_(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without marks: autograd's own tensors have none."""

    def found(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return found


def _marked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What comes out is on that GPU: what autograd makes, and what is mapped over, loses its marks."""
    return lambda *args: mark(function(*args))
