"""The contract of algorithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from partwise.core.aggregate import Aggregator, sum_updates
from partwise.core.algorithm import Algorithm, Site, Task
from partwise.core.index import Index
from partwise.core.model import Model, Params, Values
from partwise.core.plan import GradientTerm, Job, LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.runtimes.executors.plain import Plain
from partwise.testing.examples import example_census, example_model, example_sites
from partwise.testing.indices import check_index
from partwise.testing.rules import check_fits, check_part, check_same, expect, saved, snapshot, trying, unchanged

__all__ = ["check_algorithm"]

_STEPS = 2


def check_algorithm(part: Algorithm, *, model: Model | None = None, sites: Sequence[Site] | None = None) -> None:
    """Check that an algorithm keeps the rules of its family, in two rounds with three clients.

    Args:
        part: the algorithm.
        model: what it trains; by default a small classifier with a table and a layer that can be thinned.
        sites: its clients; by default three that differ in rows, examples and width. Needed with a model of your own.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.algorithms import FedAvg
        >>> check_algorithm(FedAvg())
    """
    check_part(part)
    model = model or example_model()
    sites = list(sites or example_sites(model))
    params = model.init(sites[0].seed)
    before = snapshot(part, params, "the parameters"), repr(part), sorted(vars(part))
    census = _census(part, sites, params)
    with trying(part, "must build the server's state"):
        state = part.init(params, census)
    reducing = _aggregators(part)
    names = sorted(reducing)
    rule = "`init` must give parameters by stream"
    expect(isinstance(state, Mapping), part, rule, got=state, remedy="Return them")
    others = {s: type(params).__name__ for s, params in state.items() if not isinstance(params, Mapping)}
    expect(not others, part, rule, got=others, remedy="Keep what is no tensor as one, in a stream of its own")
    has_all = "model" in state and state.keys() >= set(names)
    rule = f"must have parameters for each of its streams {names}, and for `model`"
    expect(has_all, part, rule, got=sorted(state), remedy="Make `init` and `aggregators` agree")
    reducers = {stream: a.init(state[stream], census) for stream, a in reducing.items()}
    owns: list[Any] = [None] * len(sites)
    for version in range(2):
        replies = []
        for i, site in enumerate(sites):
            reply = _client(part, site, owns[i], state, version)
            owns[i] = reply.own
            replies.append(reply)
        totals = _reduced(part, replies, state, reducers, version)
        state = _committed(part, state, totals, replies, version)
    unchanged(part, before[0], params, "the parameters that `init` is given")
    expect(
        (repr(part), sorted(vars(part))) == before[1:],
        part,
        "must keep its state outside itself",
        got="a part that changed",
        remedy="Return the state",
    )


def _aggregators(part: Algorithm) -> Mapping[str, Aggregator]:
    with trying(part, "must name its aggregators"):
        found = part.aggregators()
    is_right = isinstance(found, Mapping) and all(
        isinstance(a, Aggregator) and not isinstance(a, type) for a in found.values()
    )
    expect(is_right, part, "must name an aggregator for each stream", got=found, remedy='Return {"model": Mean()}')
    return found


class _Reply(NamedTuple):
    site: Site
    trained: Trained
    updates: dict[str, Update]
    own: Any
    told: Mapping[str, float]


def _task(site: Site, version: int) -> Task:
    return Task(version * 100 + site.client, version, 0, _STEPS)


def _census(part: Algorithm, sites: Sequence[Site], params: Params) -> Census:
    """Who holds what, asked at version 0 as a star would."""
    asked = []
    for site in sites:
        with trying(part, "must select before any training"):
            index = part.select(_task(site, 0), part.client_init(site), site)
            weight = part.weight(site)
        expect(isinstance(index, Index), part, "must select an index", got=index, remedy="site.whole() is everything")
        is_number = isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0
        expect(is_number, part, "a weight is a finite number, at least 0", got=weight, remedy="Count examples")
        asked.append(Update(index, {}, float(weight)))
    return example_census(asked, params)


def _client(part: Algorithm, site: Site, own: Any, state: Any, version: int) -> _Reply:
    task = _task(site, version)
    own = part.client_init(site) if version == 0 else own
    copy = saved(part, own)
    reply = _work(part, site, task, own, state)
    with trying(part, "must go on from a saved client state"):
        again = _work(part, site, task, copy, state)
    check_same(
        part,
        (reply.updates, reply.own),
        (again.updates, again.own),
        "must depend on task, held values, client state and site alone, and survive saving",
        "Derive randomness with site.derive(purpose, task), and keep all state in what is returned",
    )
    return reply


def _work(part: Algorithm, site: Site, task: Task, own: Any, state: Any) -> _Reply:
    with trying(part, "must select an index"):
        index = part.select(task, own, site)
    check_index(index, state["model"])
    with trying(part, "must say what it fetches"):
        streams = part.fetch(index, task, own, site)
    asked = dict.fromkeys(state, index) if streams is None else streams
    rule = f"must fetch from streams that there are, {sorted(state)}"
    expect(asked.keys() <= state.keys(), part, rule, got=sorted(asked), remedy="Make `init` and `fetch` agree")
    misfits = [stream for stream, at in asked.items() if not _is_part(at, state[stream])]
    rule = "must fetch parts of what a stream has, also where that is not what the model has"
    expect(not misfits, part, rule, got=misfits, remedy="Name the streams that clients want in `fetch`")
    came = {stream: at.gather(state[stream]) for stream, at in asked.items()}
    what_came = snapshot(part, came, "what was fetched")
    with trying(part, "must receive what it fetches"):
        held = part.receive(came, index, task, own, site)
    unchanged(part, what_came, came, "what was fetched")
    before = snapshot(part, held, "held values")
    with trying(part, "must plan local training"):
        plan = part.plan(held, index, task, own, site)
        start = part.personalize(held["model"], own)
    expect(isinstance(start, Mapping), part, "must personalize values by name", got=start, remedy="Return them")
    if part.is_personal:
        with trying(part, "must personalize values of a client that was never asked, whose state is None"):
            part.personalize(held["model"], None)
    expect(
        isinstance(plan, LocalPlan), part, "plan must give a LocalPlan", got=type(plan).__name__, remedy="Return one"
    )
    with trying(part, "must choose examples"):
        data = part.examples(index, own, site)
    is_data = all(hasattr(data, name) for name in ("__len__", "batch", "columns"))
    expect(is_data, part, "must choose examples", got=type(data).__name__, remedy="Return Examples(columns)")
    plan = replace(plan, gradient=tuple(_Watched(part, term) for term in plan.gradient))
    with trying(part, f"its plan must run on client {site.client}"):
        trained = Plain().run([Job(plan, {**start, **plan.extra}, data, site.derive("work", task))])[0]
    if isinstance(trained, _BrokenTermError):
        raise AssertionError(str(trained)) from trained
    if isinstance(trained, Exception):
        raise AssertionError(
            f"{part!r}: its plan must run, got {type(trained).__name__}: {trained} on client {site.client}."
        ) from trained
    after = snapshot(part, trained, "a training result")
    with trying(part, "must report and finish a task"):
        told = part.report(held, trained, task, own, site)
        updates, own = part.finish(held, trained, index, task, own, site)
    unchanged(part, before, held, "the held values")
    unchanged(part, after, trained, "the training result")
    rule = "must finish with updates by stream"
    got = type(updates).__name__
    expect(isinstance(updates, Mapping), part, rule, got=got, remedy='Return {"model": Update(...)}, own')
    expect(isinstance(told, Mapping), part, "must report numbers by name", got=told, remedy="Return {} for none")
    is_finite = all(isinstance(number, (int, float)) and math.isfinite(number) for number in told.values())
    expect(is_finite, part, "must report finite numbers by name", got=told, remedy="Leave out what is not")
    return _Reply(site, trained, updates, own, told)


class _BrokenTermError(ValueError):
    """A gradient term that breaks a rule, in the words of `expect`: of the kind that an executor gives as a result."""


@dataclass(frozen=True, eq=False)
class _Watched:
    """A gradient term of an algorithm's plan, and whether it gives gradients."""

    part: Algorithm
    term: GradientTerm

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        before = snapshot(self.part, params, "parameters")
        shapes = {name: tuple(t.shape) for name, t in grads.items()}
        found = self.term(params, grads, step)
        try:
            unchanged(self.part, before, params, f"the parameters that the gradient term {self.term!r} is given")
            rule = f"the gradient term {self.term!r} must give gradients of what it got them for, in their shapes"
            made = {n: tuple(t.shape) for n, t in found.items()} if isinstance(found, Mapping) else {}
            wrong = {name: shape for name, shape in made.items() if shapes.get(name) != shape}
            is_right = isinstance(found, Mapping) and not wrong
            got = wrong if isinstance(found, Mapping) else found
            expect(is_right, self.part, rule, got=got, remedy="Another shape would be stretched over the parameter")
        except AssertionError as error:
            raise _BrokenTermError(str(error)) from error
        return found


def _is_part(index: Index, params: Params) -> bool:
    """Whether an index is over parameters that there are, in their shapes."""
    return all(n in params and tuple(params[n].shape) == tuple(shape) for n, shape in index.shapes.items())


def _infos(replies: Sequence[_Reply], version: int) -> list[ReplyInfo]:
    return [
        ReplyInfo(
            _task(r.site, version).id,
            r.site.client,
            version,
            r.trained.steps,
            len(r.site.data),
            r.trained.loss,
            report=r.told,
        )
        for r in replies
    ]


def _reduced(
    part: Algorithm, replies: Sequence[_Reply], state: Any, reducers: dict[str, Any], version: int
) -> dict[str, Update]:
    totals, infos = {}, _infos(replies, version)
    streams = part.aggregators()
    for reply in replies:
        expect(
            reply.updates.keys() == streams.keys(),
            part,
            f"must reply with an update for each of its streams {sorted(streams)}, and for no other",
            got=sorted(reply.updates),
            remedy="Make `finish` and `aggregators` agree",
        )
    for stream, aggregator in streams.items():
        params = state[stream]
        for reply in replies:
            check_fits(part, reply.updates[stream], params)
        updates = [reply.updates[stream].unpacked() for reply in replies]
        got = sum_updates(updates, params) if aggregator.needs == "sum" else updates
        totals[stream], reducers[stream] = aggregator.reduce(got, reducers[stream], params, infos)
    return totals


def _committed(part: Algorithm, state: Any, totals: dict[str, Update], replies: Sequence[_Reply], version: int) -> Any:
    """The next server state, the same from a saved one; names, shapes and types stay."""
    infos = _infos(replies, version)
    copy = saved(part, state)
    with trying(part, "must commit"):
        again = part.commit(copy, totals, infos)
        before = {stream: {n: (t.shape, t.dtype) for n, t in params.items()} for stream, params in state.items()}
        state = part.commit(state, totals, infos)
    rule = "`commit` must give the next parameters by stream"
    expect(isinstance(state, Mapping), part, rule, got=state, remedy="Return them")
    check_same(part, state, again, "must commit the same from a saved state", "Keep all state in what is returned")
    after = {stream: {n: (t.shape, t.dtype) for n, t in params.items()} for stream, params in state.items()}
    expect(after == before, part, "must keep names, shapes and types", got="others", remedy="Add to the parameters")
    return state
