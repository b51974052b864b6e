from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from partwise.core.metrics import AUC, Accuracy, Loss, Perplexity, TopKAccuracy, reduced_each
from partwise.core.model import BinaryCrossEntropy, CrossEntropy, MarginCrossEntropy, MeanSquaredError


def auc_by_pairs(scores: list[float], targets: list[int]) -> float:
    won = 0.0
    pairs = 0
    for (s, y), (r, z) in itertools.product(zip(scores, targets, strict=True), repeat=2):
        if y == 1 and z == 0:
            pairs += 1
            won += 1.0 if s > r else 0.5 if s == r else 0.0
    return won / pairs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs_and_ties_half(seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    scores = (torch.randint(0, 6, (40,), generator=rng) / 3).to(dtype)
    targets = (torch.rand(40, generator=rng) < 0.3).long()
    metric = AUC()
    got = metric.reduce(metric.measure(scores, {"y": targets}))
    assert got == auc_by_pairs(scores.tolist(), targets.tolist())  # halves are exact: no bit depends on how it is done


def test_auc_is_undefined_for_one_class_and_for_scores_that_are_not_finite():
    metric = AUC()
    assert math.isnan(metric.reduce(metric.measure(torch.tensor([1.0, 2.0]), {"y": torch.tensor([1, 1])})))
    assert math.isnan(metric.reduce(metric.measure(torch.tensor([1.0, math.nan]), {"y": torch.tensor([1, 0])})))


class Largest:
    """A metric of the user's own, which takes one group at a time."""

    name, higher_is_better = "largest", False

    def measure(self, outputs, batch):
        return {"largest": outputs.abs().amax(1)}

    def reduce(self, columns):
        return float(columns["largest"].max())


ONE_LOGIT = (AUC(), Accuracy(), Loss(BinaryCrossEntropy()))
SEVERAL = (Accuracy(), TopKAccuracy(2), Loss(CrossEntropy()), Perplexity(CrossEntropy()), Largest())


@pytest.mark.parametrize("metric", [*ONE_LOGIT, *SEVERAL], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sizes", [[30], [1] * 30, [3, 7, 1, 12, 2, 5]])
def test_groups_one_after_another_are_measured_as_each_by_itself(metric, sizes):
    rng = torch.Generator().manual_seed(7)
    outputs, y = torch.randn(30, 4, generator=rng), torch.randint(0, 4, (30,), generator=rng)
    if metric in ONE_LOGIT:
        outputs, y = outputs[:, 0], y % 2
        outputs[13] = math.nan if isinstance(metric, AUC) else outputs[13]
    columns = metric.measure(outputs, {"y": y})
    expected, start = [], 0
    for size in sizes:
        expected.append(metric.reduce({n: c[start : start + size] for n, c in columns.items()}))
        start += size
    assert reduced_each(metric, columns, sizes) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_metrics_merge_whatever_the_grouping():
    rng = torch.Generator().manual_seed(2)
    outputs, y = torch.randn(30, 4, generator=rng), torch.randint(0, 4, (30,), generator=rng)
    for metric in (Accuracy(), TopKAccuracy(2), Loss(CrossEntropy()), Perplexity(CrossEntropy())):
        whole = metric.reduce(metric.measure(outputs, {"y": y}))
        parts = [metric.measure(outputs[a:b], {"y": y[a:b]}) for a, b in ((20, 30), (0, 3), (3, 20))]
        merged = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        assert metric.reduce(merged) == pytest.approx(whole, abs=1e-12)


def test_hand_computed_values():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 5.0, 0.0]], dtype=torch.float64)
    batch = {"y": torch.tensor([0, 1, 2])}
    assert Accuracy().reduce(Accuracy().measure(outputs, batch)) == pytest.approx(1 / 3)
    assert TopKAccuracy(2).reduce(TopKAccuracy(2).measure(outputs, batch)) == pytest.approx(2 / 3)
    expected = -sum(
        math.log(math.exp(row[y]) / sum(map(math.exp, row))) for row, y in zip(outputs.tolist(), [0, 1, 2], strict=True)
    )
    loss = Loss(CrossEntropy())
    assert loss.reduce(loss.measure(outputs, batch)) == pytest.approx(expected / 3, abs=1e-12)
    perplexity = Perplexity(CrossEntropy())
    assert perplexity.reduce(perplexity.measure(outputs, batch)) == pytest.approx(math.exp(expected / 3), abs=1e-12)


def test_one_logit_is_compared_with_zero():
    batch = {"y": torch.tensor([1, 0, 1, 1])}
    assert Accuracy().reduce(Accuracy().measure(torch.tensor([0.5, -2.0, -1.0, 3.0]), batch)) == 0.75
    expected = (
        math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-2.0)) + math.log1p(math.exp(1.0)) + math.log1p(math.exp(-3))
    )
    loss = Loss(BinaryCrossEntropy())
    outputs = torch.tensor([0.5, -2.0, -1.0, 3.0], dtype=torch.float64)
    assert loss.reduce(loss.measure(outputs, batch)) == pytest.approx(expected / 4, abs=1e-12)


def test_a_logit_that_is_nan_is_never_right():
    nan = math.nan
    logits = torch.tensor([[nan, nan], [0.0, nan], [1.0, 0.0], [nan, 0.0]])
    for metric in (Accuracy(), TopKAccuracy(1), TopKAccuracy(2)):
        for targets, right in (([0, 0, 0, 0], 1), ([1, 1, 1, 1], int(metric == TopKAccuracy(2)))):
            assert metric.reduce(metric.measure(logits, {"y": torch.tensor(targets)})) == right / 4
    one = Accuracy().measure(torch.tensor([nan, -1.0]), {"y": torch.tensor([0, 0])})
    assert Accuracy().reduce(one) == 0.5
    several = torch.tensor([[[1.0, nan], [0.0, 0.0]]])  # (b, classes, targets of an example)
    assert Accuracy().reduce(Accuracy().measure(several, {"y": torch.tensor([[0, 0]])})) == 0.5


def test_squared_error_is_halved_and_averaged_over_outputs():
    values = MeanSquaredError()(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), {"y": torch.tensor([[0.0, 0.0], [2.0, 0.0]])})
    assert values.tolist() == [2.5, 1.0]


def test_no_example_gives_nan_and_a_large_loss_gives_infinite_perplexity():
    assert math.isnan(Accuracy().reduce({"hit": torch.zeros(0)}))
    assert Perplexity(CrossEntropy()).reduce({"loss": torch.tensor([1e4])}) == math.inf


def test_an_example_with_several_targets_counts_by_the_share_that_is_hit():
    outputs = torch.tensor(  # of two texts of three symbols; the alphabet has four
        [
            [[9.0, 0.0, 5.0], [7.0, 2.0, 4.0], [1.0, 8.0, 0.0], [2.0, 1.0, 1.0]],
            [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0]],
        ]
    )
    batch = {"y": torch.tensor([[1, 2, 3], [3, 2, 2]])}
    # Best two of each place: {0, 1}, {2, 1}, {0, 1} hold 1 and 2, not 3; three times {3, 2} hold all.
    for metric, shares in ((TopKAccuracy(2), [2 / 3, 1.0]), (Accuracy(), [1 / 3, 1 / 3])):
        columns = metric.measure(outputs, batch)
        assert metric.reduce(columns) == pytest.approx(sum(shares) / 2)
        assert reduced_each(metric, columns, [1, 1]) == pytest.approx(shares)


def test_what_fills_up_a_short_example_does_not_count():
    # Two texts over an alphabet of two, of three symbols and of one; the second is filled up.
    outputs = torch.tensor([[[2.0, 0.0, 2.0], [0.0, 2.0, 0.0]], [[0.0, 9.0, 9.0], [2.0, 0.0, 0.0]]])
    batch = {"y": torch.tensor([[0, 1, 1], [1, -100, -100]])}
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    losses = [(2 * right + wrong) / 3, right]
    for loss in (CrossEntropy(), MarginCrossEntropy(margin=0.0)):
        assert loss(outputs, batch).tolist() == pytest.approx(losses)
        assert Loss(loss).reduce(Loss(loss).measure(outputs, batch)) == pytest.approx(sum(losses) / 2)
        found = Perplexity(loss).reduce(Perplexity(loss).measure(outputs, batch))
        assert found == pytest.approx(math.exp(sum(losses) / 2))
    for metric, shares in ((Accuracy(), [2 / 3, 1.0]), (TopKAccuracy(2), [1.0, 1.0])):
        assert metric.measure(outputs, batch)["hit"].tolist() == pytest.approx(shares)


def test_the_margin_is_not_counted_where_there_is_no_target():
    outputs = torch.tensor([[[2.0, 1.0], [0.0, 5.0]], [[2.0, 2.0], [0.0, 0.0]]])
    short, whole = {"y": torch.tensor([[0, -100], [0, 0]])}, {"y": torch.tensor([[0], [0]])}
    loss = MarginCrossEntropy(margin=0.5)
    assert loss(outputs, short).tolist() == pytest.approx(loss(outputs[:, :, :1], whole).tolist())


def test_an_example_without_a_target_moves_nothing():
    outputs = torch.zeros(1, 2, 3, requires_grad=True)
    loss = CrossEntropy()(outputs, {"y": torch.full((1, 3), -100)})
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert not outputs.grad.any()


def test_top_k_needs_a_k():
    with pytest.raises(ValueError, match=r"TopKAccuracy\(k=0\): k must be at least 1"):
        TopKAccuracy(0)


@pytest.mark.parametrize(
    ("part", "outputs", "target"),
    [
        (MeanSquaredError(), (4, 1), (4,)),  # (4, 4) by broadcasting
        (MeanSquaredError(), (4,), (4, 1)),
        (MeanSquaredError(), (4, 1), (4, 3)),
        (Accuracy().measure, (4, 1), (4,)),  # the first class is always the largest of one
        (Accuracy().measure, (4, 1), (4, 1)),
        (Accuracy().measure, (4, 3), (4, 1)),
        (Accuracy().measure, (4,), (4, 1)),
        (TopKAccuracy(2).measure, (4, 3), (4, 1)),
        (TopKAccuracy(2).measure, (4,), (4,)),
        (TopKAccuracy(2).measure, (4, 3, 5), (4, 1)),
        (AUC().measure, (4, 1), (4,)),
        (AUC().measure, (4, 2), (4,)),
        (AUC().measure, (4,), (4, 1)),
    ],
)
def test_shapes_that_would_be_stretched_to_fit_are_refused(part, outputs, target):
    with pytest.raises(ValueError, match=re.escape(str(target))):
        part(torch.zeros(outputs), {"y": torch.zeros(target, dtype=torch.int64)})


@pytest.mark.parametrize("targets", [[1, 2, 2], [-1, 1, 1], [0.0, 1.0, 5.0]])
@pytest.mark.parametrize("metric", [AUC(), Accuracy()])
def test_labels_other_than_0_and_1_are_refused_for_one_logit(metric, targets):
    with pytest.raises(ValueError, match=r"must be 0 or 1, got -?\d to \d\. Number the classes 0 and 1\."):
        metric.measure(torch.tensor([0.1, 0.2, 0.3]), {"y": torch.tensor(targets)})


@pytest.mark.parametrize("metric", [AUC(), Accuracy()])
def test_flags_and_shares_are_labels_of_one_logit(metric):
    scores = torch.tensor([-1.0, 2.0])
    for targets in (torch.tensor([False, True]), torch.tensor([0, 1]), torch.tensor([0.2, 0.9])):
        assert metric.reduce(metric.measure(scores, {"y": targets})) == 1.0


@pytest.mark.parametrize("outputs", [(torch.zeros(3, 2),), [torch.zeros(3, 2)], {"logits": torch.zeros(3, 2)}])
@pytest.mark.parametrize("metric", [AUC(), Accuracy(), TopKAccuracy(2)])
def test_outputs_of_several_tensors_are_refused_by_a_sentence(metric, outputs):
    says = (
        rf"{type(metric).__name__}\(target='y'\): needs outputs that are one tensor, got a {type(outputs).__name__}\."
    )
    with pytest.raises(TypeError, match=says):
        metric.measure(outputs, {"y": torch.tensor([0, 1, 1])})
