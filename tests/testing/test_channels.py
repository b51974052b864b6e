"""Channels keep their contract, and those that do not are told why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from partwise.channels import Coded, Masked, Plain
from partwise.channels.identities import SimulatedIdentities
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
        if self.fault == "fails" and len(updates) < len(cohort):
            raise ProtocolError("too few")
        found = [updates[c] for c in sorted(updates)]
        if self.fault == "leaves out":
            return Opened(found[:-3], sorted(updates)[:-3])
        if self.fault == "miscounts":
            return Opened(found[:-1], sorted(updates))
        return [scale(u, 1.01) for u in found] if self.fault == "scales" else found

    def client(self, update, params, seat):
        if self.fault == "writes":
            update.value["b"].add_(1)
        yield
        yield update


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "must open what is left, or raise ProtocolError, got KeyError"),
        ("leaves out", "sums all who were not lost, got 4"),
        ("miscounts", "counts the updates in the sum, got 6"),
        ("scales", "the sum of 7 clients is the plain one to within 0 each"),
        ("writes", "an update"),
    ],
)
def test_faults(fault, words):
    with pytest.raises(AssertionError, match=words):
        check_channel(Wrong(fault))


def test_failing_closed_is_no_fault():
    check_channel(Wrong("fails"))
