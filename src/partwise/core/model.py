"""A model as pure functions of its parameters, and what of it can be held in part.

Shapes: b examples in a batch, n examples in a data set, V rows of a table, k row width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from partwise.core.population import Batch
from partwise.core.rng import derive

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ExampleLoss",
    "MarginCrossEntropy",
    "MeanSquaredError",
    "Model",
    "Params",
    "Values",
    "like",
]

_CPU = torch.device("cpu")
_NO_TARGET = -100  # what torch's cross-entropy passes over

Params = Mapping[str, Tensor]
Values = dict[str, Tensor]
ExampleLoss = Callable[[Tensor, Batch], Tensor]


def counted(target: Tensor) -> Tensor:
    """Which of an example's several targets, (b, ...), count: all but -100, with which a short example is filled up."""
    return target != _NO_TARGET


def _averaged(loss: Tensor, target: Tensor) -> Tensor:
    """One value per example, (b,): of one with several targets, the mean over those that count."""
    if loss.dim() == 1:
        return loss
    count = counted(target).flatten(1)
    return loss.flatten(1).mean(1) * (count.shape[1] / count.sum(1).clamp(min=1))


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits (b, classes) against `target` (b,) int64; one value per example.

    Outputs with more axes, (b, classes, ...), are averaged over them; a target of -100 does not count, so that
    sequences of several lengths can be filled up with it.
    """

    target: str = "y"

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        target = batch[self.target]
        return _averaged(F.cross_entropy(outputs, target, reduction="none"), target)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy of one logit per example (b,) against `target` (b,) in {0, 1}."""

    target: str = "y"

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        target = batch[self.target].to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none")


@dataclass(frozen=True)
class MarginCrossEntropy:
    """Cross-entropy of logits (b, classes) plus λ ln(1 + ‖softmax‖²), which is least where no class stands out.

    So clients are kept from being very sure of what only their own data say. Outputs with more axes,
    (b, classes, ...), are averaged over them but for targets of -100, as by `CrossEntropy`.

    Args:
        target: the column of the labels, (b,) int64.
        margin: λ, >= 0.
        over: whose softmax the norm is of: `example`, each by itself; `batch`, all of a batch as one vector, as in the
            released code. Then the term grows with the logarithm of the batch, also where it is only measured, and an
            example's loss depends on the others of its batch, which `Stacked` trains at the speed of `torch.func.vmap`.

    Source: Zeng et al., "FedLD", MICCAI 2024, arXiv:2408.12300, margin regularisation, as released: λ 0.1 there, 0.03
        where none is given.
    Differs: `over="example"` is the default.

    Example:
        >>> logits, batch = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), {"y": torch.tensor([0, 0])}
        >>> MarginCrossEntropy(margin=1.0)(logits, batch) - CrossEntropy()(logits, batch)
        tensor([0.4055, 0.5988])
    """

    target: str = "y"
    margin: float = 0.1
    over: Literal["example", "batch"] = "example"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ValueError(
                f"MarginCrossEntropy(margin={self.margin}): must be finite and at least 0, got {self.margin}. "
                "0.1 is usual."
            )
        if self.over not in ("example", "batch"):
            raise ValueError(
                f"MarginCrossEntropy(over={self.over!r}): must be 'example' or 'batch', got {self.over!r}. Choose one."
            )

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        shares = outputs.softmax(1)
        squares = shares * shares
        surplus = self.margin * torch.log1p(squares.sum() if self.over == "batch" else squares.sum(1))
        target = batch[self.target]
        loss = F.cross_entropy(outputs, target, reduction="none") + surplus
        return _averaged(loss if loss.dim() == 1 else loss * counted(target), target)


@dataclass(frozen=True)
class MeanSquaredError:
    """Half the squared error, averaged over an example's outputs."""

    target: str = "y"

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        target = batch[self.target]
        if outputs.dim() != target.dim() or outputs.shape[1:] != target.shape[1:]:  # would be stretched to fit
            raise ValueError(
                f"MeanSquaredError(target={self.target!r}): outputs and targets must have the same shape, got "
                f"{tuple(outputs.shape)} and {tuple(target.shape)}. For one number per example let forward end with "
                ".squeeze(1)."
            )
        loss = 0.5 * (outputs - target.to(outputs.dtype)) ** 2
        return loss if loss.dim() == 1 else loss.flatten(1).mean(1)


class _Slot(NamedTuple):
    """A place where a module keeps a tensor."""

    home: dict[str, Any]
    key: str
    name: str
    is_buffer: bool
    is_first: bool


@dataclass(frozen=True, eq=False)
class Model:
    """An `nn.Module` seen as functions of its parameters.

    Parameters are the module's parameters and its floating buffers, by their dotted names. One that requires no
    gradient, as of a pretrained part that is frozen, is none: it stays in the module as that was made, is not held,
    sent or saved, and must be the same wherever the model is made.

    All else that the module keeps in integers (bool too, and complex buffers) is no parameter: it is not sent, not
    averaged, and begins anew with every call, so that losses are functions of the parameters and nothing else, whoever
    was trained before and by which executor. A counter that `forward` moves is always at its first step. So batch
    norm with `momentum=None`, which averages over the batches it has counted, keeps the statistics of the last batch;
    give it a momentum. Such tensors are copied for each call: a large one that never changes is better a plain
    attribute than a buffer. Complex parameters that require a gradient are refused.

    Args:
        module: a module, or a callable without arguments that makes one (a class, say): then the
            initial parameters follow the experiment's seed.
        loss: outputs and batch to one loss per example, (b,).
        inputs: the columns of a batch that `forward` receives, in order.
        tables: parameter name -> the columns whose values are its row numbers. Such a parameter can be
            held by rows.
        widths: parameter name -> one entry per axis, the name of the layer width that axis runs over, or
            None for an axis that is never thinned. `"conv2*16"` means: every unit of `conv2` stands for 16
            consecutive entries, as after flattening. Such parameters can be held by grids.
        channels_last: on a CPU, give `forward` its inputs of four axes with the channels last in memory, which makes
            convolutions and pooling faster, above all with one thread per process. A module that calls `view` on what
            they make cannot be run so; one that calls `flatten` can.

    Example:
        >>> model = Model(lambda: nn.Linear(3, 2), CrossEntropy(), inputs=("x",))
        >>> sorted(model.init(seed=1))
        ['bias', 'weight']
    """

    module: nn.Module | Callable[[], nn.Module] = field(repr=False)
    loss: ExampleLoss
    inputs: tuple[str, ...] = ("x",)
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    widths: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    channels_last: bool = False
    _built: dict[int, nn.Module] = field(default_factory=dict, repr=False, init=False)
    _found: dict[str, Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.loss, type) or type(self.loss).__module__ == nn.CrossEntropyLoss.__module__:
            got = f"the class {self.loss.__name__}" if isinstance(self.loss, type) else f"torch's {self.loss}"
            raise TypeError(
                f"Model(loss=...): must take outputs and a batch and give one loss per example, got {got}. "
                "Take CrossEntropy(), BinaryCrossEntropy() or MeanSquaredError(), or write such a function."
            )

    def build(self, seed: int = 0) -> nn.Module:
        """The module; made from `seed` where `module` is a callable. Never trained in place."""
        if isinstance(self.module, nn.Module):
            return self.module
        if seed not in self._built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "model"))
                self._built.clear()
                self._built[seed] = self._made()
        return self._built[seed]

    def _made(self) -> nn.Module:
        assert not isinstance(self.module, nn.Module)
        found: object = self.module()
        if not isinstance(found, nn.Module):
            raise TypeError(
                f"Model(module={self.module!r}): must make an nn.Module, got {found!r}. Return the module from it."
            )
        return found

    def _any(self) -> nn.Module:
        if isinstance(self.module, nn.Module):
            return self.module
        return next(iter(self._built.values())) if self._built else self.build()

    def init(self, seed: int) -> Values:
        """The initial parameters, copied row by row; a parameter that two layers share appears once."""
        self.build(seed)
        rows = torch.contiguous_format  # whatever the module's own strides: indices and files know no others
        found = {s.name: s.home[s.key].detach().clone(memory_format=rows) for s in self._slots() if s.is_first}
        unknown = [name for name in [*self.tables, *self.widths] if name not in found]
        if unknown:
            raise ValueError(
                f"Model(): tables and widths must name parameters, got {unknown}. The parameters are {sorted(found)}."
            )
        if self._found["frozen"] and all(s.is_buffer for s in self._slots()):
            raise ValueError(
                "Model(): needs something to train, got a module of which no parameter requires a gradient. Leave "
                "requires_grad=True where it is to learn."
            )
        still = {id(vars(owner)["_parameters"]): getattr(owner, "padding_idx", None) for owner in self._any().modules()}
        for slot in self._slots():
            if slot.name in self.tables and still.get(id(slot.home)) is not None:
                raise ValueError(
                    f"Model(tables=...): rows of {slot.name!r} must be alike, for who holds some of them numbers them "
                    f"anew, got padding_idx={still[id(slot.home)]}. Leave it out, and give the examples a "
                    "column that says what counts."
                )
        return found

    def columns_of(self, table: str) -> tuple[str, ...]:
        """The columns that number a table's rows, and those of every table that shares one of them, and so on."""
        found = set(self.tables[table])
        while True:
            more = found.union(*(c for c in map(set, self.tables.values()) if c & found))
            if more == found:
                return tuple(sorted(found))
            found = more

    def buffers(self) -> frozenset[str]:
        """Names of the floating buffers, such as running means: they change in `forward`, not by gradients."""
        self._slots()
        return self._found["buffers"]  # type: ignore[no-any-return]

    def _slots(self) -> list[_Slot]:
        """Where the module keeps its tensors; found once."""
        module = self._any()
        if self._found.get("module") is not module:
            slots: list[_Slot] = []
            rest: list[tuple[dict[str, Any], str]] = []
            frozen: list[tuple[dict[str, Any], str]] = []
            names: dict[int, str] = {}
            for prefix, owner in module.named_modules(remove_duplicate=False):
                for home, is_buffer in ((vars(owner)["_parameters"], False), (vars(owner)["_buffers"], True)):
                    for key, tensor in home.items():
                        if tensor is None:
                            continue
                        _check_kind(f"{prefix}.{key}" if prefix else key, tensor, is_buffer)
                        if not tensor.is_floating_point():
                            rest.append((home, key))
                            continue
                        if not is_buffer and not tensor.requires_grad:
                            frozen.append((home, key))
                            continue
                        name = names.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                        is_first = name == (f"{prefix}.{key}" if prefix else key)
                        slots.append(_Slot(home, key, name, is_buffer, is_first))
            buffers = frozenset(slot.name for slot in slots if slot.is_buffer)
            self._found.update(module=module, slots=slots, rest=rest, frozen=frozen, buffers=buffers, elsewhere={})
        return self._found["slots"]  # type: ignore[no-any-return]

    def outputs(self, params: Params, batch: Batch, *, training: bool = False) -> Tensor:
        """What the module makes of a batch under `params`, which may be narrower than the module's own."""
        module, slots = self._any(), self._slots()
        if module.training != training:
            module.train(training)
        own = [slot.home[slot.key] for slot in slots]
        device = next((t.device for t in params.values()), _CPU)
        rest = [(home, key, home[key]) for home, key in self._found["rest"]]
        copies = {id(tensor): tensor.to(device, copy=True) for _, _, tensor in rest}  # one of what has two places
        far = [(home, key, t) for home, key in self._found["frozen"] if (t := home[key]).device != device]
        copies.update((id(tensor), self._frozen_on(device, tensor)) for _, _, tensor in far)
        # Copies of what moves, since `forward` may also set it anew; the backward pass may still want the old values.
        moving = [s for s in slots if training and s.is_buffer and _can_move(params[s.name])]
        lent = {slot.name: params[slot.name].clone() for slot in moving}
        try:
            for slot in slots:  # what torch.func.functional_call does, without finding the places anew each time
                slot.home[slot.key] = lent[slot.name] if slot.name in lent else params[slot.name]
            for home, key, tensor in (*rest, *far):
                home[key] = copies[id(tensor)]
            result: Tensor = module(*(self._laid_out(batch[name]) for name in self.inputs))
            lent.update({s.name: now for s in moving if (now := s.home[s.key]) is not lent[s.name]})
        finally:
            for slot, tensor in zip(slots, own, strict=True):
                slot.home[slot.key] = tensor
            for home, key, tensor in (*rest, *far):
                home[key] = tensor
        for name, tensor in lent.items():
            params[name].copy_(_as_before(name, tensor, params[name]))
        return result

    def _frozen_on(self, device: torch.device, tensor: Tensor) -> Tensor:
        """What never changes, copied to a device once."""
        there: dict[Any, Tensor] = self._found["elsewhere"]
        key = id(tensor), device
        if key not in there:
            there[key] = tensor.to(device)
        return there[key]

    def spared(self, batch: Batch) -> Batch:
        """The batch with copies of what `forward` is given and may write to: for what will be looked at again."""
        return {**batch, **{name: batch[name].clone() for name in self.inputs if name in batch}}

    def _laid_out(self, x: Tensor) -> Tensor:
        if not self.channels_last or x.dim() != 4 or not x.is_cpu or not x.is_floating_point():
            return x
        # Not `contiguous`, which leaves one channel as it is: then convolutions would take it for the other layout.
        return x.clone(memory_format=torch.channels_last)

    def losses(self, params: Params, batch: Batch, *, training: bool = True) -> Tensor:
        """One loss per example, (b,).

        Raises:
            ValueError: the loss gives something else, which executors would average differently.
        """
        losses: object = self.loss(self.outputs(params, batch, training=training), batch)
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            raise ValueError(
                f"Model(loss={self.loss}): must give one loss per example, (b,), got {got}. "
                "Average over an example's outputs; for one logit per example let forward end with .squeeze(1)."
            )
        return losses

    def losses_of_each(self, params: Params, batch: Batch) -> Tensor:
        """The same, in training, where the batch may be asked how many examples it has.

        Raises:
            ValueError: the loss gives fewer or more, whose mean would be of something else.
        """
        losses = self.losses(params, batch)
        examples = len(batch[self.inputs[0]]) if self.inputs else len(losses)
        if len(losses) != examples:
            raise ValueError(
                f"Model(loss={self.loss}): must give one loss per example, (b,), got {len(losses)} for {examples} "
                "examples. Average over an example's outputs, and give 0 for one that is not to count."
            )
        return losses


def _check_kind(name: str, tensor: Tensor, is_buffer: bool) -> None:
    if is_lazy(tensor):
        raise ValueError(
            f"Model(module=...): must know the shapes of its parameters, got {name!r} of a lazy module. Give that its "
            "sizes, or call the module on an example where it is made."
        )
    if tensor.is_complex() and tensor.requires_grad and not is_buffer:
        raise ValueError(
            f"Model(module=...): parameters that are trained must be real, got {tensor.dtype} for {name!r}, which "
            "would stay as it is made. Keep its real and imaginary parts as two, which torch.complex puts together, or "
            "say requires_grad_(False)."
        )


def _can_move(value: object) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad


def _as_before(name: str, found: object, before: Tensor) -> Tensor:
    """What `forward` has set a buffer to."""
    if not isinstance(found, Tensor) or found.shape != before.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"Model(): forward must leave buffer {name!r} with its shape {tuple(before.shape)}, got {got}. "
            "Keep what has no fixed shape in a plain attribute."
        )
    return found.detach()


def like(params: Params) -> Values:
    """The same names, shapes and types without storage (device `meta`)."""
    return {name: torch.empty_like(t, device="meta") for name, t in params.items()}
