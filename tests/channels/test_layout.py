"""What clients bind their masks to, where they do not believe the server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from partwise.channels import Masked
from partwise.channels.identities import SimulatedIdentities
from partwise.channels.layout import UpdatePlanner
from partwise.channels.protocol import model_digest
from partwise.channels.round import Plan
from toy_exchange import PARAMS, play, seat_of, whole

UPDATES = {c: whole(c, c % 3 + 1) for c in range(6)}
SIGNED = Masked(max_weight=4, min_contributors=3, identities=SimulatedIdentities(3))


def fewer_holders(part):
    return part._replace(holders=part.holders - 1)


def by_row(part):
    rows = PARAMS[part.name].shape[0] if part.name != "b" else 0
    return part._replace(kind="rows", holders=np.full(rows, 6)) if rows else fewer_holders(part)


def seats():
    """Of clients that were given a model each."""
    return {c: seat_of(c, params={n: t + c for n, t in PARAMS.items()}) for c in UPDATES}


@pytest.mark.parametrize("lie", [fewer_holders, by_row])
def test_two_models_and_a_server_that_says_nothing_is_held_whole_by_all(monkeypatch, lie):
    """Who holds what, only the server is told; each client knows what it holds itself."""
    honest = UpdatePlanner.plan

    def plan(self, held):
        layout = honest(self, held).layout
        parts = tuple(lie(part) for part in layout.parts)
        sizes = [PARAMS[p.name].numel() + len(p.holders) for p in parts]
        layout = replace(layout, parts=parts, given=(), dense=1 + sum(sizes))
        return Plan(layout, {}, model_digest(layout, {}))

    monkeypatch.setattr(UpdatePlanner, "plan", plan)
    it = play(SIGNED, UPDATES, seats=seats())
    assert it.opened is None
    assert all("binds every parameter that the client holds whole" in it.refusals[c] for c in UPDATES)
    assert len(play(replace(SIGNED, binds_model=False), UPDATES, seats=seats()).opened.clients) == 6


@pytest.mark.parametrize("held", [("rows", np.array([0, 1])), ("coords", np.array([2])), "none"], ids=str)
def test_one_client_that_holds_less_ends_no_signed_sum(held):
    def claim(step, client, said):
        if (step, client) != (0, 1):
            return said
        others = {n: h for n, h in said.held.items() if n != "w"}
        return said._replace(held=others if held == "none" else {**others, "w": held})

    it = play(SIGNED, UPDATES, answer=claim)
    assert it.opened is not None, it.failure
    assert it.opened.clients == (0, 2, 3, 4, 5)
    assert "with identities all hold 'w' in the same units, got 'part', of most others 'whole'" in it.opened.refused[1]
