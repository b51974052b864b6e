"""The pages that promise to be run are run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HOW_TO = ROOT / "docs" / "how-to"
IN_TIME = [HOW_TO / f"{name}.md" for name in ("clients-in-time", "rounds-and-waiting", "waiting-less")]
MORE = [HOW_TO / f"{name}.md" for name in ("differential-privacy", "hostile-clients", "submodels", "thin-links")]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "security.md", *IN_TIME, *MORE]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    module = ModuleType(page.stem)
    monkeypatch.setitem(sys.modules, page.stem, module)  # classes look up the module they are made in
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(page), "exec"), module.__dict__)


def test_the_specification_on_the_page_is_one():
    from partwise.core.model import MarginCrossEntropy
    from partwise.experiment.spec import dump, loads
    from partwise.workloads import MNIST, WithLoss

    page = (ROOT / "docs" / "how-to" / "spec-files.md").read_text()
    whole, workload = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    written = dump(loads(whole))
    assert 'name = "ErrorFeedback"' in written
    assert "target = 0.78" in written
    other = loads(workload + '[algorithm]\nname = "FedAvg"\n').workload
    assert other == WithLoss(MNIST(), MarginCrossEntropy(margin=0.03))


def test_the_faults_on_the_page_are_those_of_its_specification():
    from partwise.core.errors import SpecError
    from partwise.experiment.spec import loads

    page = (ROOT / "docs" / "how-to" / "spec-files.md").read_text()
    faulty = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    faulty = faulty.replace('"FedSubAvg"', '"FedSubAvgg"').replace("cohort = 30", 'cohort = "30"')
    with pytest.raises(SpecError) as refused:
        loads(faulty)
    assert f"```\n{refused.value}\n```" in page


def test_the_clients_in_time_of_a_specification():
    from partwise.experiment.spec import loads
    from partwise.populations import Drawn, Markov, Unreliable
    from partwise.populations.distributions import Exponential

    (block,) = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs" / "how-to" / "clients-in-time.md").read_text(), re.DOTALL
    )
    workload = loads('[workload]\nname = "LeafSynthetic"\n[algorithm]\nname = "FedAvg"\n' + block).workload
    assert workload.profiles == Drawn(Exponential(0.05), uplink=1e6)
    assert workload.availability == Markov(600.0, 200.0)
    assert workload.reliability == Unreliable(train=0.1, notice_seconds=30.0)


def test_no_formatter_has_touched_a_snippet():
    """A fence marked as Python is laid out as Python, and a snippet's mark in it is then no mark any more."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert len(pages) > 5
    assert [page.name for page in pages if re.search(r"--8 |< --", page.read_text())] == []


def test_the_hostile_clients_of_a_specification():
    from partwise.aggregators import Mean, TrimmedMean, Watch
    from partwise.attacks import AfterRounds, ALittleIsEnough, Hostile
    from partwise.experiment.spec import loads
    from partwise.experiment.trusted import Trusted
    from partwise.observers import MUDHoG, Reputation

    blocks = re.findall(r"```toml\n(.*?)```", (HOW_TO / "hostile-clients.md").read_text(), re.DOTALL)
    head = '[workload]\nname = "LeafSynthetic"\n[algorithm]\nname = "FedAvg"\n'
    attacked, judged, watched, remembered, noted = (loads(head + block) for block in blocks)
    assert attacked.hostile == Hostile(ALittleIsEnough(), 0.2, when=AfterRounds(10))
    assert attacked.aggregator == TrimmedMean(trim_count=4)
    assert watched.aggregator == Watch(MUDHoG(), Mean(), exclude=True)
    assert remembered.aggregator == Watch(MUDHoG(), reputation=Reputation(0.9, least=0.4))
    assert judged.trusted == Trusted(100)
    assert noted.journal is not None
    assert noted.journal.payout == 1_000_000
