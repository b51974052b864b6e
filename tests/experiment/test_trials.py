"""Grids of runs under attack: what a trial gives, what is kept, what is shown."""

import json
import math

import pytest
import torch

from partwise.aggregators import Bulyan, Mean, Median
from partwise.algorithms import FedAvg, LocalOnly
from partwise.attacks import Backdoor, Hostile, MultiLabelFlip, SignFlip
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.trials import Trial, heat_map, interval, make_trials, markdown, play
from partwise.local import SGD, LocalTraining
from partwise.populations.arrays import ArrayPopulation
from partwise.schedulers import Synchronous


def images(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=rng)
    x = 0.1 * torch.randn(n, 1, 6, 6, generator=rng)
    x[torch.arange(n), 0, y] += 1.0
    return {"x": x, "y": y}


def experiment(rule, hostile=None, seed=0, rounds=6):
    population = ArrayPopulation(images(160, 1), torch.arange(0, 161, 20), central=Examples(images(80, 2)))
    model = Model(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)), CrossEntropy())
    return Experiment(
        Workload(model, population, (Accuracy(),)),
        FedAvg(LocalTraining(SGD(0.5), batch_size=10, epochs=2)),
        Synchronous(cohort=8, rounds=rounds),
        seed=seed,
        aggregator=rule,
        hostile=hostile,
    )


def of(trial):
    rule = {"Mean": Mean(), "Median": Median(), "Bulyan": Bulyan(f=2)}[trial.rule]
    return experiment(rule, Hostile(SignFlip(9.0), trial.share) if trial.share else None, trial.seed)


GRID = [
    Trial("", rule, attack, share, seed)
    for rule in ("Mean", "Median", "Bulyan")
    for attack, share in (("none", 0.0), ("flip", 0.25))
    for seed in (0, 1)
]


def test_trial_says_what_it_came_to():
    clean = play(experiment(Mean()))
    assert (clean["versions"], clean["ended"], clean["success"]) == (6, "done", None)
    assert clean["score"] > 0.95
    bad = play(experiment(Mean(), Hostile(SignFlip(9.0), 0.25)))
    assert bad["score"] < 0.5


def test_what_a_targeted_attack_is_after_is_measured():
    """Where all train on the mark alone, it always works; where nobody does, what it takes for the class is chance."""
    attack = Backdoor(into=0, size=2, share=1.0, value=4.0)
    assert play(experiment(Mean(), Hostile(attack, 1.0)))["success"] == 1.0
    assert play(experiment(Mean(), Hostile(attack, 0.0)))["success"] < 0.5
    flip = MultiLabelFlip(sources=(1,), into=2)
    assert play(experiment(Mean(), Hostile(flip, 1.0)))["success"] > 0.9
    assert play(experiment(Mean(), Hostile(flip, 0.0)))["success"] < 0.1


def test_examples_of_the_class_itself_are_no_success_of_the_attack():
    """A model that names every class and knows no mark: a quarter of all marked images are of the class by right."""
    unharmed = experiment(Mean(), Hostile(Backdoor(into=0, size=1, value=0.0), 0.0))
    assert play(unharmed)["success"] < 0.02
    labels = unharmed.build()[1].population.central_test().columns()["y"]
    assert 0.15 < float((labels == 0).double().mean()) < 0.35


def test_trials_are_made_once(tmp_path):
    keep, made = tmp_path / "deep" / "trials.jsonl", []
    first = make_trials(GRID[:6], of, keep, about="a", said=made.append)
    assert len(made) == 6
    made.clear()
    rows = make_trials(GRID, of, keep, about="a", said=made.append)
    assert len(made) == len(GRID) - 6
    assert rows[:6] == first
    made.clear()
    make_trials(GRID[:1], of, keep, about="b", said=made.append)  # another set-up in the same file
    assert len(made) == 1


def test_killed_while_it_wrote(tmp_path):
    keep, made = tmp_path / "trials.jsonl", []
    make_trials(GRID[:3], of, keep)
    text = keep.read_text()
    keep.write_text(text[:-25])
    make_trials(GRID[:3], of, keep, said=made.append)
    assert len(made) == 1


def test_table_and_heat_map(tmp_path):
    rows = make_trials(GRID, of, tmp_path / "trials.jsonl")
    lines = markdown(rows).splitlines()
    assert lines[0] == "| rule | none | flip 0.25 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| Mean", "| Median", "| Bulyan"]
    assert lines[4] == "| Bulyan | refused | refused |"  # 8 < 4 · 2 + 3
    assert "needs at least 4f+3 = 11 updates" in rows[-1]["ended"]
    by_hand, _ = interval([r["score"] for r in rows if r["rule"] == "Median" and r["share"]])
    assert lines[3].split(" | ")[2].startswith(f"{100 * by_hand:.1f} ±")
    heat_map(rows, "flips").savefig(tmp_path / "heat.svg")
    assert "Bulyan" in json.dumps(rows)
    with pytest.raises(LookupError, match=r"heat_map\(\): needs a trial with a score, got none\."):
        heat_map(rows[-2:])


def test_intervals():
    assert interval([0.5])[0] == 0.5
    assert math.isnan(interval([0.5])[1])
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == (3.0, pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5)))


def test_model_that_explodes_is_a_result():
    found = play(experiment(Mean(), Hostile(SignFlip(1e39), 1.0), rounds=12))
    assert found["score"] < 0.6
    assert found["ended"].startswith("diverged: version 0: the aggregate of stream 'model' is no longer finite.")


def test_a_loss_is_no_share_and_the_lowest_is_the_darkest():
    rows = [
        {"rule": "Mean", "attack": attack, "share": share, "score": score, "higher_is_better": False}
        for attack, share, score in (("none", 0.0, 0.12), ("none", 0.0, 0.14), ("flip", 0.2, 4.25), ("flip", 0.2, 4.25))
    ]
    assert markdown(rows).splitlines()[2] == "| Mean | 0.130 ± 0.127 | 4.250 ± 0.000 |"
    axes = heat_map(rows).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.130", "4.250"]
    none, flip = (sum(axes.images[0].to_rgba(axes.images[0].get_array())[0, at, :3]) for at in (0, 1))
    assert none < flip
    assert [text.get_color() for text in axes.texts] == ["white", "black"]


def test_a_score_above_one_is_no_share_and_the_highest_is_the_darkest():
    rows = [
        {"rule": "Mean", "attack": attack, "share": share, "score": score, "higher_is_better": True}
        for attack, share, score in (("none", 0.0, 37.5), ("flip", 0.2, -2.0))
    ]
    assert markdown(rows).splitlines()[2] == "| Mean | 37.5 | −2.000 |"
    axes = heat_map(rows).axes[0]
    assert [text.get_text() for text in axes.texts] == ["37.5", "−2.000"]
    none, flip = (sum(axes.images[0].to_rgba(axes.images[0].get_array())[0, at, :3]) for at in (0, 1))
    assert none < flip
    assert [text.get_color() for text in axes.texts] == ["white", "black"]


def test_a_trial_says_which_way_its_score_goes():
    assert play(experiment(Mean(), rounds=1))["higher_is_better"] is True


def test_clients_are_scored_with_what_they_keep():
    """Half of them have the opposite labels: no one model is right for more than half of the examples."""
    rng = torch.Generator().manual_seed(4)
    x, is_odd = torch.randn(160, 2, generator=rng), torch.arange(160) // 20 % 2 == 1
    data, ends = {"x": x, "y": ((x[:, 0] > 0) ^ is_odd).long()}, torch.arange(0, 161, 20)
    workload = Workload(
        Model(lambda: torch.nn.Linear(2, 2), CrossEntropy()), ArrayPopulation(data, ends, data, ends), (Accuracy(),)
    )
    local = LocalTraining(SGD(1.0), batch_size=0, steps=20)
    alone = LocalOnly(FedAvg(local), names=("weight", "bias"))
    common, own = (
        play(Experiment(workload, part, Synchronous(cohort=8, rounds=3)))["score"] for part in (FedAvg(local), alone)
    )
    assert common <= 0.6
    assert own > 0.9
