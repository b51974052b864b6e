"""What stays on a client is neither needed by the algorithm inside nor thinned; and thinner models need widths."""

from dataclasses import replace

import pytest

from partwise.algorithms import MCPSGD, MMPSGD, AdaAlter, FedAvg, FedHyper, FjORD, LocalOnly, Utility
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError
from partwise.core.model import CrossEntropy, Model
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_federation import LOCAL, Tagger, star
from toy_star import Log

NEEDY = (MCPSGD(1, LOCAL), AdaAlter(LOCAL), Utility(FedAvg(LOCAL)), FedHyper(Utility(FedAvg(LOCAL))))


@pytest.mark.parametrize("inside", NEEDY, ids=repr)
def test_who_needs_all_of_the_model_is_not_kept_from_it(inside):
    with pytest.raises(
        CompositionError, match=r"LocalOnly\(\w+\): keeps 'out.bias' from an algorithm whose clients need"
    ):
        LocalOnly(inside, ("out.bias",))
    LocalOnly(inside)  # which keeps batch norms, of which there may be none


def first_part(algorithm, model=None):
    """What the first client holds in its first task."""
    of = star("fedavg", algorithm=algorithm)
    of = replace(of, model=model or of.model)
    site = of.site(0)
    return algorithm.select(Task(0, 0, 0, 0), algorithm.client_init(site), site)


def test_what_fjord_thins_does_not_stay_on_a_client():
    """The columns of the table are a width; the bias of the classes is whole in every model."""
    with pytest.raises(
        CompositionError, match=r"LocalOnly\(FjORD\): what stays on a client is whole, but 'table.weight'"
    ):
        first_part(LocalOnly(FjORD(local=LOCAL), ("table.weight",)))


@pytest.mark.parametrize(
    "algorithm",
    [
        LocalOnly(FjORD(local=LOCAL), ("out.bias",)),
        LocalOnly(MMPSGD(1, LOCAL), ("out.bias",)),
        Utility(LocalOnly(FedAvg(LOCAL), ("out.bias",))),
    ],
    ids=repr,
)
def test_what_fits_loses_nobody(algorithm):
    of, log = star("fedavg", algorithm=algorithm, scheduler=Synchronous(cohort=4, rounds=3)), Log()
    _, reason = Simulate().run(of.programs(), of.population, log)
    assert (reason, log.of("lost"), log.of("refused")) == ("done", [], [])


@pytest.mark.parametrize("algorithm", [FjORD(local=LOCAL), FjORD((1.0,), LOCAL, distill=True)], ids=repr)
def test_nested_models_need_widths_before_anybody_trains(algorithm):
    model = Model(Tagger, CrossEntropy(), inputs=("words",), tables={"table.weight": ("words",)})
    with pytest.raises(
        CompositionError, match=r"^Model\(widths=\{\}\): a thinner model needs to know the width of each"
    ):
        first_part(algorithm, model=model)
    first_part(FjORD((1.0,), LOCAL), model=model)
