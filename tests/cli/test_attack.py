"""`partwise attack`."""

import json

from partwise.experiment import trials
from toy_cli import call

CLIENTS = ("scheduler.cohort=7", "scheduler.rounds=2")
GRID = (*CLIENTS, "--rule", "Mean", "--rule", '{name="Krum", f=3}', "--attack", '{name="SignFlip", scale=5.0}')


def test_table_of_a_set_up_under_attack(here):
    told = call("attack", "tiny.toml", *GRID, "--share", "0.3", "--folder", "out")[0]
    lines = (here / "out" / "table.md").read_text().splitlines()
    assert lines[0] == "| rule | none | SignFlip, scale=5.0 0.3 |"
    assert lines[3] == "| Krum, f=3 | refused | refused |"
    assert "Krum, f=3 / none: refused: Krum(f=3): needs at least 2f+3 = 9 updates, got 7." in told
    rows = [json.loads(line) for line in (here / "out" / "trials.jsonl").read_text().splitlines()]
    assert [(r["rule"], r["share"], r["versions"]) for r in rows[:2]] == [("Mean", 0.0, 2), ("Mean", 0.3, 2)]
    assert rows[0]["score"] != rows[1]["score"]
    assert (here / "out" / "heat.svg").stat().st_size > 1000


def test_it_goes_on_where_it_was(here):
    call("attack", "tiny.toml", *CLIENTS, "--attack", "SignFlip", "--folder", "out")
    before = (here / "out" / "trials.jsonl").read_text()
    call("attack", "tiny.toml", *CLIENTS, "--attack", "SignFlip", "--seeds", "2", "--folder", "out")
    after = (here / "out" / "trials.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 4


def test_ctrl_c_says_that_what_was_made_is_kept(here, monkeypatch):
    made = trials._played
    done = []

    def second_is_interrupted(trial, experiment):
        if done:
            raise KeyboardInterrupt
        done.append(trial)
        return made(trial, experiment)

    monkeypatch.setattr(trials, "_played", second_is_interrupted)
    _, said = call("attack", "tiny.toml", *CLIENTS, "--attack", "SignFlip", "--folder", "out", code=130)
    assert said == (
        "partwise: interrupted. The trials that were finished are kept in out; the same command goes on from there.\n"
    )
    assert len((here / "out" / "trials.jsonl").read_text().splitlines()) == 1


def test_faults_of_single_values_with_everybody_hostile(here):
    faults = ("--attack", "{name='BitFlip', coordinates=20}", "--attack", "Gambler", "--share", "1")
    call("attack", "tiny.toml", *CLIENTS, *faults, "--rule", "Median", "--folder", "out")
    lines = (here / "out" / "table.md").read_text().splitlines()
    assert lines[0] == "| rule | none | BitFlip, coordinates=20 1 | Gambler 1 |"
    assert lines[2].startswith("| Median | ")


def test_faults_of_what_is_typed_are_told_at_once(here):
    said = call("attack", "tiny.toml", *CLIENTS, "--attack", "SingFlip", "--folder", "out", code=2)[1]
    assert "SingFlip" in said
    assert not (here / "out").exists()


def test_none_is_without_the_attack_that_the_set_up_has(here):
    attack = ("--attack", "SignFlip", "--share", "0.3")
    own = ("hostile.share=0.6", "hostile.attack={name='SignFlip', scale=50.0}")
    call("attack", "tiny.toml", *CLIENTS, *attack, "--folder", "clean")
    call("attack", "tiny.toml", *CLIENTS, *own, *attack, "--folder", "hostile")
    clean, hostile = ((here / folder / "table.md").read_text() for folder in ("clean", "hostile"))
    assert hostile == clean


def test_share_counts_where_the_set_up_names_its_hostile_clients(here):
    """Without a share those that are named are hostile, and the table says how many of the seven they are."""
    attack, named = ("--attack", "SignFlip"), ("hostile.clients=[3]", "hostile.attack=SignFlip")
    call("attack", "tiny.toml", *CLIENTS, *attack, "--share", "0.6", "--folder", "unnamed")
    call("attack", "tiny.toml", *CLIENTS, *named, *attack, "--share", "0.6", "--folder", "named")
    unnamed, other = ((here / folder / "table.md").read_text() for folder in ("unnamed", "named"))
    assert other == unnamed
    call("attack", "tiny.toml", *CLIENTS, *named, *attack, "--folder", "own")
    lines = (here / "own" / "table.md").read_text().splitlines()
    assert lines[0] == "| rule | none | SignFlip 0.142857 |"
    assert lines[2] != unnamed.splitlines()[2]


def test_a_grid_in_which_all_is_refused_says_why(here):
    told = call("attack", "tiny.toml", *CLIENTS, "--rule", '{name="Krum", f=3}', "--attack", "SignFlip")[0]
    assert "Krum, f=3 / none: refused: Krum(f=3): needs at least 2f+3 = 9 updates, got 7." in told
    assert "| Krum, f=3 | refused | refused |" in told
    assert told.endswith("In attacked: trials.jsonl, table.md\n")


def test_what_is_typed_twice_is_played_once(here):
    twice = [word for name in ("SignFlip", '{name="SignFlip"}', "none") for word in ("--attack", name)]
    twice += ["--share", "0.3", "--share", "0.30"]
    call("attack", "tiny.toml", *CLIENTS, "--rule", "Median", "--rule", "Median", *twice, "--folder", "out")
    rows = [json.loads(line) for line in (here / "out" / "trials.jsonl").read_text().splitlines()]
    assert [(r["rule"], r["attack"], r["share"]) for r in rows] == [
        ("Median", "none", 0.0),
        ("Median", "SignFlip", 0.3),
    ]
    assert "±" not in (here / "out" / "table.md").read_text()  # one seed has no spread
