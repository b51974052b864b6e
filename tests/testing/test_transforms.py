"""Each rule of the contract of transforms can be broken."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from partwise.core.codec import register
from partwise.core.update import Update, scale, to_dense
from partwise.testing import check, check_transform
from partwise.transforms import Scale


def spoiled(update):
    for value in update.values().values():
        value.mul_(0.5)
    return update


def each(update, function):
    return replace(update, value={n: function(v) for n, v in update.values().items()})


FAULTS = {
    "": lambda u: scale(u, 0.5),
    "in place": spoiled,
    "global chance": lambda u: scale(u, float(torch.rand(()))),
    "type": lambda u: each(u, torch.Tensor.double),
    "zero over zero": lambda u: each(u, lambda v: v / v.abs().sum()),
    "whole only": lambda u: replace(u, value={n: u.values()[n] for n in ("E", "W", "b", "scale")}),
    "raw values": lambda u: replace(u, value={n: v * 0.5 for n, v in u.value.items()}),
    "wrong shape": lambda u: each(u, lambda v: v.reshape(-1)),
    "weights": lambda u: replace(u, weight={n: torch.ones(9) for n in u.index.shapes}),
    "no update": Update.values,
    "arrays": lambda u: each(u, torch.Tensor.numpy),
}


@dataclass(frozen=True)
class Broken:
    """A transform with one fault; apart from that it halves."""

    fault: str = ""
    calls: list = field(default_factory=list, repr=False, compare=False)

    def init(self, params):
        if self.fault == "storage":
            return {name: float(t.sum()) for name, t in params.items()}
        return [torch.zeros(())]

    def apply(self, update, state, rng):
        if self.fault == "memory in self":
            object.__setattr__(self, "seen", True)
        if self.fault == "hidden memory":
            self.calls.append(1)
            return scale(update, 0.5 ** len(self.calls)), state
        if self.fault == "unsaved":
            state = [lambda: 0]
        return FAULTS.get(self.fault, FAULTS[""])(update), state


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("", None),
        ("in place", "must leave the update it is given .* as it is, got another value. Copy before you write."),
        ("global chance", "must depend on update, state and rng alone, got two different results. Draw from"),
        ("memory in self", "must keep its state outside itself"),
        ("hidden memory", "must depend on update, state and rng alone"),
        ("unsaved", "a result must have an encoding, got TypeError: .* got a function"),
        ("type", "must keep dtype and device, torch.float32 on cpu for 'E', got torch.float64 on cpu"),
        ("arrays", r"must send tensors, or values packed, got \['ndarray', .*\. torch\.from_numpy makes one"),
        ("zero over zero", "must keep finite values finite, got NaN or infinity"),
        ("whole only", "must take values over Rows, got KeyError: 'scale'"),
        ("raw values", "must take packed values"),
        ("wrong shape", r"must give an update that fits the model; Update\('E'\)"),
        ("weights", "must give weights that fit the result's index"),
        ("no update", "must give an Update, got dict"),
    ],
)
def test_transform_rule_fails(fault, says):
    if says is None:
        check(Broken())
    else:
        with pytest.raises(AssertionError, match=says):
            check(Broken(fault))


def test_transform_on_client_may_not_read_values():
    check(Scale(2.0))
    with pytest.raises(AssertionError, match="must build its state from parameters without storage"):
        check_transform(Broken("storage"), on_client=True)


@dataclass(frozen=True)
class SharesBuffers:
    """Every state is the same buffer."""

    buffers: dict = field(default_factory=dict, repr=False, compare=False)

    def init(self, params):
        buffers = self.buffers.setdefault(params["E"].dtype, {})
        for name, t in params.items():
            buffers.setdefault(name, torch.zeros_like(t)).zero_()
        return buffers

    def apply(self, update, state, rng):
        for name, value in to_dense(update, {n: state[n] for n in update.index.shapes}).items():
            state[name].add_(value)
        return replace(update, value=update.index.gather(state)), state


@dataclass(frozen=True)
class AddsTheLast:
    """Remembers values by name, as if a client's submodel never changed."""

    def init(self, params):
        return {}

    def apply(self, update, state, rng):
        values = {name: value + state.get(name, 0.0) for name, value in update.values().items()}
        return replace(update, value=values), {**state, **update.values()}


def test_an_error_at_a_later_update_is_told_in_a_sentence():
    says = r"^AddsTheLast\(\): must take updates over one submodel after another, got RuntimeError: The size of tensor"
    with pytest.raises(AssertionError, match=says):
        check(AddsTheLast())


def test_transform_states_must_be_apart():
    with pytest.raises(AssertionError, match="must keep two clients' states apart"):
        check(SharesBuffers())


@register
@dataclass
class Tally:
    """A field that is no argument is not saved."""

    label: str = "calls"
    count: int = field(default=0, init=False)


@dataclass(frozen=True)
class ForgetsOnSave:
    def init(self, params):
        return Tally()

    def apply(self, update, state, rng):
        state.count += 1
        return scale(update, 0.5**state.count), state


def test_transform_state_must_survive_saving():
    with pytest.raises(AssertionError, match="must go on from a saved state, got two different results"):
        check(ForgetsOnSave())


@dataclass
class Thawed:
    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return update, state


@dataclass(frozen=True)
class Unprintable(Thawed.__base__):  # type: ignore[misc,name-defined]
    rate: float = 0.5
    hidden: float = field(default=1.0, repr=False)

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return update, state


def test_part_must_be_frozen_and_rebuild():
    with pytest.raises(AssertionError, match=r"Thawed\(\): a part is a frozen dataclass, got a Thawed that is not"):
        check(Thawed())
    check(Unprintable(0.25))
    with pytest.raises(AssertionError, match="a part rebuilds from its repr"):
        check(Unprintable(0.25, hidden=2.0))
