from __future__ import annotations

import io
import json
import re

from rich.console import Console

from partwise.cli.views import Json, Lines, Live, Quiet, view_for
from partwise.cli.watch import Header, Notice, Snapshot
from partwise.experiment.evaluate import Score

HEADER = Header("tiny", "runs/tiny", 20, 7, "auc", "round")
SHOT = Snapshot(
    version=3, total=20, loss=0.625, scores=[Score("auc", "pooled", 0.75)], value=0.75, best=0.8125, uplink=1_500_000,
    downlink=2_500_000, seconds=12.5, clients_per_second=41.6, seconds_left=130.0, lost=2, refused=1,
)  # fmt: skip
NOTICE = Notice("lost", 3, "json.tool", 2, "in train: it broke")


def test_views_are_chosen_by_option_and_place():
    assert type(view_for(as_json=True, quiet=True)) is Json
    assert type(view_for(as_json=False, quiet=True)) is Quiet
    assert type(view_for(as_json=False, quiet=False)) is Lines  # pytest's output is no terminal


def test_live_view():
    out = io.StringIO()
    view = Live(Console(file=out, force_terminal=True, width=100, color_system=None))
    view.prepare("reading the data")
    view.begin(HEADER)
    view.show(SHOT)
    view.notice(NOTICE)
    view.end("target reached: auc 0.75", SHOT._replace(value=0.7575))
    view.close()
    last = out.getvalue().split("╭")[-1]
    for words in (
        "tiny",
        "7 clients",
        "round 3/20",
        "2 min left",
        "AUC",
        "0.7575",
        "0.8125",
        "0.6250",
        "1.50 MB",
        "2.50 MB",
    ):
        assert words in last
    assert re.search(r"2/1\s", last)
    assert "client 3 (json.tool) lost at version 2: in train: it broke" in last
    assert "target reached" in last


def test_live_view_writes_a_name_letter_by_letter():
    out = io.StringIO()
    view = Live(Console(file=out, force_terminal=True, width=100, color_system=None))
    view.begin(HEADER._replace(name="lr[/2] [bold]at :dog:"))
    view.end("interrupted", SHOT)
    assert "lr[/2] [bold]at :dog:  7 clients" in out.getvalue()


def test_live_view_before_anything_is_known():
    out = io.StringIO()
    view = Live(Console(file=out, force_terminal=True, width=100, color_system=None))
    view.prepare("reading the data")
    view.begin(HEADER._replace(total=0))
    view.end("DivergedError: long", None)
    assert "reading the data" in out.getvalue()
    assert "failed" in out.getvalue()
    assert "long" not in out.getvalue()


def test_lines_view_says_the_first_troubles_and_counts_the_rest(capsys):
    view = Lines()
    view.begin(HEADER)
    for _ in range(12):
        view.notice(NOTICE)
    view.show(SHOT)
    view.show(SHOT._replace(scores=[]))  # not evaluated, and too soon
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(str(NOTICE)) == 10
    assert lines[-2] == "more lost or refused clients are only counted; `partwise show` has them all"
    assert lines[-1] == (
        "round 3/20  auc 0.7500 (best 0.8125)  train loss 0.6250  up 1.50 MB  down 2.50 MB  42 clients/s  "
        "2 lost, 1 refused  2 min left"
    )


def test_json_view_of_a_lost_client(capsys):
    Json().notice(NOTICE)
    assert json.loads(capsys.readouterr().out) == {
        "event": "lost", "client": 3, "name": "json.tool", "version": 2, "reason": "in train: it broke",
    }  # fmt: skip
