"""End values are made of updates around algorithms whose clients always send how all that they hold has changed."""

import pytest

from partwise.algorithms import (
    CSER,
    MCPSGD,
    MMPSGD,
    AdaptiveClip,
    CrossTier,
    FedAMD,
    FedAvg,
    FederatedDropout,
    FedSubAvg,
    HeteroFL,
    LocalOnly,
    Mixing,
    Utility,
)
from partwise.core.errors import CompositionError
from partwise.core.transform import Identity
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_federation import LOCAL, star
from toy_star import Log

SOME = (
    FedAMD(LOCAL),
    MCPSGD(1, LOCAL),
    CSER(Identity(), local=LOCAL),
    AdaptiveClip(FedAvg(LOCAL)),
    FederatedDropout(local=LOCAL, estimator="heat"),
    Utility(FedAMD(LOCAL)),
)
ALL = (
    FedAvg(LOCAL),
    MMPSGD(1, LOCAL),
    FedSubAvg("count", LOCAL),
    HeteroFL(LOCAL, redraw=(0.5, 1.0)),
    FederatedDropout(local=LOCAL),
    FederatedDropout(1.0, LOCAL, estimator="heat"),
    LocalOnly(FedAvg(LOCAL), ("out.weight",)),
)


@pytest.mark.parametrize("inside", SOME, ids=repr)
@pytest.mark.parametrize("wrap", [Mixing, CrossTier])
def test_who_sends_something_else_now_and_then_is_refused(wrap, inside):
    assert not inside.sends_all
    with pytest.raises(CompositionError, match=r"got an algorithm whose clients may send nothing"):
        wrap(inside)


@pytest.mark.parametrize("inside", ALL, ids=repr)
@pytest.mark.parametrize("wrap", [Mixing, CrossTier])
def test_who_always_sends_all_loses_nobody(wrap, inside):
    assert inside.sends_all
    of, log = star("fedavg", algorithm=wrap(inside), scheduler=Synchronous(cohort=4, rounds=4)), Log()
    _, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost"), log.of("refused")) == ("done", [], [])
