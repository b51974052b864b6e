from __future__ import annotations

import json

from toy_cli import call

SLOW = 'workload.profiles={name="Constant", seconds_per_step=0.5}'


def test_rehearse_tells_what_a_run_would_take(here):
    """Seven clients, three a round, four rounds; the clock of the run itself is the oracle."""
    overrides = (SLOW, "algorithm.local.steps=6", "algorithm.local.epochs=0")
    told = json.loads(call("rehearse", "tiny.toml", *overrides, "--json")[0])
    assert (told["versions"], told["tasks"], told["replies_committed"]) == (4, 12, 12)
    assert told["seconds"] == 4 * 6 * 0.5
    assert (told["max_staleness"], told["lost"], told["clients"], told["ended"]) == (0, {}, 7, "done")
    call("run", "tiny.toml", *overrides, "--folder", "ran")
    assert "length     4 rounds, 12.0 s on the run's clock" in call("show", "ran")[0]


def test_rehearse_in_words(here):
    lines = call("rehearse", "tiny.toml", SLOW)[0].splitlines()
    assert lines[0].startswith("4 versions in ")
    assert lines[1] == "12 tasks, 12 replies committed; lost: none"
    assert lines[3] == "staleness 0.00 on average, at most 0"
    assert " of 7 clients had replies committed; " in lines[4]


def test_rehearse_ends_where_it_is_told_to(here):
    told = json.loads(call("rehearse", "tiny.toml", SLOW, "--json", "--max-events", "5")[0])
    assert told["ended"] == "enough events"


def test_rehearse_refuses_bounds_that_are_none(here):
    for bound in (("--until", "nan"), ("--until", "-1"), ("--max-events", "-1")):
        _, said = call("rehearse", "tiny.toml", *bound, code=2)
        assert f"must be at least 0, got {bound[1]}" in said
