"""Groups of tasks: what a scheduler says with them, a client's compressor and the algorithm must understand."""

import pytest

from partwise.algorithms import CrossTier, FedAvg
from partwise.core.compressor import chosen
from partwise.core.errors import CompositionError
from partwise.core.transform import Identity, chain
from partwise.runtimes import Simulate
from partwise.schedulers import ByLink, FedAsync, FedBuff, FedCompass, Synchronous, Tiered
from partwise.transforms import ErrorFeedback, Halved, Menu, Sign, TopK
from toy_federation import LOCAL, star
from toy_star import Log

MENU = Menu((Identity(), Halved()))


@pytest.mark.parametrize("menu", [MENU, ErrorFeedback(Menu((Identity(), Sign())))], ids=["alone", "with feedback"])
def test_each_tier_sends_by_its_own_entry_and_who_is_not_sorted_by_the_usual_one(menu):
    log = Log()
    of = star("fedavg", scheduler=Tiered(tiers=2, cohort=2, versions=6), client_chain={"model": chain(menu)})
    _, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost"), log.of("refused")) == ("done", [], [])


def test_a_group_below_zero_says_nothing():
    menu = Menu((Identity(), Halved(), Sign()), at=2)
    assert [chosen(menu, number).at for number in (-1, 0, 1)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (Tiered(tiers=3), r"^Tiered\(.*has 3 groups of tasks: Menu\(at=2\): must be the number of one of its 2"),
        (ByLink(Synchronous(), (9, 5, 2), 1), r"^ByLink\(.*has 3 groups of tasks: Menu\(at=2\): must be the number"),
        (FedCompass(), r"Menu\(.*chooses by the group of a task, got FedCompass\(.*which numbers groups without end\."),
    ],
)
def test_a_menu_has_an_entry_for_every_group(scheduler, said):
    with pytest.raises(CompositionError, match=said):
        star("fedavg", scheduler=scheduler, client_chain={"model": chain(MENU)})


def test_what_does_not_choose_goes_with_any_groups():
    for scheduler in (FedCompass(), Tiered(tiers=3), FedAsync(2), FedBuff(2, 4)):
        star("fedavg", scheduler=scheduler, client_chain={"model": chain(TopK(ratio=0.5))})
    star("fedavg", scheduler=ByLink(Synchronous(), (9, 5), 1), client_chain={"model": chain(MENU)})


@pytest.mark.parametrize("inner", [FedCompass(), Tiered(), ByLink(Synchronous(), (9, 5), 1)])
def test_by_link_is_put_around_no_scheduler_with_groups(inner):
    with pytest.raises(ValueError, match=r"ByLink\(inner=.*needs a scheduler that has no groups of its own, got"):
        ByLink(inner, (9, 5), 1)


def test_tiers_of_the_algorithm_are_groups_of_the_scheduler():
    algorithm = CrossTier(FedAvg(LOCAL), tiers=2)
    for scheduler in (FedCompass(), Tiered(tiers=3), ByLink(Synchronous(), (9, 5), 1)):
        with pytest.raises(
            CompositionError, match=r"one group of tasks each, from 0 to 1, got .* Use Tiered\(tiers=2\)"
        ):
            star("fedavg", algorithm=algorithm, scheduler=scheduler)
    of, log = star("fedavg", algorithm=algorithm, scheduler=Tiered(tiers=2, cohort=2, versions=4)), Log()
    _, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost")) == ("done", [])
