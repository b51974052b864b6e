from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from partwise.aggregators import Mean, Median
from partwise.algorithms import FedAvg, FedSubAvg, LocalOnly
from partwise.attacks import SignFlip
from partwise.channels.graphs import Graph
from partwise.channels.identities import Identities, SimulatedIdentities
from partwise.channels.unions import Filter
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.annotations import union_members
from partwise.core.attack import Attack, When
from partwise.core.channel import Channel
from partwise.core.detect import Detector
from partwise.core.metrics import Loss, Metric
from partwise.core.model import CrossEntropy, ExampleLoss, Model
from partwise.core.plan import Executor, LocalOptimizer
from partwise.core.randomness import Randomness
from partwise.core.runtime import Runtime
from partwise.core.schedule import Scheduler
from partwise.core.transform import Transform
from partwise.core.workload import Workload, WorkloadSource
from partwise.experiment.dump import dump, save_spec
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.experiment.mechanisms import Mechanism
from partwise.experiment.parts import catalog, fits, is_writable, parameters, reference
from partwise.experiment.read import Reader
from partwise.experiment.spec import load, loads
from partwise.experiment.toml import parse
from partwise.local import SGD, LocalTraining
from partwise.observers import MUDHoG
from partwise.populations import ArrayPopulation, Constant
from partwise.populations.availability import Availability
from partwise.populations.distributions import Distribution
from partwise.populations.partitions import Partitioner
from partwise.populations.profiles import Profiles
from partwise.populations.reliability import Reliability
from partwise.randomizers import Randomizer
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Choice
from partwise.schedulers.staleness import Staleness
from partwise.transforms import Clip, Sign, TopK
from partwise.workloads import LeafSynthetic, StdlibCode

PROTOCOLS: dict[str, Any] = {
    "algorithms": Algorithm,
    "local": LocalOptimizer,
    "transforms": Transform,
    "aggregators": Aggregator,
    "attacks": Attack | When,
    "observers": Detector,
    "channels": Channel,
    "graphs": Graph,
    "identities": Identities,
    "unions": Channel | Filter,
    "schedulers": Scheduler,
    "choices": Choice,
    "staleness": Staleness,
    "randomness": Randomness,
    "randomizers": Randomizer,
    "populations": Profiles | Availability | Reliability | Partitioner,
    "distributions": Distribution,
    "workloads": WorkloadSource,
    "runtimes": Runtime,
    "executors": Executor,
    "mechanisms": Mechanism,
    "metrics": Metric,
    "losses": ExampleLoss,
}
SAMPLES: dict[Any, Any] = {
    float: 0.75,
    int: 3,
    str: "some",
    Path | str: Path("/some/where"),
    Algorithm: FedAvg(),
    Attack: SignFlip(),
    Detector: MUDHoG(),
    tuple[int, ...]: (3, 5),
    tuple[Attack, ...]: (SignFlip(), SignFlip(2.0)),
    tuple[tuple[int, ...], ...]: ((3, 5), (4,)),
    Identities: SimulatedIdentities(),
    Scheduler: Synchronous(cohort=3),
    Transform: TopK(k=5),
    tuple[Transform, ...]: (TopK(k=5), Sign()),
    ExampleLoss: CrossEntropy("z"),
    WorkloadSource: LeafSynthetic(num_clients=3),
}
PARTS = [p for p in catalog() if is_writable(p.cls) and any(fits(p.cls, m) for m in union_members(PROTOCOLS[p.family]))]


def reread(value, holder):
    reader = Reader(lambda path: Path())
    found = reader.fields(parse(dump(value)), holder, ())
    assert not reader.faults
    return found


@pytest.mark.parametrize("part", PARTS, ids=lambda p: f"{p.family}-{p.name}")
def test_every_part_is_written_and_read_back(part):
    given = {n: SAMPLES[p.annotation] for n, p in parameters(part.cls).items() if p.default is MISSING}
    if part.name == "TopK" and part.family == "transforms":
        given = {"ratio": 0.375}
    holder = make_dataclass("Holder", [("part", PROTOCOLS[part.family])], frozen=True)
    value = holder(part.cls(**given))
    found = reread(value, holder)
    assert type(found.part) is part.cls
    assert repr(found) == repr(value)
    written = parse(dump(value))["part"]
    assert written["name"] == part.name
    shown = {n for n in parameters(part.cls) if getattr(value.part, n) is not None}
    assert set(written) == shown | {"name"}  # every default is there


def test_most_parts_are_covered():
    missed = {p.name for p in catalog()} - {p.name for p in PARTS}
    assert missed <= {"LocalTraining", "ClipGradient", "Decay", "Hostile", "LocalBudget", "Reputation"}, missed


EXPERIMENT = Experiment(
    LeafSynthetic(profiles=Constant(seconds_per_step=0.125, uplink=math.inf)),
    LocalOnly(FedSubAvg("count", LocalTraining(SGD(lr=1.5), steps=7)), names=("a.b", 'quote "')),
    Synchronous(cohort=3, rounds=4),
    name='odd "name" \\ é',
    seed=2**40,
    client={"model": (Clip(0.1 + 0.2), TopK(k=2)), "control": (Clip(2.0),)},
    server=[Clip(1e-9)],
    aggregator={"model": Median(), "control": Mean("cohort")},
    evaluation=Evaluation(every=2, target=0.5, scope="mean"),
    on_refused="stop",
    threads=0,
)


def test_an_experiment_is_written_and_read_back():
    text = dump(EXPERIMENT)
    assert repr(loads(text)) == repr(loads(dump(loads(text))))
    assert repr(loads(text)).replace("server=(", "server=[").replace("1e-09),)", "1e-09)]") == repr(EXPERIMENT)


def test_every_default_is_written_out():
    text = dump(Experiment(StdlibCode(), FedAvg()))
    assert parse(text)["algorithm"]["local"]["optimizer"] == {
        "name": "SGD", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "cautious": False,
    }  # fmt: skip
    assert parse(text)["workload"]["profiles"]["uplink"] == math.inf
    assert "target" not in parse(text)["evaluation"]  # no target, and TOML has no word for that


def test_a_whole_number_in_place_of_a_real_one_is_written_as_it_will_be_read():
    assert loads(dump(Experiment(LeafSynthetic(), FedAvg(LocalTraining(SGD(lr=1)))))).algorithm.local.optimizer == SGD(
        lr=1.0
    )


@dataclass(frozen=True)
class Mine:
    """A transform from outside."""

    file: Path = Path("rows.csv")

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return update, state


@dataclass(frozen=True)
class Named(Mine):
    name: str = "x"


@dataclass(frozen=True)
class Stubborn(Mine):
    limit: int | None = 3


def test_a_part_from_outside_is_found_again_wherever_the_specification_lies(tmp_path, monkeypatch):
    experiment = Experiment(LeafSynthetic(), FedAvg(), client=(Mine(),))
    monkeypatch.chdir(tmp_path)
    assert save_spec(experiment, tmp_path) is None
    found = load(tmp_path / "spec.toml").client[0]
    assert type(found).__name__ == "Mine"
    assert found.file == tmp_path / "rows.csv"
    assert f'name = "{reference(Mine)}"' in (tmp_path / "spec.toml").read_text()
    assert reference(Mine).startswith("/")


def columns(n):
    return {"x": torch.zeros(n, 2), "y": torch.zeros(n)}


def test_what_exists_only_as_an_object_cannot_be_written(tmp_path):
    model = Model(nn.Linear(2, 1), CrossEntropy(), inputs=("x",))
    workload = Workload(model, ArrayPopulation(columns(3), torch.tensor([0, 1, 3])), (Loss(CrossEntropy()),))
    reason = save_spec(Experiment(workload, FedAvg()), tmp_path)
    assert reason is not None
    assert reason.startswith(
        "dump(workload.model.module): must be a frozen dataclass, a string, a number, or a collection"
    )
    assert reason.endswith("Describe it by a part that makes it, such as a workload's class.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Named(name="y"), r"dump\(client\.0\): a parameter called 'name' must keep its default 'x', got Named"),
        (Stubborn(limit=None), r"dump\(client\.0\.limit\): TOML has no None, and leaving it out means 3\. Set it\."),
    ],
)
def test_what_a_specification_has_no_word_for(part, said):
    with pytest.raises(TypeError, match=said):
        dump(Experiment(LeafSynthetic(), FedAvg(), client=(part,)))


def test_a_part_that_only_a_function_knows():
    @dataclass(frozen=True)
    class Inner(Mine):
        pass

    with pytest.raises(
        TypeError, match=r"dump\(client\.0\): .*Inner: must be defined at the top of a module of its own"
    ):
        dump(Experiment(LeafSynthetic(), FedAvg(), client=(Inner(),)))


def test_a_part_of_the_script_that_runs(monkeypatch):
    monkeypatch.setattr(Mine, "__module__", "__main__")
    with pytest.raises(
        TypeError, match=r"got one defined in the script that runs\. Move it into a file beside the script\."
    ):
        dump(Experiment(LeafSynthetic(), FedAvg(), client=(Mine(),)))
