"""The same rules in another library, where the definitions agree; skipped without it."""

import pytest
import torch

from partwise.aggregators import (
    Bucketing,
    CentredClip,
    GeometricMedian,
    Krum,
    MeanAroundMedian,
    Median,
    NearestNeighbours,
    TrimmedMean,
)
from toy_updates import V, value

byzfl = pytest.importorskip("byzfl")


def rows_of(seed, num=11, size=40):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_rules_that_agree(seed):
    rows = rows_of(seed, num=10 + seed % 2)
    for ours, theirs in (
        (Median(), byzfl.Median()),
        (TrimmedMean(trim_count=3), byzfl.TrMean(3)),
        (MeanAroundMedian(f=3), byzfl.Meamed(3)),
        (GeometricMedian(tolerance=1e-12, max_iterations=2000), byzfl.GeometricMedian(nu=1e-9, T=2000)),
        (CentredClip(2.0, iterations=3), byzfl.CenteredClipping(L=3, tau=2.0)),
        (NearestNeighbours(f=3, inner=Median()), lambda x: byzfl.Median()(byzfl.NNM(3)(x))),
        (Bucketing(TrimmedMean(trim_count=0), size=1), byzfl.Average()),
    ):
        # byzfl works in float32, where Weiszfeld's steps near a data point are rough
        near = 2e-3 if isinstance(ours, GeometricMedian) else 1e-6
        assert value(ours, rows.tolist()) == pytest.approx(theirs(rows).tolist(), abs=near), ours


def test_krum_differs_by_one_neighbour():
    """The paper sums m - f - 2 neighbours, byzfl m - f - 1: on the shared example another row is nearest."""
    rows = torch.tensor(V, dtype=torch.float64)
    assert value(Krum(f=1), V) == [2.0, 1.0]
    assert byzfl.Krum(1)(rows).tolist() == [2.5, 2.0]
    for seed in range(5):  # with one more declared, ours sums as many neighbours less
        rows = rows_of(seed)
        scores = torch.cdist(rows, rows).square().sort(dim=1).values[:, 1:]
        theirs = byzfl.Krum(3)(rows).tolist()
        assert theirs == pytest.approx(rows[scores[:, : 11 - 3 - 1].sum(1).argmin()].tolist(), abs=1e-6)
        assert value(Krum(f=3), rows.tolist()) == rows[scores[:, : 11 - 3 - 2].sum(1).argmin()].tolist()
