from __future__ import annotations

import math
import os
import sys
import textwrap
from pathlib import Path

import pytest

from partwise.aggregators import Mean, Median
from partwise.algorithms import FedAvg, FedSubAvg
from partwise.core.errors import SpecError
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.experiment.parts import catalog
from partwise.experiment.spec import dump, load, loads
from partwise.experiment.suggest import one_of
from partwise.local import SGD, AdamW, LocalTraining
from partwise.populations import LogNormal
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Oort
from partwise.transforms import Adam, Clip, ErrorFeedback, Quantize, TopK
from partwise.workloads import LeafSynthetic, StdlibCode


def all_of(family: str) -> str:
    """The names of a family's parts, as a fault lists them."""
    names = sorted(part.name for part in catalog() if part.family == family)
    return one_of([*names[:12], *(["..."] if len(names) > 12 else [])])


LEAST = """
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
"""

FULL = """\
name = "demo"
seed = 3
client = [{ name = "ErrorFeedback", inner = { name = "TopK", ratio = 0.25 } }, { name = "Clip", max_norm = 5 }]

[workload]
name = "StdlibCode"
min_names = 300
profiles = { name = "LogNormal", sigma = 0 }

[algorithm]
name = "FedSubAvg"
estimator = "count"
local.steps = 20
local.optimizer = { name = "SGD", lr = 1.5 }

[scheduler]
name = "Synchronous"
cohort = 30
rounds = 150

[[download]]
name = "Quantize"
bits = 8

[[server]]
name = "Adam"
lr = 0.5

[aggregator]
name = "Median"

[evaluation]
every = 5
target = 1
"""


def faults(text, *overrides):
    with pytest.raises(SpecError) as caught:
        loads(text, overrides)
    count = len(caught.value.faults)
    assert str(caught.value).startswith(f"{count} fault{'s' if count != 1 else ''} in the specification:\n")
    return caught.value.faults


def in_least(more="", **changes):
    text = LEAST + more
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_a_specification_is_the_same_as_python():
    expected = Experiment(
        StdlibCode(min_names=300, profiles=LogNormal(sigma=0.0)),
        FedSubAvg(estimator="count", local=LocalTraining(steps=20, optimizer=SGD(lr=1.5))),
        Synchronous(cohort=30, rounds=150),
        name="demo",
        seed=3,
        client=(ErrorFeedback(TopK(ratio=0.25)), Clip(5.0)),
        server=(Adam(lr=0.5),),
        download=(Quantize(8),),
        aggregator=Median(),
        evaluation=Evaluation(every=5, target=1.0),
    )
    assert repr(loads(FULL)) == repr(expected)


def test_a_part_may_be_its_bare_name():
    text = 'workload = "LeafSynthetic"\nalgorithm = "FedAvg"\naggregator = "Mean"\n[evaluation]\n'
    assert repr(loads(text)) == repr(Experiment(LeafSynthetic(), FedAvg(), aggregator=Mean()))


def test_a_whole_number_stands_for_a_real_one_and_not_the_other_way_round():
    experiment = loads(in_least("[algorithm.local]\noptimizer = { name = 'SGD', lr = 2 }"))
    assert type(experiment.algorithm.local.optimizer.lr) is float
    (fault,) = faults(in_least("[evaluation]\nevery = 2.0"))
    assert fault == "line 7: evaluation.every: must be a whole number, got 2.0. Write 2."


def test_chains_and_aggregators_of_several_streams():
    text = in_least(
        """
        [[client.model]]
        name = "Clip"
        max_norm = 1
        [[client.control]]
        name = "TopK"
        k = 7
        [aggregator.model]
        name = "Median"
        [aggregator.control]
        name = "Mean"
        by = "cohort"
        """
    )
    experiment = loads(text)
    assert experiment.client == {"model": (Clip(1.0),), "control": (TopK(k=7),)}
    assert experiment.aggregator == {"model": Median(), "control": Mean("cohort")}


def test_one_name_in_two_families_means_the_one_that_fits():
    experiment = loads(in_least('[[client]]\nname = "TopK"\nk = 3'))
    assert experiment.client == (TopK(k=3),)


def test_the_name_of_the_only_possible_class_may_be_given():
    assert loads(in_least('[evaluation]\nname = "Evaluation"\nevery = 7')).evaluation == Evaluation(every=7)


# ---- overrides ------------------------------------------------------------------------------------------------------


def test_overrides():
    experiment = loads(
        FULL,
        [
            "algorithm.estimator=heat",
            "scheduler.rounds=20",
            "algorithm.local.optimizer.lr=.5",
            "client.1.max_norm=3",
            "client.2.name=TopK",
            "client.2.k=9",
            "name=a b",
            "evaluation.per_client=false",
            "aggregator=Mean",
            "evaluation = {every = 2}",
        ],
    )
    assert experiment.algorithm == FedSubAvg("heat", LocalTraining(steps=20, optimizer=SGD(lr=0.5)))
    assert experiment.scheduler == Synchronous(cohort=30, rounds=20)
    assert experiment.client[1:] == (Clip(3.0), TopK(k=9))
    assert experiment.name == "a b"
    assert experiment.aggregator == Mean()
    assert experiment.evaluation == Evaluation(every=2)


def test_an_override_reaches_into_what_is_not_written():
    experiment = loads(
        LEAST,
        [
            "algorithm.local.optimizer=AdamW",
            "algorithm.local.optimizer.lr=0.25",
            "client.0=Clip",
            "client.0.max_norm=2",
        ],
    )
    assert experiment.algorithm.local.optimizer == AdamW(lr=0.25)
    assert experiment.client == (Clip(2.0),)


def test_a_table_without_a_name_changes_the_default():
    assert loads(LEAST, ["algorithm.local.optimizer.momentum=0.5"]).algorithm.local == LocalTraining(SGD(momentum=0.5))
    assert repr(loads(in_least("[runtime]\n")).runtime) == repr(loads(LEAST).runtime)


def test_a_fault_names_the_override_it_came_with():
    found = faults(
        FULL,
        "scheduler.cohort=0",
        "algorithm.estimator=cont",
        "evaluation.every=often",
        "runtime.name=Simulat",
        "sheduler.rounds=3",
    )
    assert found == [
        "override scheduler.cohort=0: scheduler.cohort: Synchronous(cohort=0): must be at least 1, got 0. Raise it.",
        (
            "override algorithm.estimator=cont: algorithm.estimator: must be 'heat', 'count', 'capped' or 'fedavg', "
            "got 'cont'. Did you mean 'count'?"
        ),
        "override evaluation.every=often: evaluation.every: must be a whole number, got 'often'. Give a number.",
        "override runtime.name=Simulat: runtime.name: must be a runtime, got 'Simulat'. Did you mean 'Simulate'?",
        "override sheduler.rounds=3: sheduler: there is no key 'sheduler', got a table. Did you mean 'scheduler'?",
    ]


def test_a_fault_of_what_an_override_made_names_the_override():
    text = '[workload]\nname = "StdlibCode"\n[algorithm]\nname = "FedAvg"\n'
    (said,) = faults(text, "client.0.name=Clip")  # has no largest norm
    assert said.startswith("override client.0.name=Clip: client.0.max_norm: Clip needs it, got none.")
    (said,) = faults(text, "workload.0=3")
    assert said.startswith("override workload.0=3: workload.0: StdlibCode has no parameter '0', got 3.")


def test_overrides_that_cannot_be_applied():
    rule, remedy = "must be key=value, such as scheduler.rounds=20", "Write a key, an equals sign and a value."
    assert faults(FULL, "rounds", "=3", "client.5.k=1", "client.x=1", "seed.x=1") == [
        f"override rounds: {rule}, got 'rounds'. {remedy}",
        f"override =3: {rule}, got '=3'. {remedy}",
        "override client.5.k=1: client must be followed by a number from 0 to 2, got 5. It has 2 elements; 2 adds one.",
        "override client.x=1: client must be followed by a number from 0 to 2, got 'x'. It has 2 elements; 2 adds one.",
        "override seed.x=1: seed must be a table to have 'x', got 3. Leave out what follows it.",
    ]
    typed = os.fsdecode("name=café".encode("latin-1"))  # on a terminal that is not set to UTF-8
    rule, remedy = "must be text in UTF-8, as what is run is kept in a file of it", "Write other letters, or"
    assert faults(FULL, typed, "client.²=1") == [
        f"override name: {rule}, got 'name=caf\\udce9'. {remedy} set the terminal to UTF-8.",
        "override client.²=1: client must be followed by a number from 0 to 2, got '²'. It has 2 elements; 2 adds one.",
    ]


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_all_faults_at_once_in_the_order_of_lines():
    text = textwrap.dedent("""\
        nmae = "x"
        seed = "3"
        [workload]
        name = "StdlibCod"
        [algorithm]
        name = "FedSubAvg"
        estimator = "caped"
        cap = -1
        wighting = "uniform"
        [algorithm.local]
        steps = "20"
        epochs = -1
        optimizer = { lr = -1 }
        [scheduler]
        name = "Synchronous"
        cohort = 0
        rounds = 0
        min_replies = 20
        [[client]]
        name = "Krum"
        [[client]]
        name = "Clip"
        [aggregator]
        name = "Clip"
        [evaluation]
        every = true
        """)
    estimators = "'heat', 'count', 'capped' or 'fedavg'"
    transforms = all_of("transforms")
    assert faults(text) == [
        "line 1: nmae: there is no key 'nmae', got 'x'. Did you mean 'name'?",
        "line 2: seed: must be a whole number, got '3'. Write it without quotes.",
        "line 4: workload.name: must be a workload source, got 'StdlibCod'. Did you mean 'StdlibCode'?",
        f"line 7: algorithm.estimator: must be {estimators}, got 'caped'. Did you mean 'capped'?",
        "line 8: algorithm.cap: FedSubAvg(cap=-1.0): must be above 0, got -1.0. 1 is usual.",
        "line 9: algorithm.wighting: FedSubAvg has no parameter 'wighting', got 'uniform'. Did you mean 'weighting'?",
        "line 11: algorithm.local.steps: must be a whole number, got '20'. Write it without quotes.",
        "line 12: algorithm.local.epochs: LocalTraining(epochs=-1): must be at least 0, got -1. See its meaning of 0.",
        "line 13: algorithm.local.optimizer.lr: SGD(lr=-1.0): must be above 0, got -1.0. Use a small positive number.",
        "line 16: scheduler.cohort: Synchronous(cohort=0): must be at least 1, got 0. Raise it.",
        "line 17: scheduler.rounds: Synchronous(rounds=0): must be at least 1, got 0. Raise it.",
        # nothing of min_replies, whose rule speaks of the cohort
        f"line 20: client.0.name: must be a transform, got 'Krum', one of the aggregators. Choose {transforms}.",
        "line 21: client.1.max_norm: Clip needs it, got none. Add max_norm, a number: largest Euclidean norm, > 0.",
        (
            "line 24: aggregator.name: must be an aggregator, got 'Clip', one of the transforms. "
            f"Choose {all_of('aggregators')}."
        ),
        "line 26: evaluation.every: must be a whole number, got true. Give one.",
    ]


def test_nothing_at_all():
    workload, algorithm = faults("")
    assert workload.startswith(
        "line 1: workload: an experiment needs it, got none. Add a table [workload] with a name: 'C"
    )
    assert algorithm.startswith(
        "line 1: algorithm: an experiment needs it, got none. Add a table [algorithm] with a name: 'A"
    )


LOOK = "Look at the line before as well; strings want quotes."
CASES = {
    "[evaluation]\nevery = 1\nevery = 2": f"8: must be TOML, got a syntax error: Cannot overwrite a value. {LOOK}",
    "[evaluation]\nevery = five": f"7: must be TOML, got a syntax error: Invalid value. {LOOK}",
    "[evaluation]\nscope = 3": '7: evaluation.scope: must be a string, got 3. Put it in quotes: "3".',
    "[evaluation]\nper_client = 1": "7: evaluation.per_client: must be true or false, got 1. Give one.",
    "[evaluation]\ntarget = 'high'": "7: evaluation.target: must be a number, got 'high'. Give a number.",
    f"[evaluation]\ntarget = {10**400}": f"7: evaluation.target: must be a number below 1.8e+308, got 1{'0' * 56}.... "
    "Write fewer digits.",
    "[evaluation]\ntarget = 07:32:00": "7: evaluation.target: must be a number, got datetime.time(7, 32). Give one.",
    "[evaluation]\nname = 'Eval'": "7: evaluation.name: can only be 'Evaluation' here, got 'Eval'. Leave it out.",
    "client = 1": "6: algorithm.client: FedAvg has no parameter 'client', got 1. It has 'local' or 'weights'.",
    "[aggregator]\nby = 'x'": (f"6: aggregator: must have a name, got none. Choose {all_of('aggregators')}."),
    "[runtime]\nname = 3": "6: runtime: must have a name, got 3. Choose 'Processes', 'Ray' or 'Simulate'.",
    "[client]\nname = 'Clip'\nmax_norm = 1.0": (
        "6: client: must be an array of parts, got a table named 'Clip'. Write [[client]] instead of [client]."
    ),
    "[[client]]\nname = 'Clip'\nmax_norm = 1\n[[client.control]]\nname = 'Clip'": (
        "9: client.0.control: Clip has no parameter 'control', got an array of 1. "
        "To give stream 'control' a chain of its own, write [[client.model]] instead of [[client]]."
    ),
    "[channel]\nname = 'Plain'\nx = {}": (
        "8: channel.x: Plain has no parameter 'x', got an empty table. It has none; leave it out."
    ),
    "[algorithm.local]\nzzz = 1": (
        "7: algorithm.local.zzz: LocalTraining has no parameter 'zzz', got 1. "
        "It has 'optimizer', 'batch_size', 'epochs', 'steps', 'lr_decay', 'max_norm' or 'clip_decay'."
    ),
}


@pytest.mark.parametrize("more", CASES)
def test_fault(more):
    assert faults(in_least(more)) == [f"line {CASES[more]}"]


def test_wrong_kind_of_array():
    text = "[workload]\nname='LeafSynthetic'\n[algorithm]\nname='FjORD'\nwidths = [0.5, 'x']\n"
    assert faults(text) == ["line 5: algorithm.widths.1: must be a number, got 'x'. Give a number."]
    assert loads(text.replace("'x'", "1")).algorithm.widths == (0.5, 1.0)
    found = faults(text.replace("[0.5, 'x']", "0.5"))
    assert found == ["line 5: algorithm.widths: must be an array of numbers, got 0.5. Put it in brackets."]


def test_a_part_inside_a_part():
    text = "workload = 'LeafSynthetic'\n[algorithm]\nname = 'LocalOnly'\n"
    (fault,) = faults(text)
    assert fault.startswith(
        "line 2: algorithm.inner: LocalOnly needs it, got none. Add a table [algorithm.inner] with a name: 'A"
    )
    assert loads(text + "inner = 'FedAvg'").algorithm.inner == FedAvg()
    (fault,) = faults(text + "inner = { name = 'FedProx', mu = -0.5 }")
    assert (
        fault
        == "line 4: algorithm.inner.mu: FedProx(mu=-0.5): must be at least 0, got -0.5. 0 is FedAvg, 0.01 is usual."
    )


@pytest.mark.parametrize("opened", ["[", "{a="])
def test_nested_too_deeply(opened):
    value = opened * 5000 + "1" + {"[": "]", "{a=": "}"}[opened] * 5000
    said = "must be TOML, got a syntax error: Arrays or inline tables are nested too deeply."
    assert said in faults(in_least(f"seed = {value}"))[0]
    with pytest.raises(SpecError, match="seed"):
        loads(in_least(""), [f"seed={value}"])


# ---- parts from outside ---------------------------------------------------------------------------------------------

HALF = textwrap.dedent("""
    from __future__ import annotations
    from dataclasses import dataclass, replace
    from pathlib import Path
    from typing import Any

    @dataclass(frozen=True)
    class Half:
        factor: float = 0.5
        table: Path | None = None

        def init(self, params: Any) -> Any:
            return ()

        def apply(self, update: Any, state: Any, rng: Any) -> Any:
            return update, state

    @dataclass(frozen=True)
    class NotOne:
        def apply(self, update: Any) -> Any:
            return update

    @dataclass(frozen=True)
    class Short(NotOne):
        def init(self, params: Any) -> Any:
            return ()
""")


@pytest.fixture
def folder(tmp_path):
    before = set(sys.modules)
    (tmp_path / "half.py").write_text(HALF)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_strangers_part_and_paths_are_relative_to_the_specification(folder, monkeypatch):
    spec = folder / "spec.toml"
    spec.write_text(in_least('[[client]]\nname = "half.py:Half"\nfactor = 1\ntable = "rows.csv"'))
    monkeypatch.chdir(Path(__file__).parent)
    (part,) = load(spec).client
    assert type(part).__name__ == "Half"
    assert (part.factor, part.table) == (1.0, folder / "rows.csv")
    (part,) = load(spec, ["client.0.table=here.csv"]).client
    assert part.table == Path(__file__).parent / "here.csv"


def test_faults_of_a_strangers_part(folder):
    def fault(name, more=""):
        (found,) = faults(in_least(f'[[client]]\nname = "{folder}/{name}"\n{more}'))
        return found

    assert (
        fault("half.py:Half", "fcator = 1")
        == "line 8: client.0.fcator: Half has no parameter 'fcator', got 1. Did you mean 'factor'?"
    )
    assert fault("half.py:NotOne") == (
        f"line 7: client.0.name: must be a transform, got '{folder}/half.py:NotOne', which lacks init. "
        "See the protocol Transform."
    )
    assert fault("half.py:Short") == (
        f"line 7: client.0.name: must be a transform, got '{folder}/half.py:Short', whose apply cannot be called as "
        "apply(update, state, rng). See the protocol Transform."
    )
    assert fault("half.py:Quarter") == (
        f"line 7: client.0.name: {folder}/half.py must define 'Quarter', got Half, NotOne, Short. Name one it defines."
    )
    assert fault("none.py:Half").startswith(f"line 7: client.0.name: the file must exist, got {folder}/none.py. ")


def test_whom_a_round_asks_is_a_part_in_a_part():
    changes = ["scheduler.choice=Oort", "scheduler.choice.round_penalty=0.0", "scheduler.extra=0.3"]
    experiment = loads(FULL, [*changes, "scheduler.deadline_seconds=inf"])
    expected = Synchronous(30, 150, choice=Oort(round_penalty=0.0), extra=0.3, deadline_seconds=math.inf)
    assert experiment.scheduler == expected
    assert loads(dump(experiment)).scheduler == expected


def test_hostile_clients_of_a_specification():
    from partwise.attacks import AfterRounds, ALittleIsEnough, Hostile
    from partwise.experiment.trusted import Trusted

    experiment = loads(
        """
        [workload]
        name = "LeafSynthetic"
        [algorithm]
        name = "FedAvg"
        [aggregator]
        name = "Krum"
        f = 2
        [hostile]
        share = 0.3
        [hostile.attack]
        name = "ALittleIsEnough"
        z = 1.5
        [hostile.when]
        name = "AfterRounds"
        rounds = 10
        [trusted]
        examples = 50
        """,
        ["hostile.attack.is_omniscient=true"],
    )
    assert experiment.hostile == Hostile(ALittleIsEnough(1.5, is_omniscient=True), 0.3, when=AfterRounds(10))
    assert experiment.trusted == Trusted(50)
    assert loads(dump(experiment)).hostile == experiment.hostile
