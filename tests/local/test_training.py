from dataclasses import replace

import pytest

from partwise.core.algorithm import Task
from partwise.core.plan import ModelLoss
from partwise.local import SGD, AdamW, ClipGradient, LocalTraining, Shift
from partwise.testing.examples import example_model, example_sites

SITE = example_sites(example_model())[0]


def plan(local, version=0, steps=0, **terms):
    return local.plan(SITE, Task(1, version, 0, steps), **terms)


def test_settings_reach_the_plan():
    got = plan(LocalTraining(SGD(0.3, 0.9), batch_size=4, epochs=2))
    assert (got.optimizer, got.batch_size, got.epochs, got.steps) == (SGD(0.3, 0.9), 4, 2, 0)
    assert isinstance(got.loss, ModelLoss)
    assert got.loss.model is SITE.model
    assert got.num_steps(7) == 4  # two passes of 4 and 3


def test_steps_of_the_task_win():
    local = LocalTraining(steps=5)
    assert plan(local).steps == 5
    assert plan(local, steps=3).steps == 3
    assert plan(LocalTraining(batch_size=0, epochs=3)).num_steps(100) == 3


@pytest.mark.parametrize("optimizer", [SGD(0.5, 0.9), AdamW(0.01)])
def test_learning_rate_decays_by_version(optimizer):
    local = LocalTraining(optimizer, lr_decay=0.5)
    rates = [plan(local, version).optimizer.lr / optimizer.lr for version in range(3)]
    assert rates == pytest.approx([1.0, 0.5, 0.25])
    assert replace(plan(local, 2).optimizer, lr=optimizer.lr) == optimizer
    assert plan(LocalTraining(optimizer), 9).optimizer is optimizer


def test_clip_comes_after_the_algorithm_s_terms():
    shift = Shift({})
    got = plan(LocalTraining(max_norm=2.0), gradient=(shift,))
    assert got.gradient == (shift, ClipGradient(2.0))
    assert plan(LocalTraining()).gradient == ()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"LocalTraining\(batch_size=-1\): must be at least 0, got -1\."):
        LocalTraining(batch_size=-1)
    with pytest.raises(ValueError, match=r"LocalTraining\(epochs=0, steps=0\): a client must train, got neither\."):
        LocalTraining(epochs=0)
    with pytest.raises(ValueError, match=r"LocalTraining\(lr_decay=1\.5\): must lie in \(0, 1\], got 1\.5\."):
        LocalTraining(lr_decay=1.5)
