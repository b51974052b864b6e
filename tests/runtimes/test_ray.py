"""The same programs in Ray's actors; and an actor that is killed in the middle of a round."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from partwise.core.algorithm import Algorithm
from partwise.core.codec import decode
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.program import SERVER
from partwise.experiment.spec import load
from partwise.local import LocalTraining
from partwise.runtimes import Ray, Simulate
from partwise.runtimes.executors import Pool
from partwise.schedulers import FedBuff, Synchronous
from toy_cli import TINY
from toy_federation import LOCAL, play, star
from toy_star import Log, Saving

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> Any:
    """Two cores on this machine. Ray warns of much; what is tested here is ours."""
    with pytest.MonkeyPatch.context() as patch:  # tests of other files find the environment as it was
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]))
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("case", ["fedavg", "fedsubavg capped", "scaffold", "error feedback"])
def test_ends_bit_equal_to_the_simulator(case):
    here, _ = play(Simulate(), star(case))
    there, log = play(Ray(workers=2), star(case))
    assert here == there
    assert len(log.of("commit")) == 5
    assert not log.of("lost")


def test_more_actors_than_this_machine_has_room_for_are_refused():
    """In a process of its own, which no cluster is connected to; it would wait for ever."""
    code = (
        "import partwise.runtimes.ray as r; from toy_federation import play, star; "
        "play(r.Ray(workers=3, cpus=1000.0), star('fedavg'))"
    )
    pytest.importorskip("ray")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    command = [sys.executable, "-c", code]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300.0, check=False
    )
    assert ran.returncode == 1
    assert "CompositionError: Ray(workers=3, cpus=1000): its actors must have room on this machine" in ran.stderr
    assert "got actors that take 3000. Ask for fewer workers" in ran.stderr


@pytest.mark.usefixtures("cluster")
def test_replies_are_committed_as_they_come():
    of = star("fedavg", scheduler=FedBuff(buffer=2, concurrency=5, versions=8))
    log = Log()
    states, reason = Ray(workers=2).run(of.programs(), of.population, log)
    assert reason == "done"
    assert states[SERVER].version == 8
    assert [c["replies"] for c in log.of("commit")] == [2] * 8
    assert not log.of("lost")


@pytest.mark.usefixtures("cluster")
def test_goes_on_from_a_saved_moment():
    expected, _ = play(Simulate(), star("scaffold", rounds=3))
    log = Saving()
    assert play(Ray(workers=2), star("scaffold", rounds=3), log)[0] == expected
    for moment in (0, len(log.saved) // 2):
        entries = {name: decode(data) for name, data in log.saved[moment].items()}
        assert play(Ray(workers=1), star("scaffold", rounds=3), entries=entries)[0] == expected


@dataclass(frozen=True)
class Odd(Algorithm):
    """Federated averaging in which client 2 does something else at version 1, if a file is not there yet."""

    what: str
    flag: str
    local: LocalTraining = LOCAL

    def plan(self, held, index, task, own, site):
        if (site.client, task.version) == (2, 1) and not Path(self.flag).exists():
            Path(self.flag).touch()
            if self.what == "die":
                os._exit(9)
            raise AssertionError("the moon is not full")
        return self.local.plan(site, task)


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from beside import halved

@dataclass(frozen=True)
class Halve:
    "Halves what a client sends."

    def init(self, params: Any) -> Any:
        return ()

    def apply(self, update: Any, state: Any, rng: Any) -> Any:
        return halved(update), state
"""
BESIDE = """
from partwise.core.update import map_values

def halved(update):
    return map_values(update, lambda v: v / 2)
"""


@pytest.mark.usefixtures("cluster")
def test_parts_of_a_file_are_known_to_the_actors(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "own.toml").write_text(f'{TINY}[[client]]\nname = "own.py:Halve"\n')
    made = load(tmp_path / "own.toml", ["scheduler.rounds=2"])
    here = made.run(tmp_path / "here")
    there = replace(made, runtime=Ray(workers=2)).run(tmp_path / "there")
    assert all(torch.equal(here.params[name], there.params[name]) for name in here.params)


class Unreadable:
    """An executor that cannot be made anew elsewhere."""

    def __reduce__(self) -> Any:
        return float, ("what is no number",)


@pytest.mark.usefixtures("cluster")
def test_actor_that_cannot_begin_ends_the_run_and_says_why():
    of = star("fedavg")
    with pytest.raises(
        ProtocolError, match=r"actor \d must be able to begin, got: ValueError: could not convert string"
    ):
        Ray(workers=2, executor=Unreadable()).run(of.programs(), of.population, Log())


@pytest.mark.usefixtures("cluster")
def test_lost_actor_is_lost_clients_and_its_work_goes_elsewhere(tmp_path):
    of = star("fedavg", algorithm=Odd("die", str(tmp_path / "died")), scheduler=Synchronous(cohort=7, rounds=4))
    log = Log()
    states, reason = Ray(workers=2).run(of.programs(), of.population, log)
    assert reason == "done"
    lost = log.of("lost")
    assert {2} <= {fields["client"] for fields in lost} <= {0, 2, 4, 6}
    assert {(f["stage"], f["reason"], f["version"]) for f in lost} == {("actor", "actor 0 was lost", 1)}
    assert [c["replies"] for c in log.of("commit")] == [7, 7 - len(lost), 7, 7]
    assert states[SERVER].version == 4


@pytest.mark.usefixtures("cluster")
def test_actor_that_is_lost_too_often_ends_the_run(tmp_path):
    of = star("fedavg", algorithm=Odd("die", str(tmp_path / "died")), scheduler=Synchronous(cohort=7, rounds=4))
    with pytest.raises(ProtocolError, match=r"^Ray\(workers=2\): actor 0 was lost; it may be started again 0 times"):
        Ray(workers=2, max_restarts=0).run(of.programs(), of.population, Log())


@pytest.mark.usefixtures("cluster")
def test_error_that_no_program_catches_ends_the_run_and_is_told(tmp_path):
    of = star("fedavg", algorithm=Odd("fail", str(tmp_path / "failed")), scheduler=Synchronous(cohort=7, rounds=4))
    with pytest.raises(ProtocolError, match=r"actor 0 must get through .* got: AssertionError: the moon is not full\."):
        Ray(workers=2).run(of.programs(), of.population, Log())


@pytest.mark.parametrize(
    ("name", "value"), [("workers", 0), ("memory_bytes", -1), ("max_restarts", -1), ("gpus", -1), ("cpus", math.nan)]
)
def test_arguments_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"^Ray\({name}={value}\): must be at least \d, got {value}"):
        Ray(**{name: value})
    with pytest.raises(CompositionError, match="open no executor"):
        Ray(executor=Pool())


def test_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    of = star("fedavg")
    with pytest.raises(ImportError, match=r"pip install 'partwise\[ray\]'"):
        Ray().run(of.programs(), of.population, Log())
