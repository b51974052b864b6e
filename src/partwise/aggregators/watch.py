"""An observer in front of an aggregator: what it finds is told, and if wanted left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from partwise.core.aggregate import Aggregator, Sum, given_to, told_by
from partwise.core.detect import GOOD, Detector, Reputation, Verdict, score_of
from partwise.core.given import check_given, check_two
from partwise.core.mean import Mean
from partwise.core.model import Params
from partwise.core.population import Census, Client
from partwise.core.probe import MakeProbe, probed
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, scale

__all__ = ["Watch"]

_SAID = "a list of Verdicts and its next state, two things"


@dataclass(frozen=True)
class Watch:
    """An aggregator whose updates an observer looks at first.

    Args:
        detector: the observer.
        inner: the aggregator.
        exclude: whether updates that the observer would leave out are left out, or only told of.
        reputation: whether what it says of a client counts in later commits too; None if not.

    Example:
        >>> from partwise.observers import MUDHoG
        >>> Watch(MUDHoG()).exclude
        False
    """

    detector: Detector
    inner: Aggregator = field(default_factory=lambda: Mean("holders"))
    exclude: bool = False
    reputation: Reputation | None = None
    needs: ClassVar[Literal["sum", "each"]] = "each"
    needs_senders: ClassVar[bool] = True
    takes_sent: ClassVar[bool] = True

    def init(self, params: Params, census: Census) -> Any:
        return self.detector.init(params, census), self.inner.init(params, census), {}, (), ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        if len(replies) != len(got):
            raise ValueError(
                f"Watch({self.detector!r}): needs to know who sent each update, got {len(got)} updates and "
                f"{len(replies)} senders. Give reduce the replies."
            )
        watched, inner, known, *_ = state
        seen = [scale(u, r.scale) if r.scale != 1 else u for u, r in zip(got, replies, strict=True)]
        found = self.detector.judge(seen, replies, watched, params)
        check_two(self.detector, "judge", found, _SAID)
        verdicts, watched = _plain(self.detector, found[0]), found[1]
        out = {verdict.client for verdict in verdicts if verdict.is_out} if self.exclude else set[Client]()
        if (rule := self.reputation) is not None:
            known = _reputations(rule, known, replies, verdicts)
            out |= {reply.client for reply in replies if known[reply.client] < rule.least}
            got = [replace(u, weight=min(known[r.client], rule.cap)) for u, r in zip(got, replies, strict=True)]
        kept = [(update, reply) for update, reply in zip(got, replies, strict=True) if reply.client not in out]
        left, by = [update for update, _ in kept], [reply for _, reply in kept]
        total, inner = self.inner.reduce(given_to(self.inner, left, params, by), inner, params, by)
        return total, (watched, inner, known, tuple(verdicts), tuple(sorted(out)))

    def told(self, state: Any) -> Mapping[str, Any]:
        """Whom the observer suspects, and what the aggregator tells."""
        _, inner, known, verdicts, out = state
        own = told_by(self.inner, inner)
        if not verdicts and not out:
            return own
        suspects = [
            {
                "client": v.client,
                "kind": v.kind,
                "reason": v.reason,
                "confirmed": v.is_confirmed,
                **({"reputation": known[v.client]} if v.client in known else {}),
            }
            for v in verdicts
        ]
        return {**own, "suspects": suspects, "excluded": list(out)}

    def probed(self, make: MakeProbe) -> Watch:
        """The same with an observer and an aggregator that have their probes."""
        return replace(self, detector=probed(self.detector, make), inner=probed(self.inner, make))


def _plain(detector: Detector, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts in Python's own numbers, as a record takes them, where an observer gives those of another library."""
    check_given(detector, "judge", verdicts, Sequence, _SAID)
    for verdict in verdicts:
        check_given(detector, "judge", verdict, Verdict, _SAID)
    return [
        Verdict(int(v.client), v.kind, v.reason, is_confirmed=bool(v.is_confirmed), is_out=bool(v.is_out))
        for v in verdicts
    ]


def _reputations(
    rule: Reputation, known: Mapping[Client, float], replies: Sequence[ReplyInfo], verdicts: Sequence[Verdict]
) -> dict[Client, float]:
    """Client -> its reputation after a commit; of those who are in it one score each, the worst."""
    worst = dict.fromkeys((reply.client for reply in replies), GOOD)
    for verdict in verdicts:
        if verdict.client in worst:
            score = score_of(verdict.kind, is_confirmed=verdict.is_confirmed)
            worst[verdict.client] = min(worst[verdict.client], score)
    new = {client: rule.after(known.get(client, rule.start), score / GOOD) for client, score in worst.items()}
    return {**known, **new}
