"""FedLD's margin loss, by hand and by plain loops; the same by every executor, from a specification too."""

import math

import pytest
import torch

from partwise.core.model import CrossEntropy, MarginCrossEntropy, Model
from partwise.experiment.dump import dump
from partwise.experiment.spec import loads
from partwise.local import AdamW
from partwise.runtimes.executors import Plain, Pool, Stacked
from partwise.testing import check_jobs
from partwise.workloads.models import ImageMLP
from toy_stack import NEAR, Case, images

# robustness.md §16 (7e): the softmax of two examples
ROWS = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)


def case(over):
    return Case(Model(lambda: ImageMLP(64, 9, 4), MarginCrossEntropy(margin=0.7, over=over)), images)


def term(loss, logits, y):
    return loss(logits, {"y": y}) - CrossEntropy()(logits, {"y": y})


def test_the_margin_of_two_rows():
    logits, y = ROWS.log() + torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 0])
    each = term(MarginCrossEntropy(margin=1.0), logits, y)
    assert each.tolist() == pytest.approx([math.log(1.5), math.log(1.82)])
    assert float(each.mean()) == pytest.approx(0.502151, abs=1e-6)
    batch = term(MarginCrossEntropy(margin=1.0, over="batch"), logits, y)
    assert batch.tolist() == pytest.approx([0.841567] * 2, abs=1e-6)
    assert float(term(MarginCrossEntropy(margin=0.03), logits, y).mean()) == pytest.approx(0.03 * 0.502151, abs=1e-8)
    assert torch.equal(MarginCrossEntropy(margin=0.0)(logits, {"y": y}), CrossEntropy()(logits, {"y": y}))


def test_the_margin_of_a_batch_that_is_half_sure():
    """Shares (1/2, 1/2) and (1, 0): squares of 1.5 in all, ln 2.5."""
    logits = torch.tensor([[0.0, 0.0], [500.0, -500.0]])
    batch = term(MarginCrossEntropy(margin=1.0, over="batch"), logits, torch.tensor([0, 0]))
    assert batch.tolist() == pytest.approx([0.916291] * 2, abs=1e-6)


def test_only_the_batch_form_grows_with_the_batch():
    logits, y = ROWS.log().repeat(8, 1), torch.zeros(16, dtype=torch.int64)
    assert float(term(MarginCrossEntropy(margin=1.0), logits, y).mean()) == pytest.approx(0.502151, abs=1e-6)
    batch = float(term(MarginCrossEntropy(margin=1.0, over="batch"), logits, y).mean())
    assert batch == pytest.approx(math.log(1 + 8 * 1.32))


def plain_loss(logits, labels, margin, over):
    """Float64 loops. logits: (b, classes, positions) nested lists."""
    squares, crosses = [], []
    for row, label in zip(logits, labels, strict=True):
        for at in range(len(row[0])):
            exps = [math.exp(c[at]) for c in row]
            shares = [e / sum(exps) for e in exps]
            crosses.append(-math.log(shares[label[at]]))
            squares.append(sum(s * s for s in shares))
    extra = [math.log(1 + s) for s in squares] if over == "example" else [math.log(1 + sum(squares))] * len(squares)
    return sum(c + margin * e for c, e in zip(crosses, extra, strict=True)) / len(crosses)


@pytest.mark.parametrize("over", ["example", "batch"])
@pytest.mark.parametrize("positions", [0, 3])
def test_against_plain_loops(over, positions):
    rng = torch.Generator().manual_seed(4)
    shape = (5, 4, positions or 1)
    logits, labels = (
        torch.randn(shape, generator=rng).double() * 2,
        torch.randint(4, (5, positions or 1), generator=rng),
    )
    given = (logits, labels) if positions else (logits[..., 0], labels[:, 0])
    got = MarginCrossEntropy(margin=0.7, over=over)(given[0], {"y": given[1]})
    assert got.shape == (5,)
    assert float(got.mean()) == pytest.approx(plain_loss(logits.tolist(), labels.tolist(), 0.7, over), rel=1e-12)


def test_confidence_costs():
    """The gradient of the term, at the right class and no cross-entropy to speak of, is towards the others."""
    logits = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    term(MarginCrossEntropy(margin=1.0), logits, torch.tensor([0])).sum().backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("over", ["example", "batch"])
def test_every_executor_trains_it_as_plain_does(over, dtype):
    """Clients of four sizes, the last batch of an epoch short: padding must not count in the batch's norm."""
    for jobs in (case(over).jobs(dtype=dtype, epochs=2), case(over).jobs((12, 12, 9, 9, 9), dtype, epochs=2)):
        check_jobs(Stacked(), jobs, near=NEAR)
        check_jobs(Pool(workers=1), jobs)
    plain, without = (Plain().run(c.jobs(dtype=dtype)) for c in (case(over), Case(mlp(), images)))
    assert not torch.equal(plain[0].change["head.weight"], without[0].change["head.weight"])


def mlp():
    return Model(lambda: ImageMLP(64, 9, 4), CrossEntropy())


def test_how_it_is_stacked():
    each, batch = (Stacked().explain(case(over).jobs()) for over in ("example", "batch"))
    assert each == ["4 jobs: together, folded into the batch, without autograd, SGD within the backward pass"]
    assert batch == [
        "4 jobs: together by torch.func.vmap, for an example's loss depends on the other examples of its batch"
    ]
    adam = Stacked().explain(case("example").jobs(optimizer=AdamW(0.01)))
    assert adam == ["4 jobs: together, folded into the batch, without autograd"]


SPEC = """
[workload]
name = "WithLoss"
[workload.inner]
name = "LeafSynthetic"
num_clients = 4
[workload.loss]
name = "MarginCrossEntropy"
margin = 0.3
over = "batch"
[algorithm]
name = "FedAvg"
[aggregator]
name = "PrincipalGradients"
[scheduler]
name = "Synchronous"
cohort = 4
rounds = 2
"""


def test_fedld_from_a_specification():
    experiment = loads(SPEC)
    assert experiment.workload.loss == MarginCrossEntropy(margin=0.3, over="batch")
    assert loads(dump(experiment)).workload == experiment.workload
    workload = experiment.build()[1]
    assert workload.model.loss == experiment.workload.loss
    assert workload.metrics[1].of == CrossEntropy()
    with_it = experiment.run().params
    without = loads(SPEC, ["workload.loss.margin=0.0"]).run().params
    plain = loads(SPEC, ["workload.loss={name='CrossEntropy'}"]).run().params
    assert all(torch.equal(without[n], t) for n, t in plain.items())
    assert any(not torch.allclose(with_it[n], t) for n, t in plain.items())


def test_refusals():
    for settings, says in (
        ({"margin": -0.1}, r"MarginCrossEntropy\(margin=-0\.1\): must be finite and at least 0, got -0\.1\."),
        ({"margin": math.nan}, r"MarginCrossEntropy\(margin=nan\): must be finite and at least 0, got nan\."),
        ({"over": "client"}, r"MarginCrossEntropy\(over='client'\): must be 'example' or 'batch', got 'client'\."),
    ):
        with pytest.raises(ValueError, match=says):
            MarginCrossEntropy(**settings)
