from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from toy_cli import call


@pytest.fixture
def run(here):
    profiles = "workload.profiles={name='LogNormal', seconds_per_step=0.25, uplink=900.0}"
    call("run", "tiny.toml", "-q", "--folder", "timed", profiles)
    return here / "timed"


def test_a_file(run):
    out, _ = call("timeline", run)
    assert out == "The timeline is in timeline.svg\n"
    assert ET.parse(run.parent / "timeline.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    out, _ = call("timeline", run, "--out", "few.svg", "--rows", "2")
    assert out.startswith("The timeline is in few.svg. Shown: 2 of the ")


def test_in_letters(run):
    out, _ = call("timeline", run, "--text", "--clients", "0-2,5")
    names = [line.split("  ")[0] for line in out.splitlines()]
    assert names[:5] == ["versions", "client 0", "client 1", "client 2", "client 5"]
    assert "█ training" in out
    assert not (run.parent / "timeline.svg").exists()
    out, _ = call("timeline", run, "--text", "--from", "0", "--to", "5")
    assert "Shown: the first 5.00 s of " in out


def test_what_cannot_be_shown(run):
    _, err = call("timeline", run, "--clients", "3,x", code=2)
    assert err == "partwise: --clients 3,x: must be numbers and stretches of numbers, got 'x'. Write 3,7-9.\n"
    _, err = call("timeline", run, "--clients", "9-7", code=2)  # nobody; the row of everybody before
    assert err == "partwise: --clients 9-7: must be numbers and stretches of numbers, got '9-7'. Write 3,7-9.\n"
    _, err = call("timeline", run, "--clients", "3²", code=2)  # a digit, of which no number can be made
    assert err == "partwise: --clients 3²: must be numbers and stretches of numbers, got '3²'. Write 3,7-9.\n"
    _, err = call("timeline", run, "--rows", "0", code=2)
    assert err.startswith("partwise: timeline(rows=0, begin=0, end=None): needs a row at least and a stretch that ends")
    call("run", "tiny.toml", "-q", "--folder", "still")
    _, err = call("timeline", "still", code=2)
    assert err == "partwise: timeline: the clients of 'tiny' took no time. Give them a pace and links.\n"
    assert "there must be a run's record.sqlite" in call("timeline", "nowhere", code=3)[1]


def test_clients_and_moments_that_there_are_not(run):
    _, err = call("timeline", run, "--clients", "3,9", code=2)
    assert err == "partwise: --clients 3,9: must be clients of the run, got '9'. They are from 0 to 6.\n"
    out, _ = call("timeline", run, "--text", "--clients", "5-999999999999")
    assert [line.split("  ")[0] for line in out.splitlines()][:3] == ["versions", "client 5", "client 6"]
    for option, value in (("--to", "inf"), ("--to", "nan"), ("--from", "nan")):
        _, err = call("timeline", run, "--text", option, value, code=2)
        assert "needs a row at least and a stretch that ends after it begins" in err
