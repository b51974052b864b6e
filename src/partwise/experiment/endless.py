"""Whether a run that only the clock ends ever ends."""

from __future__ import annotations

import math

from partwise.core.population import Population
from partwise.core.schedule import Scheduler
from partwise.schedulers import ByLink, FedAsync, FedBuff, FedCompass, Tiered

__all__ = ["clock_stands_still"]

_TASKS = 1000  # whose fates are looked at: one that is rarer than a thousandth is no end


def clock_stands_still(part: Scheduler, population: Population) -> bool:
    """Whether clients that take no time answer, and are asked again, without end at one moment of a simulated run.

    That some are away is no matter, once one is there; but for a buffer of distinct clients, which may have to wait for
    others. Where some take time it depends on who is asked, and nobody says.
    """
    if isinstance(part, ByLink):
        return clock_stands_still(part.inner, population)
    if not isinstance(part, FedAsync | FedBuff | FedCompass | Tiered) or part.versions:
        return False
    if population.is_instant:
        return True
    if isinstance(part, FedBuff) and part.replace == "commit":
        return False
    clients = population.clients
    if (population.speeds(clients, 0.0) != (0.0, math.inf, math.inf)).any():
        return False
    fates = (population.fate(clients[task % len(clients)], task) for task in range(_TASKS))
    return not any(fate.late_seconds or (fate.stage and fate.notice_seconds) for fate in fates)
