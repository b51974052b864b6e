"""What algorithms whose clients follow the server's model are tried on."""

from __future__ import annotations

from partwise.algorithms import LANS, FedAvg, SignMomentum
from partwise.core.program import SERVER
from partwise.runtimes import Simulate
from partwise.schedulers import FedBuff, Synchronous
from partwise.schedulers.staleness import Constant
from partwise.transforms import Quantize
from toy_federation import LOCAL, star
from toy_star import Log

EIGHT = Quantize(bucket=8, scale_by="max", rounding="nearest")
INSIDE = {
    "fedavg": FedAvg(LOCAL),
    "lans": LANS(FedAvg(LOCAL), lr=0.05),
    "sign momentum": SignMomentum(FedAvg(LOCAL), gamma=0.2, lr=0.1),
}
SCHEDULERS = {
    "rounds": Synchronous(cohort=3, rounds=9),
    "buffer": FedBuff(buffer=2, versions=9, staleness=Constant(), replace="commit", concurrency=4),
}


class Traffic(Log):
    """Notes the bytes up and down too."""

    def ended(self, world, reason):
        super().ended(world, reason)
        self.bytes = world.traffic.uplink, world.traffic.downlink


def trained(algorithm, **more):
    """The server's streams after a run that is done."""
    of = star("fedavg", algorithm=algorithm, **more)
    states, reason = Simulate().run(of.programs(), of.population, Log())
    assert reason == "done"
    return states[SERVER].streams
