from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.model import MeanSquaredError, Model
from partwise.core.population import Examples
from partwise.runtimes.executors import Plain, Stacked
from partwise.runtimes.executors.feed import Feed
from partwise.runtimes.executors.plain import batches
from toy_stack import CASES, MLP, Case, agree, normal


@pytest.mark.parametrize(
    "plan",
    [
        {"batch_size": 5, "epochs": 3},
        {"batch_size": 5, "steps": 7},
        {"batch_size": 0, "steps": 4},
        {"batch_size": 0, "epochs": 2},
        {"batch_size": 12, "steps": 3},
        {"batch_size": 1, "epochs": 1},
        {"batch_size": 1000, "epochs": 2},
    ],
)
@pytest.mark.parametrize("name", ["mlp", "din"])
def test_ragged_examples_steps_and_batches(name, plan):
    agree(CASES[name].jobs((7, 1, 23, 5, 12, 12), **plan), Stacked())


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 2}, {"steps": 1}])
def test_batches_are_those_of_plain(length):
    """Read off a column that numbers the examples; every client's shares sum to one."""
    jobs = MLP.jobs((23, 12, 12, 7, 5), batch_size=5, **length)
    jobs = [job._replace(data=Examples({"at": torch.arange(len(job.data)) + 1000 * i})) for i, job in enumerate(jobs)]
    drawn = [list(batches(job.plan, len(job.data), job.seed)) for job in jobs]
    feed = Feed(jobs, [len(at) for at in drawn], torch.zeros((), dtype=torch.float64))
    for step in range(len(drawn[0])):
        batch, shares = feed.batch(step)
        taking = [at for at in drawn if len(at) > step]
        assert shares.shape[0] == len(taking)
        for i, (at, own, share) in enumerate(zip(taking, batch["at"].view(shares.shape), shares, strict=True)):
            count = len(at[step])
            if count < len(jobs[i].data):  # all of them: in no order
                assert own[:count].tolist() == (at[step] + 1000 * i).tolist()
            assert share.tolist() == [1 / count] * count + [0.0] * (len(share) - count)


def test_a_batch_of_everything_is_gathered_once_for_the_same_clients():
    jobs = MLP.jobs((6, 4), batch_size=0)
    feed = Feed(jobs, [3, 2], torch.zeros((), dtype=torch.float64), is_kept=True)
    first, second, third = feed.batch(0), feed.batch(1), feed.batch(2)
    assert second[0] is first[0]
    assert second[1] is first[1]
    assert len(first[1]) == 2
    assert torch.equal(third[0]["x"], jobs[0].data.columns()["x"])
    others = Feed(jobs, [3, 2], torch.zeros((), dtype=torch.float64))
    assert others.batch(0)[0]["x"] is not others.batch(1)[0]["x"]  # a model may write into it


def test_data_that_are_slices_of_one_column_are_not_copied():
    whole = torch.arange(40.0).reshape(20, 2)
    jobs = MLP.jobs((9, 6), batch_size=4)
    examples = Examples({"x": whole})
    jobs = [jobs[0]._replace(data=examples.slice(7, 16)), jobs[1]._replace(data=examples.slice(1, 7))]
    feed = Feed(jobs, [3, 2], whole)
    assert feed._columns["x"].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    for c, job in enumerate(jobs):
        at = next(batches(job.plan, len(job.data), job.seed))
        assert torch.equal(feed.batch(0)[0]["x"].view(2, 4, 2)[c], job.data.batch(at)["x"])


def test_of_columns_of_their_own_only_what_is_trained_on_is_copied():
    jobs = MLP.jobs((90, 600), batch_size=4, steps=3)
    feed = Feed(jobs, [3, 3], torch.zeros(()))
    assert len(feed._columns["x"]) == 2 * 3 * 4


def test_padding_does_not_make_a_loss_infinite():
    """The first client's last batch is padded; its first example, which that batch does not have, is infinite."""
    model = Model(lambda: nn.Linear(2, 1), MeanSquaredError())
    jobs = Case(model, lambda n, c, d: {"x": normal(n, 2, seed=c), "y": normal(n, 1, seed=c + 9)}).jobs((5, 8))
    last = list(batches(jobs[0].plan, 5, jobs[0].seed))[-1]
    columns = {n: t.clone() for n, t in jobs[0].data.columns().items()}
    columns["x"][[i for i in range(5) if i not in last.tolist()]] = 1e300
    jobs[0] = jobs[0]._replace(data=Examples(columns))
    expected, found = Plain().run(jobs), Stacked().run(jobs)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.change, one.change, equal_nan=True)
        assert found[1].loss == pytest.approx(expected[1].loss)
