"""The plain executor against a loop that shares no code with it, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, MeanSquaredError, Model
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.core.population import Examples
from partwise.core.rng import derive
from partwise.local import SGD, AdamW, ClipGradient, Proximal, Shift
from partwise.runtimes.executors import Plain, Stacked


class Net(nn.Module):
    """A table, dropout, and running statistics: what a step may leave alone, draw and move."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.spare = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.table(words).mean(1))))


MODEL = Model(Net, CrossEntropy(), inputs=("words",))


def job(plan: LocalPlan | None = None, examples: int = 23, seed: int = 5) -> Job:
    draw = torch.Generator().manual_seed(examples)
    words = torch.randint(11, (examples, 3), generator=draw)
    data = Examples({"words": words, "y": words.sum(1) % 3})
    plan = plan or LocalPlan(ModelLoss(MODEL), SGD(0.3), batch_size=5, steps=7, buffers=MODEL.buffers())
    return Job(plan, MODEL.init(1), data, seed)


def by_hand(job: Job, decay: float, pull: float, epochs: int, batch: int) -> dict[str, Tensor]:
    """The module itself, trained in place."""
    net = Net()
    net.load_state_dict(job.start, strict=False)
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    columns, n = job.data.columns(), len(job.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        for epoch in range(epochs):
            order = np.random.Generator(np.random.Philox(derive(job.seed, "batches", epoch))).permutation(n)
            for first in range(0, n, batch):
                at = torch.from_numpy(order[first : first + batch])
                loss = nn.functional.cross_entropy(net(columns["words"][at]), columns["y"][at], reduction="none").mean()
                net.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for name, p in net.named_parameters():
                        grad = torch.zeros_like(p) if p.grad is None else p.grad
                        if pull:
                            grad = grad.add(p - start[name], alpha=pull)
                        if decay:
                            grad = grad.add(p, alpha=decay)
                        p.add_(grad, alpha=-0.3)
    return {name: t.detach() for name, t in net.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize(("decay", "pull"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.7)])
def test_is_bit_equal_to_a_loop_over_the_module(decay, pull):
    given = job()
    before = {name: t.clone() for name, t in given.start.items()}
    terms = (Proximal(pull, given.start),) if pull else ()
    plan = replace(given.plan, steps=0, epochs=3, optimizer=SGD(0.3, weight_decay=decay), gradient=terms)
    (trained,) = Plain().run([given._replace(plan=plan)])
    expected = by_hand(given, decay, pull, epochs=3, batch=5)
    assert trained.steps == 15
    assert [n for n in expected if not torch.equal(trained.change[n], expected[n] - before[n])] == []
    assert list(trained.change) == list(given.start)
    assert not any(t.requires_grad for t in trained.change.values())
    assert bool(trained.change["spare.weight"].any()) == bool(decay)
    assert trained.change["norm.running_mean"].any()
    assert all(torch.equal(t, before[name]) for name, t in given.start.items())


def test_jobs_do_not_touch_one_another_or_the_global_generator():
    first, second = job(seed=5), job(seed=6, examples=8)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    together = Plain().run([first, second, first])
    assert torch.equal(torch.get_rng_state(), state)
    for trained, given in zip(together, (first, second, first), strict=True):
        (alone,) = Plain().run([given])
        assert all(torch.equal(alone.change[n], trained.change[n]) for n in alone.change)
        assert alone.loss == trained.loss
    assert not torch.equal(together[0].change["out.bias"], together[1].change["out.bias"])


def test_what_is_not_trainable_stays():
    plan = replace(job().plan, trainable=lambda name: name.startswith("out"))
    (trained,) = Plain().run([job(plan)])
    moved = {n for n, t in trained.change.items() if t.any()}
    assert moved == {"out.weight", "out.bias", "norm.running_mean", "norm.running_var"}
    trained.change["table.weight"].fill_(3.0)  # the result is the caller's own
    assert job().start["table.weight"].abs().sum() > 1


@pytest.mark.parametrize("rule", [SGD(0.3), SGD(0.3, momentum=0.9), AdamW(0.01)], ids=repr)
@pytest.mark.parametrize("executor", [Plain(), Plain(autograd=True), Stacked()], ids=repr)
def test_where_nothing_is_trainable_only_statistics_move(executor, rule):
    plan = replace(job().plan, trainable=lambda name: False, optimizer=rule, gradient=(ClipGradient(1.0),))
    (trained,) = executor.run([job(plan)])
    assert not isinstance(trained, Exception), trained
    assert {n for n, t in trained.change.items() if t.any()} == {"norm.running_mean", "norm.running_var"}
    assert trained.steps == 7
    assert trained.loss > 0


def test_terms_come_in_order_and_know_their_step():
    seen: list[int] = []

    def note(params: dict[str, Tensor], grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        seen.append(step)
        return grads

    model = Model(nn.Linear(1, 1, bias=False), MeanSquaredError(), ("x",))
    data = Examples({"x": torch.tensor([[3.0]]), "y": torch.tensor([[0.0]])})
    start = {"weight": torch.tensor([[2.0]])}  # d/dw (3 w)²/2 = 9 w = 18, shifted by 4 to 22, clipped to 5
    terms = (Shift({"weight": torch.tensor([[4.0]])}), ClipGradient(5.0), note)
    plan = LocalPlan(ModelLoss(model), SGD(0.1), batch_size=0, steps=1, gradient=terms)
    (trained,) = Plain().run([Job(plan, start, data, 0)])
    assert trained.change["weight"].item() == pytest.approx(-0.1 * 5)
    assert trained.loss == pytest.approx(0.5 * 36)
    Plain().run([Job(replace(plan, steps=3), start, data, 0)])
    assert seen == [0, 0, 1, 2]


def test_state_of_the_optimizer_begins_anew_with_every_job():
    plan = replace(job().plan, optimizer=AdamW(0.01))
    first, again = Plain().run([job(plan), job(plan)])
    assert all(torch.equal(first.change[n], again.change[n]) for n in first.change)


def test_job_that_raises_gives_its_error_and_the_others_go_on():
    broken = job()._replace(data=Examples({"words": torch.tensor([[99, 0, 0]]), "y": torch.tensor([0])}))
    good, bad, last = Plain().run([job(), broken, job()])
    assert isinstance(bad, IndexError)
    assert torch.equal(good.change["out.bias"], last.change["out.bias"])
