"""Scores of a model that is thinned to the first units of its layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg, FedHyper, HeteroFL, LocalOnly
from partwise.core.errors import CompositionError, DataError
from partwise.core.metrics import Accuracy, Loss
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.workload import Workload
from partwise.experiment.evaluate import Evaluation, evaluate
from partwise.experiment.experiment import Experiment
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.schedulers import Synchronous

LOCAL = LocalTraining(SGD(0.3), batch_size=4, steps=6)
WIDTHS = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")}


def net(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 4))


def population(central: int = 9, tests: int = 5) -> ArrayPopulation:
    rng = torch.Generator().manual_seed(5)

    def examples(n: int) -> dict[str, torch.Tensor]:
        x = torch.randn(n, 3, generator=rng)
        return {"x": x, "y": (x @ torch.randn(3, 4, generator=torch.Generator().manual_seed(1))).argmax(1)}

    return ArrayPopulation(
        examples(48),
        torch.arange(7) * 8,
        test_columns=examples(6 * tests),
        test_offsets=torch.arange(7) * tests,
        central=Examples(examples(central)) if central else None,
    )


def workload(**changes: int) -> Workload:
    model = Model(lambda: net(10), CrossEntropy(), widths=WIDTHS)
    return Workload(model, population(**changes), (Accuracy(), Loss(CrossEntropy())))


def by_hand(
    work: Workload, params: dict[str, torch.Tensor], hidden: int, scope: str, times: float = 1.0
) -> tuple[float, float]:
    """Accuracy and loss of a module that is built with the first hidden units. times: what they give."""
    small = net(hidden)
    small.load_state_dict(
        {
            "0.weight": params["0.weight"][:hidden] * times,
            "0.bias": params["0.bias"][:hidden] * times,
            "2.weight": params["2.weight"][:, :hidden],
            "2.bias": params["2.bias"],
        }
    )
    people = work.population
    sets = [people.central_test()] if scope == "central" else [people.test_data(c) for c in people.clients]
    x, y = (torch.cat([data.columns()[name] for data in sets]) for name in "xy")
    with torch.no_grad():
        logits = small(x)
    return float((logits.argmax(1) == y).double().mean()), float(nn.functional.cross_entropy(logits, y))


def test_scores_are_those_of_a_module_with_the_first_units():
    work = workload()
    params = work.model.init(3)
    scores, rows = evaluate(work, FedAvg(), params, {}, per_client=True, widths=(0.25, 1.0, 0.5))
    found = {(s.name, s.scope): s.value for s in scores}
    plain, plain_rows = evaluate(work, FedAvg(), params, {}, per_client=True)
    assert scores[: len(plain)] == plain
    assert rows == plain_rows
    thin = {key for key in found if "@" in key[1]}
    assert {scope for _, scope in thin} == {"central@0.25", "central@0.5", "pooled@0.25", "pooled@0.5"}
    for ratio, hidden in ((0.25, 3), (0.5, 5)):  # ceil(0.25 * 10) and ceil(0.5 * 10) of ten units
        for scope in ("central", "pooled"):
            accuracy, loss = by_hand(work, params, hidden, scope)
            assert found["accuracy", f"{scope}@{ratio}"] == accuracy
            assert found["loss", f"{scope}@{ratio}"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("algorithm", [HeteroFL(LOCAL), FedHyper(HeteroFL(LOCAL)), HeteroFL(LOCAL, scaler=False)])
def test_a_thin_model_is_used_as_its_clients_train_it(algorithm):
    work = workload()
    params = work.model.init(4)
    scores, _ = evaluate(work, algorithm, params, {}, per_client=False, widths=(0.25, 0.5))
    found = {s.scope: s.value for s in scores if s.name == "loss"}
    for ratio, hidden in ((0.25, 3), (0.5, 5), (1.0, 10)):
        times = 1.0 if ratio == 1 or algorithm == HeteroFL(LOCAL, scaler=False) else 1 / ratio
        _, loss = by_hand(work, params, hidden, "central", times)
        assert found[f"central@{ratio}" if ratio < 1 else "central"] == pytest.approx(loss, rel=1e-6)


def test_without_clients_only_the_central_one():
    work = workload()
    scores, _ = evaluate(work, FedAvg(), work.model.init(3), {}, per_client=False, widths=(0.5,))
    assert [s.scope for s in scores] == ["central", "central", "central@0.5", "central@0.5"]


def test_a_run_records_them_and_may_stop_at_one(tmp_path):
    def experiment(**settings: object) -> Experiment:
        return Experiment(
            workload(),
            HeteroFL(LOCAL),
            Synchronous(cohort=6, rounds=12),
            seed=2,
            evaluation=Evaluation(widths=(0.5,), **settings),
        )

    result = experiment().run(tmp_path / "all")
    curve = [row["value"] for row in result.table("accuracy", "central@0.5")]
    assert len(curve) == 13
    assert curve[-1] == by_hand(workload(), result.params, 5, "central", times=2.0)[0]  # as its clients train it
    goal = max(curve)
    first = curve.index(goal)
    assert first > 0
    stopped = experiment(target=goal, scope="central@0.5").run(tmp_path / "stopped")
    assert [row["value"] for row in stopped.table("accuracy", "central@0.5")] == curve[: first + 1]


def test_refused():
    for widths in ((0.0,), (1.5,), (0.5, 0.5), (float("nan"),), (0.3333333, 1 / 3), (0.9999999,)):
        with pytest.raises(ValueError, match=r"Evaluation\(widths=.*\): must lie in \(0, 1\] without repeats, got"):
            Evaluation(widths=widths)
    with pytest.raises(ValueError, match=r"scope='central@0\.25'\): must be one of central, .*, pooled@0\.5, got"):
        Evaluation(widths=(0.5,), scope="central@0.25")
    with pytest.raises(ValueError, match=r"per_client=False.*Set per_client=True"):
        Evaluation(widths=(0.5,), scope="pooled@0.5", per_client=False, target=0.5)
    with pytest.raises(DataError, match="Give the population a central test set, or leave the target out"):
        Evaluation(widths=(0.5,), scope="central@0.5", target=0.5).check_target(population(central=0))
    without = Workload(Model(lambda: net(10), CrossEntropy()), population(), (Accuracy(),))
    thin = Evaluation(widths=(0.5,))
    with pytest.raises(CompositionError, match=r"Model\(widths=\{\}\): a thinner model needs to know the width"):
        Experiment(without, FedAvg(LOCAL), Synchronous(cohort=2), evaluation=thin).build()
    Experiment(without, FedAvg(LOCAL), Synchronous(cohort=2), evaluation=Evaluation(widths=(1.0,))).build()
    own = LocalOnly(FedAvg(LOCAL), names=("2.bias",))
    with pytest.raises(
        CompositionError, match=r"widths=\(0\.5,\)\): the model must be that of the server alone, got Lo"
    ):
        Experiment(workload(), own, Synchronous(cohort=2), evaluation=thin).build()


def test_a_module_that_knows_its_width_says_so():
    model = Model(
        lambda: nn.Sequential(nn.Linear(3, 10), nn.LayerNorm(10), nn.Linear(10, 4)),
        CrossEntropy(),
        widths={**WIDTHS, "1.weight": ("h",), "1.bias": ("h",)},
    )
    work = Workload(model, population(), (Accuracy(),))
    with pytest.raises(CompositionError, match=r"must work with thinner layers, got .* at 0\.5\. Leave modules"):
        evaluate(work, FedAvg(), model.init(1), {}, per_client=False, widths=(0.5,))
