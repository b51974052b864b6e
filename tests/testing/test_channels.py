"""Channels keep their contract, and those that do not are told why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from partwise.channels import Coded, Masked, Plain
from partwise.channels.identities import SimulatedIdentities
from partwise.core.aggregate import sum_updates
from partwise.core.channel import Opened
from partwise.core.errors import ProtocolError
from partwise.core.update import scale
from partwise.testing import check_channel

MASKED = Masked(limit=0.7, max_weight=3)
CODED = Coded(limit=0.7, max_weight=3)


@pytest.mark.parametrize(
    "part",
    [Plain(), MASKED, replace(MASKED, identities=SimulatedIdentities()), replace(MASKED, layout="sparse"), CODED],
    ids=["plain", "masked", "signed", "sparse", "coded"],
)
def test_channels(part):
    check_channel(part, step=getattr(part, "step", 0.0))


@dataclass(frozen=True)
class Wrong:
    """A plain channel with a fault."""

    fault: str
    inner: Plain = field(default_factory=Plain)
    reveals = "each"
    exchanges = True
    patience_seconds = 1.0
    limit = None

    def server(self, cohort, params, session):
        updates = yield dict.fromkeys(cohort)
        if self.fault == "raises":
            raise KeyError(3)
        if self.fault == "always fails" or (self.fault == "fails" and len(updates) < len(cohort)):
            raise ProtocolError("too few")
        if self.fault == "opens nothing":
            return None
        found = [updates[c] for c in sorted(updates)]
        if self.fault == "sums":
            return sum_updates(found, params)
        if self.fault == "forgets weights":
            return [replace(update, weight=1.0) for update in found]
        if self.fault == "leaves out":
            return Opened(found[:-3], sorted(updates)[:-3])
        if self.fault == "miscounts":
            return Opened(found[:-1], sorted(updates))
        return [scale(u, 1.01) for u in found] if self.fault == "scales" else found

    def client(self, update, params, seat):
        if self.fault == "writes":
            update.value["b"].add_(1)
        yield
        if self.fault != "ends early":
            yield update


@dataclass(frozen=True)
class WrongSum(Wrong):
    """One that says that it reveals the sum alone."""

    reveals = "sum"

    def server(self, cohort, params, session):
        found = yield from super().server(cohort, params, session)
        total = sum_updates(found, params)
        if self.fault == "forgets what weights add up to":
            return replace(total, weight={name: torch.ones_like(w) for name, w in total.weight.items()})
        return found if self.fault == "opens each" else total


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "must open what is left, or raise ProtocolError, got KeyError"),
        ("leaves out", "sums all who were not lost, got 4"),
        ("miscounts", "counts the updates in the sum, got 6"),
        ("scales", "the sum of 7 clients is the plain one to within 0 each"),
        ("writes", "an update"),
        ("always fails", "must open what everybody has sent, got ProtocolError: too few"),
        ("opens nothing", "must open updates, got a NoneType"),
        ("sums", "must open updates, since it reveals each, got a Sum"),
        ("forgets weights", "the sum of 7 clients is the plain one"),
        ("ends early", "must open what is left, .* a client's side that ended when it was to answer"),
    ],
)
def test_faults(fault, words):
    with pytest.raises(AssertionError, match=words):
        check_channel(Wrong(fault))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("opens each", "must open a Sum, since it reveals no more, got a list"),
        ("forgets what weights add up to", "must add up the weights .* got others for"),
    ],
)
def test_faults_of_sums(fault, words):
    with pytest.raises(AssertionError, match=words):
        check_channel(WrongSum(fault))


def test_sums():
    check_channel(WrongSum("none"))


def test_weights_are_those_a_channel_takes():
    check_channel(replace(MASKED, max_weight=1), step=replace(MASKED, max_weight=1).step, max_weight=1)


def test_failing_closed_is_no_fault():
    check_channel(Wrong("fails"))
