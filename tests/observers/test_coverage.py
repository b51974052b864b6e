import pytest
import torch

from partwise.aggregators import Mean, Median, Watch
from partwise.core.detect import Verdict
from partwise.core.index import Coords, Rows
from partwise.core.update import Update
from partwise.observers import CoverageLimit
from toy_updates import sent_by

PARAMS = {"E": torch.zeros(8, 2), "b": torch.zeros(4)}  # 20 coordinates


def rows(held, value, *, bias=False):
    at = {"E": torch.tensor(held), **({"b": None} if bias else {})}
    values = {"E": torch.full((len(held), 2), value), **({"b": torch.full((4,), value)} if bias else {})}
    return Update(Rows({name: tuple(PARAMS[name].shape) for name in at}, at), values)


def test_who_holds_more_than_a_share_is_named():
    """4, 8, 10 and 20 of 20 coordinates."""
    updates = [rows([0, 5], 1.0), rows([1, 4], 2.0, bias=True), rows([0, 1, 2, 3, 7], 3.0)]
    updates.append(rows(list(range(8)), 9.0, bias=True))
    for limit, named in ((0.5, [13]), (0.499, [12, 13]), (0.39, [11, 12, 13]), (0.1, [10, 11, 12, 13])):
        verdicts, state = CoverageLimit(limit).judge(updates, sent_by(10, 11, 12, 13), (), PARAMS)
        assert [v.client for v in verdicts] == named
        assert state == ()
    assert verdicts[1] == Verdict(11, "coverage", "holds 40% of the model, above 10%", True, True)


def test_an_attacker_that_holds_everything_moves_nothing():
    updates = [rows([0], 1.0), rows([0, 5], 3.0), rows(list(range(8)), 1000.0)]
    for exclude in (False, True):
        part = Watch(CoverageLimit(0.6), Mean("holders"), exclude=exclude)
        got, state = part.reduce(updates, part.init(PARAMS, None), PARAMS, sent_by(4, 7, 2))
        dense = torch.zeros(8, 2)
        got.index.scatter_add_({"E": dense, "b": torch.zeros(4)}, got.values())
        assert float(dense[5, 0]) == (1003 / 2 if not exclude else 3.0)
        assert float(dense[6, 0]) == (1000.0 if not exclude else 0.0)
        assert part.told(state)["excluded"] == ([2] if exclude else [])
        assert part.told(state)["suspects"][0]["kind"] == "coverage"


def test_single_coordinates_count_as_such():
    updates = [Update(Coords({"E": (8, 2)}, {"E": torch.arange(n)}), {"E": torch.ones(n)}) for n in (10, 11)]
    verdicts, _ = CoverageLimit(0.5).judge(updates, sent_by(0, 1), (), PARAMS)
    assert [v.client for v in verdicts] == [1]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_refusals(share):
    with pytest.raises(ValueError, match=rf"CoverageLimit\(max_share={share}\): must lie in \(0, 1\), got {share}"):
        CoverageLimit(share)
    assert Watch(CoverageLimit(), Median()).inner == Median()
