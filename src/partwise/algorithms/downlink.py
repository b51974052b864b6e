"""Fewer bytes to the client: what it holds is a shadow of the model, which moves by compressed differences.

Notation: w is the server's model, x its shadow, which clients hold; p is what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from partwise.algorithms.forms import form_of
from partwise.algorithms.replica import (
    THE_VERSION,
    VERSION,
    advanced,
    check_kept,
    each_missed,
    holds_all,
    is_near,
    log_of,
    rows_of_log,
)
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.around import Keeping, check_fetches_model, check_own
from partwise.core.codec import register
from partwise.core.compressor import compressors
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.plan import Trained
from partwise.core.population import Census
from partwise.core.rng import generator
from partwise.core.schedule import ReplyInfo
from partwise.core.transform import Transform
from partwise.core.update import Update

__all__ = ["Downlink", "Shadow"]

_OWN = {"shadow", "steps"}


@register
@dataclass(frozen=True, eq=False)
class Shadow:
    """What a client keeps.

    Args:
        inner: the state of the algorithm inside.
        version: of the shadow that it holds.
        value: name -> x; nothing before it holds any, and where it holds the model in part.
    """

    inner: ClientState
    version: int = 0
    value: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Downlink(Keeping):
    """An algorithm whose clients fetch compressed differences: p = C(w - x), x <- x + p, on both sides.

    The difference is taken to what clients really hold, so that what one message loses is in the next: the server's
    own error feedback. A client that has the shadow of an earlier version fetches the messages since; one that has
    none, or an old one, fetches the shadow in full; so does one that holds the model in part. All clients hold the
    same shadow, in memory of their own. The server's model is not the shadow, so that it is as good as without.
    Outermost, it sees all that an algorithm does.

    Args:
        inner: what is really done.
        compress: C, a transform without memory and with messages of one size, such as `Quantize` or `Sign`.
        keep: versions whose messages the server keeps, >= 1.

    Raises:
        CompositionError: messages of several sizes, a transform that keeps something, or one that is right on average
            and no contraction, such as `Quantize(4)`: what it gets wrong would grow from message to message.

    Source: Jia et al., "SDP4Bit", NeurIPS 2024, arXiv:2410.15526 (weight differences); Zhong et al., "Compressed
        communication for distributed training: adaptive methods and system", 2021, arXiv:2105.07829 (two-way error
        feedback, to which it comes with a server that adds).
    Differs: one shadow for all, and messages that are kept for those who were away; draws of C follow from the version.
    """

    inner: Algorithm
    compress: Transform
    keep: int = 16

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"Downlink(keep={self.keep}): must be at least 1, got {self.keep}. 16 is usual.")
        check_fetches_model(self)

    @property
    def mirrors(self) -> bool:
        return True

    @property
    def is_given_model(self) -> bool:
        return False

    def init(self, params: Params, census: Census) -> ServerState:
        state = self.inner.init(params, census)
        check_own(self, _OWN, state, "Downlink")
        form = form_of("Downlink", self.compress, state["model"])
        self._check_shrinks(state["model"])
        shadow = {name: t.clone() for name, t in state["model"].items()}
        return {**state, "shadow": shadow, "steps": log_of(form.blank(), self.keep)}

    def _check_shrinks(self, params: Params) -> None:
        """What a message gets wrong is what the next one is about: there must be less of it."""
        size = sum(t.numel() for t in params.values())
        for part in compressors(self.compress):
            omega = part.claims(size).omega
            if omega is not None and omega >= 1:
                raise CompositionError(
                    f"Downlink(compress={part!r}): must get less wrong than it is given, since the next message is "
                    f"about what this one got wrong, got up to {omega:.3g} times as much in squares. Use "
                    "rounding='nearest', more bits, or smaller buckets."
                )

    def client_init(self, site: Site) -> ClientState:
        return Shadow(self.inner.client_init(site))

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        asked = {**self.asked(index, task, own.inner, site), "model": Whole({})}
        form = form_of("Downlink", self.compress, site.like)
        missed = _missed(own, task)
        can_follow = own.value.keys() == site.like.keys() and holds_all(index, site) and is_near(missed, self.keep)
        if not can_follow or len(missed) * form.size >= sum(site.like[name].nbytes for name in index.shapes):
            return {**asked, "shadow": index, "steps": THE_VERSION}
        return {**asked, "shadow": Whole({}), "steps": rows_of_log(form.shapes, missed, self.keep)}

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        steps, model, missed = dict(held["steps"]), dict(held["shadow"]), _missed(own, task)
        version = steps.pop(VERSION)
        if steps:
            check_kept(f"{self!r}: must get the messages", own.version, int(version), self.keep)
            form = form_of("Downlink", self.compress, site.like)
            model = {name: t.clone() for name, t in own.value.items()}
            for _, message in each_missed(steps, missed, self.keep):
                step = form.update(message)
                step.index.scatter_add_(model, step.values())
            version = version.new_tensor([task.version])
        rest = {stream: values for stream, values in held.items() if stream not in _OWN}
        return self.inner.receive({**rest, "model": model, "steps": {VERSION: version}}, index, task, own.inner, site)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        updates, inner = self.inner.finish(held, trained, index, task, own.inner, site)
        if not holds_all(index, site):
            return updates, Shadow(inner)
        return updates, Shadow(inner, int(held["steps"][VERSION]), dict(held["model"]))

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        shadow, steps = state.pop("shadow"), state.pop("steps")
        state = self.inner.commit(state, totals, replies)
        version = int(steps[VERSION]) + 1
        apart = {name: t - shadow[name] for name, t in state["model"].items()}
        sent, _ = self.compress.apply(Update(Whole(shapes_of(apart)), apart), (), generator(0, "downlink", version))
        steps = advanced(steps, form_of("Downlink", self.compress, shadow).read(sent))
        sent.index.scatter_add_(shadow, sent.values())
        return {**state, "shadow": shadow, "steps": steps}


def _missed(own: Shadow, task: Task) -> range:
    return range(own.version + 1, task.version + 1)
