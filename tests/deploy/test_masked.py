"""A masked sum over nodes on a network, one of which is lost in the middle of the exchange."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.channels import Plain
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.deploy.batch import opened
from partwise.deploy.post import Collected
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from toy_federation import LOCAL, population, star
from toy_post import deployed
from toy_star import Log

pytest.importorskip("cryptography")

TRAINING = 2  # batches of a round before the exchange begins: tasks, held values


def masked() -> Any:
    from partwise.channels import Masked

    return Masked(limit=0.5, bits=20, max_weight=1, min_contributors=3, patience_seconds=20.0)


def of(channel: Any, clients: int = 7) -> Any:
    return star(
        "fedavg",
        population=population(clients),
        algorithm=FedAvg(LOCAL, weights="uniform"),
        client_chain={"model": chain(Clip(0.5))},
        scheduler=Synchronous(cohort=clients, rounds=1),
        channel=channel,
    )


def plain(clients: int) -> Any:
    """What the sum of the first so many clients comes to."""
    whole = of(Plain(), clients)
    states, _ = Simulate().run(whole.programs(), whole.population, Log())
    return states[SERVER].streams["model"]


def run(**more: Any) -> tuple[Any, Log, Any]:
    whole, runtime, post = deployed(of(masked()), **more)
    log = Log()
    states, reason = runtime.run(whole.programs(), whole.population, log)
    assert reason == "done"
    return states[SERVER].streams["model"], log, post


def furthest(one: Any, other: Any) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in other)


def test_sum_is_that_of_the_simulator_and_no_update_crosses_the_network():
    found, log, post = run()
    assert furthest(found, plain(7)) <= masked().step
    assert log.of("commit")[0]["replies"] == 7
    rounds = sum(node == "south" for node, _, _ in post.sent)
    assert rounds > TRAINING + 2  # the exchange takes several messages


@pytest.mark.parametrize("step", range(4))
def test_completes_with_a_node_lost_at_any_step_of_the_exchange(step):
    def lose(node: str, number: int, got: Collected) -> Collected:
        if node == "south" and number >= TRAINING + step:
            return got._replace(data=b"", fault="Node Unavailable")
        return got

    found, log, post = run(spoil=lose)
    (commit,) = log.of("commit")
    assert not log.of("skipped")
    survivors, everybody = plain(5), plain(7)
    assert furthest(survivors, everybody) > 100 * masked().step  # else nothing would be told apart
    near = [furthest(found, expected) <= masked().step for expected in (survivors, everybody)]
    assert near in ([True, False], [False, True])  # the second only where its words were in already
    assert near[0] or step == 3
    assert {"south"} == {f["node"] for f in log.of("node_error")}
    assert all(opened(data, 1 << 30).letters for _, _, data in post.sent)
    assert torch.isfinite(found["table.weight"]).all()
    assert commit["version"] == 1
