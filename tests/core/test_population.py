"""How the clients of a population are numbered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from partwise.algorithms import FedAvg
from partwise.core.errors import DataError
from partwise.core.population import check_clients
from toy_star import Clients, Cohorts, full_batch, number_model, parabolas, run, star_of


@dataclass
class Numbered(Clients):
    """Two parabolas, whose clients have other numbers."""

    numbers: Any = ()

    @property
    def clients(self) -> Sequence[int]:
        return self.numbers

    def data(self, client):
        return super().data(client % 2)


@pytest.mark.parametrize(
    ("numbers", "got"),
    [
        ([-2, -1, 0], "got -2."),
        (range(-1, 4), "got -1."),
        ([0, 2, 2], "got 2 after 2."),
        ([5, 3], "got 3 after 5."),
        ([0, 2**31], f"got {2**31} after 0."),
        (range(2**31 - 1, 2**31 + 1), f"got {2**31} after {2**31 - 1}."),
        ([0, True], "got True after 0."),
        (["a", "b"], "got 'a'."),
        (np.arange(3), f"got {np.int64(0)!r}."),
    ],
)
def test_clients_are_whole_numbers_from_0_on_that_ascend(numbers, got):
    population = Numbered(parabolas().columns, numbers=numbers)
    with pytest.raises(DataError, match=re.escape(got)):
        star_of(FedAvg(full_batch(1)), number_model(), population, Cohorts(((0,),)))


@pytest.mark.parametrize("numbers", [range(0), range(2**31 - 4, 2**31), range(0, 9, 2), (0, 3, 2**31 - 1)])
def test_their_numbers_may_have_gaps(numbers):
    check_clients(Numbered(parabolas().columns, numbers=numbers))


def test_clients_with_gaps_in_their_numbers_train():
    population = Numbered(parabolas().columns, numbers=[3, 2**31 - 1])
    _, log = run(star_of(FedAvg(full_batch(1)), number_model(), population, Cohorts(((3, 2**31 - 1),))))
    assert log.of("commit")[0]["clients"] == [3, 2**31 - 1]
