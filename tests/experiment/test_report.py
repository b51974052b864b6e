from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from partwise.core.errors import CheckpointError, DataError
from partwise.experiment import report as reports
from partwise.experiment.report import write_report
from toy_runs import NASTY, POPULATION, curve, full_run, write_run

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Parses strictly: every element that opens must close, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "xlink:href", "srcset", "action") if found.get(name)]
        if tag == "tr":
            self.cells.append([])
        if tag in {"td", "th"}:
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"{tag} closes out of order"

    def handle_data(self, data):
        if {"td", "th"} & set(self.stack):
            self.cells[-1][-1] += data
        if "style" not in self.stack and data.strip():
            self.words.append(" ".join(data.split()))

    def check(self) -> None:
        """Well-formed, self-contained, and without dangling references."""
        assert "http" not in self.source
        assert not {"script", "iframe", "object", "embed", "base"} & set(self.tags)
        assert all(link.startswith(("#", "data:")) for link in self.links), self.links
        assert "@import" not in self.source
        assert len(self.ids) == len(set(self.ids))
        used = {link[1:] for link in self.links if link.startswith("#")} | set(
            re.findall(r"url\(#([^)]+)\)", self.source)
        )
        assert used <= set(self.ids)
        assert set(re.findall(r"url\(([^#)][^)]*)\)", self.source)) == set()

    def row(self, first: str) -> list[str]:
        return next(cells for cells in self.cells if cells and cells[0] == first)

    def fact(self, key: str) -> str:
        return self.words[self.words.index(key) + 1]


def report(out: Path, *folders: Path, **more) -> Page:
    assert write_report(folders, out, **more) == out
    page = Page(out)
    page.check()
    return page


@pytest.fixture
def drawn() -> bool:
    """Asked for by tests that look into the figures."""
    return True


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    """Figures are made, and written only where a test looks into them: writing takes most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(reports, "inline_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')


# The page


def test_one_run(tmp_path, drawn):
    page = report(tmp_path / "x.html", full_run(tmp_path / "alone", 0.02, 100))
    assert page.tags.count("svg") == 14
    head = page.row("run")
    values = dict(zip(head, page.row("alone"), strict=True))
    assert values == {
        "run": "alone",
        "final": "0.740",
        "best": "0.740",
        "of the model": "4.3 %",  # 1200 bytes over 7 tasks, one of them refused, of 4000
        "bytes": "3.60 kB",
        "mean": "0.730",
        "p10": "0.640",
        "p90": "0.840",
        "worst": "0.540",
    }
    assert page.fact("Training examples") == "200; median 45, from 10 to 100 per client"
    assert page.fact("Model") == "1,000 parameters (4.00 kB)"
    assert page.fact("Table table.weight") == "50 rows × 16"
    assert page.fact("Rows that no client touches") == "10 (20 %)"
    assert page.fact("Rows touched per client") == "median 4, from 2 to 40 (8.0 % of all rows in the median)"
    assert page.fact("A client holds") == "14 % of the parameters in the median"
    assert page.fact("Answers") == "6 from 3 clients"
    assert page.fact("commit") == "abc123 with local changes"
    assert page.fact("memory") == "8.00 GB"
    assert page.fact("workload") == "Toy(rows=50)"


def test_clients_and_troubles(tmp_path):
    page = report(tmp_path / "x.html", full_run(tmp_path / "alone", 0.02, 100))
    worst_first = [cells for cells in page.cells if len(cells) == 4 and cells[0] in {"ab", "cd", "ef", NASTY}]
    assert worst_first == [["ab", "0.400", "2", "3"], [NASTY, "0.700", "7", "1"], ["cd", "0.900", "3", "2"]]
    assert any("not defined for 1 of 4 clients" in text for text in page.words)
    assert "2 lost, 1 refused." in page.words
    assert page.row("lost in train") == ["lost in train", "2", "RuntimeError: no memory", "ab, ef", "3 to 9"]
    assert page.row("refused") == ["refused", "1", f"must be finite, got {NASTY}", NASTY, "4"]


def test_time(tmp_path, drawn):
    """Client `ab` was asked four times, three of them for a second and one in vain, in a run of six minutes."""
    page = report(tmp_path / "x.html", full_run(tmp_path / "alone", 0.02, 100))
    assert page.row("mean of 4 clients") == ["mean of 4 clients", "2.2", "0.1 %", "0.2 %", "0.1 %", "100 %"]
    assert page.row("ab") == ["ab", "4", "0.2 %", "0.4 %", "0.2 %", "100 %"]
    assert "Staleness of what was committed" in page.words
    assert "How often clients were committed" in page.words
    assert any(words.startswith("Clients from least to most often; Gini 0.42") for words in page.words)  # 0, 1, 2, 3


def test_a_run_alone_has_no_time_to_a_target(tmp_path):
    page = report(tmp_path / "x.html", full_run(tmp_path / "alone", 0.02, 100))
    assert not [word for word in page.words if word.startswith("To reach")]


def test_nothing_is_said_of_time_where_there_is_none(tmp_path):
    run = write_run(tmp_path / "run", curve(0.01, 50), commits=[(0.0, [1, 2], [0, 0])], meta={"num_clients": 2})
    page = report(tmp_path / "x.html", run)
    assert "Time" not in page.words
    assert "Staleness of what was committed" not in page.words
    assert "How often clients were committed" not in page.words  # all alike


def test_the_table_says_which_time_it_has(tmp_path):
    for runtime, clock in (("Simulate()", "is virtual"), ("Processes(workers=2)", "is that on the runs’ clocks")):
        run = write_run(tmp_path / runtime[:4], curve(0.03, 60), meta={"runtime": runtime})
        page = report(tmp_path / "x.html", run)
        assert any(f"from and to all clients; time {clock}. An" in words for words in page.words)


def test_many_clients_show_both_ends(tmp_path):
    scores = [(c, c / 100, 10 + c) for c in range(57)]
    run = write_run(tmp_path / "run", curve(0.01, 50), clients=scores)
    page = report(tmp_path / "x.html", run)
    names = [cells[0] for cells in page.cells if re.fullmatch(r"client \d+", cells[0])]
    assert names == [f"client {c}" for c in [*range(10), *range(56, 46, -1)]]


def test_two_runs(tmp_path):
    slow, quick = full_run(tmp_path / "slow", 0.01, 4000), full_run(tmp_path / "quick", 0.03, 100)
    page = report(tmp_path / "x.html", slow, quick)
    # slow ends at 0.62 in round 12; quick passes it at round 4 with 0.62: 1200 bytes against 144,000
    assert (
        "quick reached slow’s final AUC of 0.620 in 4 of 12 rounds, where slow took 12, and sent 1/120 of the bytes "
        "until then. It ended at 0.860, slow at 0.620." in page.words
    )
    head = page.row("run")
    slow_row, quick_row = (dict(zip(head, page.row(name), strict=True)) for name in ("slow", "quick"))
    assert {k: slow_row[k] for k in ("rounds", "uplink", "downlink", "time")} == {
        "rounds": "12",
        "uplink": "48.0 kB",
        "downlink": "96.0 kB",
        "time": "6.00 min",
    }
    assert {k: quick_row[k] for k in ("rounds", "uplink", "downlink", "time")} == {
        "rounds": "4",
        "uplink": "400 B",
        "downlink": "800 B",
        "time": "2.00 min",
    }
    assert "To reach 0.620" in [cell for cells in page.cells for cell in cells]


def test_three_runs_of_which_one_does_not_arrive(tmp_path):
    runs = [full_run(tmp_path / name, rate, 100) for name, rate in (("one", 0.02), ("two", 0.01), ("three", 0.04))]
    page = report(tmp_path / "x.html", *runs, title="Mine & yours")
    assert "Mine & yours" in page.words
    text = "two did not reach one’s final AUC of 0.740 within its 12 rounds: it ended at 0.620 and its best was 0.620."
    assert text in page.words
    assert page.row("two").count("not reached") == 4
    assert sum(text.startswith("three reached") for text in page.words) == 1
    assert page.source.count('class="tile"') == 3


def test_a_given_target(tmp_path):
    page = report(tmp_path / "x.html", full_run(tmp_path / "run", 0.02, 100), target=0.6)
    head, values = [cells for cells in page.cells if cells[0] == "run"][:2]
    assert dict(zip(head, values, strict=True))["rounds"] == "6"


def test_notes_say_what_to_mind(tmp_path):
    page = report(
        tmp_path / "x.html",
        full_run(tmp_path / "a", 0.02, 100, meta={"status": "running"}),
        full_run(
            tmp_path / "b", 0.02, 100, meta={"status": "DivergedError: too far.", "seed": 4, "workload": "Other()"}
        ),
    )
    assert "a has not finished: it was running, or had been killed, when this was written." in page.words
    assert "b did not finish: DivergedError: too far. Its numbers are those up to version 12." in page.words
    assert any("different workloads" in text for text in page.words)
    assert any("different seeds" in text for text in page.words)


def test_how_to_run_it_again(tmp_path):
    run = full_run(tmp_path / "a run", 0.02, 100)
    out = tmp_path / "x.html"
    made_in_python = report(out, run).source.replace("&#39;", "'")
    assert f"partwise report '{run}' --out {out}" in made_in_python
    assert "only the code that made them makes them again" in made_in_python
    assert "The whole specification" not in made_in_python  # no page refers to what it does not have
    (run / "spec.toml").write_text("seed = 3\n")
    commands = report(out, run).source.replace("&#39;", "'")
    assert f"partwise run '{run}/spec.toml'\npartwise report" in commands
    assert "were made in Python" not in commands
    assert "The whole specification" in commands
    assert "seed = 3" in commands


def test_reports_are_alike_to_the_byte(tmp_path, drawn):
    run = write_run(tmp_path / "run", curve(0.02, 100))
    first = write_report([run], tmp_path / "x.html").read_bytes()
    assert write_report([run], tmp_path / "x.html").read_bytes() == first


# What a record may lack


def test_a_run_without_client_metrics(tmp_path):
    page = report(tmp_path / "x.html", write_run(tmp_path / "run", curve(0.01, 70), scope="central"))
    assert page.tags.count("svg") == 3
    assert {"p10", "mean"}.isdisjoint(page.row("run"))
    assert not any("Clients at the end" in text for text in page.words)
    assert "Data and model" not in page.words


def test_an_interrupted_run_with_one_version(tmp_path, drawn):
    run = write_run(tmp_path / "run", [(0, 0.0, 0, 0, 0.5)], meta={"status": "interrupted"})
    page = report(tmp_path / "x.html", run)
    assert page.tags.count("svg") == 2
    assert "run did not finish: interrupted. Its numbers are those up to version 0." in page.words


def test_one_version_beside_many(tmp_path):
    one, many = write_run(tmp_path / "one", [(0, 0.0, 0, 0, 0.5)]), full_run(tmp_path / "many", 0.02, 100)
    assert report(tmp_path / "x.html", one, many).row("many")[1] == "0.740"
    assert report(tmp_path / "y.html", many, one).row("one").count("not reached") == 4


def test_scores_that_are_not_numbers(tmp_path, drawn):
    some = write_run(tmp_path / "some", [(1, 1.0, 5, 5, 0.6), (2, 2.0, 9, 9, math.nan), (3, 3.0, 12, 12, math.inf)])
    none = write_run(tmp_path / "none", [(1, 1.0, 5, 5, math.nan)], clients=[(0, math.nan, 4)])
    page = report(tmp_path / "x.html", some)
    assert page.row("some")[1:3] == ["∞", "∞"]
    page = report(tmp_path / "y.html", none, some)
    assert page.row("none")[1:3] == ["–", "–"]
    assert "some ended at AUC ∞; none has no AUC to compare it with." in page.words
    assert "none ended with a score that is not a number." in page.words
    assert report(tmp_path / "z.html", none).tags.count("svg") == 0


def test_no_line_is_drawn_at_an_infinite_score(tmp_path, drawn):
    """Matplotlib warns of one, and warnings are errors here."""
    some = write_run(tmp_path / "some", [(1, 1.0, 5, 5, 0.6), (2, 2.0, 9, 9, 0.5), (3, 3.0, 12, 12, math.inf)])
    other = write_run(tmp_path / "other", [(1, 1.0, 5, 5, 0.4), (2, 2.0, 9, 9, 0.7)])
    page = report(tmp_path / "x.html", some, other)
    said = "other reached some’s last finite AUC of 0.500 in 2 of 2 rounds, where some took 1"
    assert any(word.startswith(said) for word in page.words)


@pytest.mark.parametrize(
    "content",
    ['{"clients": 4, "na', "[" * 100_000, '{"clients": "x"}', '{"numbers": "abc"}', '{"numbers": [1, "b"]}'],
    ids=["cut off", "nested", "no count", "no numbers", "no number"],
)
def test_a_population_file_that_is_damaged(content, tmp_path):
    run = full_run(tmp_path / "run", 0.02, 100)
    (run / "population.json").write_text(content)
    page = report(tmp_path / "x.html", run)
    assert "Data and model" not in page.words
    assert ["client 0", "0.400", "2", "3"] in page.cells


def test_names_with_characters_of_html(tmp_path, drawn):
    more = {"name": NASTY, "algorithm": "A('</pre><script>')", "environment": {"cpu": "<i>"}}
    nasty = full_run(tmp_path / "a", 0.02, 100, meta=more)
    (nasty / "spec.toml").write_text("</pre>&")
    page = report(tmp_path / "x.html", nasty, full_run(tmp_path / "b", 0.03, 90))
    assert page.row(NASTY)[1] == "0.740"
    assert page.fact("algorithm") == "A('</pre><script>')"
    assert page.tags.count("b") == page.tags.count("i") == 0
    legend = [text for text in page.words if text == NASTY]
    assert len(legend) >= 4  # tile, table, section, and in the figures as text


def test_a_sampled_population_says_so(tmp_path):
    run = write_run(tmp_path / "run", curve(0.01, 50), population={**POPULATION, "sampled": 2})
    assert (
        "Heat and rows were counted over 2 of the 4 clients, evenly chosen." in report(tmp_path / "x.html", run).words
    )


# Refusals


def test_refusals(tmp_path):
    run = full_run(tmp_path / "run", 0.02, 100)
    with pytest.raises(CheckpointError, match=r"there must be a run's record"):
        write_report([tmp_path], tmp_path / "x.html")
    with pytest.raises(DataError, match=r"all must have recorded top5"):
        write_report([run], tmp_path / "x.html", metric="top5")
    with pytest.raises(CheckpointError, match=r"write_report\(.*needs a file that it may write, got: .*Name another"):
        write_report([run], run)
