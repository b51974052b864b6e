"""What each client sends, and how many steps it takes, by the link that was measured. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partwise.core.schedule import Action, Arrived, Dispatch, Event, ReplyInfo, Roster, Sampling, Scheduler
from partwise.schedulers.flights import check_at_least

__all__ = ["ByLink", "Link", "Links"]

_HAIR = 1 + 1e-9  # so that what fits exactly fits


@dataclass
class Link:
    """What is known of a client, changed in place.

    Args:
        seconds_per_byte: of its replies; 0 before the first.
        seconds_per_step: of its training.
        at: the entry of the menu that it is asked for.
        steps: how many it is asked for.
        differs: measurements in a row that spoke for others.
    """

    seconds_per_byte: float = 0.0
    seconds_per_step: float = 0.0
    at: int = 0
    steps: int = 0
    differs: int = 0


@dataclass
class Links:
    """State of `ByLink`: that of the scheduler inside, and client -> its link."""

    inner: Any
    links: dict[int, Link] = field(default_factory=dict)


@dataclass(frozen=True)
class ByLink(Scheduler):
    """A scheduler whose clients send the best that their links carry in time.

    From every reply it learns the client's seconds per byte and per step, as means in which the newest has the share
    `smoothing`. The first entry of the menu is chosen whose bytes take at most `overhead` of the training of `steps`
    steps; if there is none, the one of the fewest bytes, and as many steps as make it so. A client changes once
    `patience` measurements in a row spoke for something else than it does. It begins with the first entry.

    The choice is the `group` of its tasks, by which a `Menu` in the client chain goes; for error feedback that lasts,
    write `ErrorFeedback(Menu(...))`. Around `Overlapped`, where transfers are hidden, let `overhead` be 1.

    Args:
        inner: who works, when, and what is committed together; no scheduler that has groups of its own.
        sizes: bytes of a reply by each entry of the menu, best quality first, as `Menu.sizes` tells them for an update
            without zeros.
        steps: local steps, H >= 1.
        overhead: rho, > 0: transfer over training.
        patience: r, >= 1.
        smoothing: in (0, 1].
        max_steps: more are never asked for; 0 for no limit.

    Raises:
        ValueError: the scheduler inside sets groups.

    Source: the setting of Xiang et al., "Nebula-I", 2022, arXiv:2205.09470, an "adaptive communication acceleration"
        whose rule is not published.
    Differs: the rule is ours. Bytes per second are averaged as seconds per byte, so that a link which has become slow
        is seen at once. Latency is part of the rate. Only the way up is measured, by the clocks of server and client,
        which must agree: they do in the simulator and among worker processes.
    """

    inner: Scheduler
    sizes: tuple[int, ...]
    steps: int
    overhead: float = 0.1
    patience: int = 3
    smoothing: float = 0.2
    max_steps: int = 0
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        check_at_least(self, steps=1, patience=1, max_steps=0)
        if self.inner.groups != 1:
            raise self._has_groups(f"{self.inner.groups or 'one without end'} of them")
        if not self.sizes or not min(self.sizes) > 0:
            raise ValueError(f"ByLink(sizes={self.sizes}): needs bytes above 0, got others. Ask Menu.sizes.")
        if not 0 < self.overhead < math.inf or not 0 < self.smoothing <= 1:
            raise ValueError(
                f"ByLink(overhead={self.overhead}, smoothing={self.smoothing}): needs a share above 0 and one in "
                "(0, 1], got others. 0.1 and 0.2 are usual."
            )

    @property
    def state_types(self) -> tuple[type, ...]:
        return (Links, Link, *self.inner.state_types)

    @property
    def groups(self) -> int:
        return len(self.sizes)

    @property
    def versions(self) -> int:
        return self.inner.versions

    @property
    def may_scale(self) -> bool:
        return self.inner.may_scale

    @property
    def is_fresh(self) -> bool:
        return self.inner.is_fresh

    @property
    def sampling(self) -> Sampling | None:
        return self.inner.sampling

    @property
    def counts_once(self) -> bool:
        return self.inner.counts_once

    def init(self, roster: Roster) -> Links:
        return Links(self.inner.init(roster))

    def step(self, state: Links, event: Event, roster: Roster) -> tuple[Links, list[Action]]:
        if isinstance(event, Arrived):
            self._measure_(state.links.setdefault(event.reply.client, Link(steps=self.steps)), event.reply)
        state.inner, actions = self.inner.step(state.inner, event, roster)
        return state, [self._asked(state, action) if isinstance(action, Dispatch) else action for action in actions]

    def _asked(self, state: Links, wanted: Dispatch) -> Dispatch:
        if wanted.group:
            raise self._has_groups(f"group {wanted.group}")
        link = state.links.get(wanted.client, Link(steps=self.steps))
        return wanted._replace(group=link.at, steps=link.steps)

    def _has_groups(self, got: str) -> ValueError:
        return ValueError(
            f"ByLink(inner={self.inner!r}): needs a scheduler that has no groups of its own, got {got}. Use "
            "Synchronous, Overlapped, FedBuff or FedAsync."
        )

    def _measure_(self, link: Link, reply: ReplyInfo) -> None:
        """Learn from a reply; one that took no time says nothing."""
        if reply.uplink_bytes > 0 and reply.upload_seconds > 0:
            new = reply.upload_seconds / reply.uplink_bytes
            link.seconds_per_byte = self._mean(link.seconds_per_byte, new)
        if reply.steps and reply.train_seconds > 0:
            link.seconds_per_step = self._mean(link.seconds_per_step, reply.train_seconds / reply.steps)
        best = self.choice(link.seconds_per_byte, link.seconds_per_step)
        if best == (link.at, link.steps):
            link.differs = 0
            return
        link.differs += 1
        if link.differs >= self.patience:
            (link.at, link.steps), link.differs = best, 0

    def _mean(self, old: float, new: float) -> float:
        return (1 - self.smoothing) * old + self.smoothing * new if old else new

    def choice(self, seconds_per_byte: float, seconds_per_step: float) -> tuple[int, int]:
        """Entry of the menu, and steps, for a link and a pace.

        Example:
            >>> from partwise.schedulers import Synchronous
            >>> part = ByLink(Synchronous(), sizes=(4_000_000, 2_000_000, 32_000), steps=10)
            >>> part.choice(8 / 32e6, 1.0), part.choice(8 / 16e6, 1.0), part.choice(8 / 0.1e6, 1.0)
            ((0, 10), (1, 10), (2, 26))
        """
        budget = self.overhead * self.steps * seconds_per_step * _HAIR
        fits = [at for at, size in enumerate(self.sizes) if size * seconds_per_byte <= budget]
        if fits:
            return fits[0], self.steps
        at = min(range(len(self.sizes)), key=lambda i: (self.sizes[i], i))
        if not seconds_per_step:
            return at, self.steps
        steps = math.ceil(self.sizes[at] * seconds_per_byte / (self.overhead * seconds_per_step) / _HAIR)
        return at, min(steps, self.max_steps) if self.max_steps else steps
