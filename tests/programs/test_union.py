"""The union of rows through real messages."""

from __future__ import annotations

import pytest

from partwise.channels.unions import Bloom, MaskedUnion
from partwise.core.errors import ProtocolError
from partwise.programs.union import find_union
from partwise.runtimes import Processes, Simulate
from toy_federation import population, star
from toy_star import Log


def plain(of):
    return sorted({row for c in of.population.clients for row in of.site(c).table_rows("table.weight").tolist()})


@pytest.mark.parametrize("runtime", [Simulate(), Processes()], ids=["simulate", "processes"])
@pytest.mark.parametrize("filter", [None, Bloom(60, 0.001)], ids=["bitmap", "bloom"])
def test_the_union_of_all_clients(runtime, filter):
    of, log = star("fedavg"), Log()
    channel = MaskedUnion() if filter is None else MaskedUnion(filter)
    found = find_union(of, channel, runtime, log)
    assert set(plain(of)) <= set(found.rows["table.weight"].tolist())
    if filter is None:
        assert found.rows["table.weight"].tolist() == plain(of)
    assert log.of("lost") == []


def test_too_few_clients():
    of = star("fedavg", population=population(4))
    with pytest.raises(
        ProtocolError, match=r"find_union\(MaskedUnion\(.*got: masked sum 1: needs 5 clients that asked"
    ):
        find_union(of, MaskedUnion(), Simulate(), Log())
