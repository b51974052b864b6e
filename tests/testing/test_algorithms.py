"""Each rule of the contract of algorithms can be broken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.algorithm import Algorithm
from partwise.core.update import scale
from partwise.testing import check, check_algorithm


def wrong(params, batch, rng):
    return params["hidden.bias"].sum(), {}


def decays(params, grads, step):
    for value in params.values():
        value.mul_(0.9)
    return grads


TERMS = {
    "term of another shape": lambda params, grads, step: {n: g.mean() for n, g in grads.items()},
    "term of other names": lambda params, grads, step: {**grads, "else": torch.zeros(3)},
    "term that gives nothing": lambda params, grads, step: None,
    "term that writes": decays,
}


@dataclass(frozen=True)
class BrokenAlgorithm(Algorithm):
    """FedAvg with one fault."""

    fault: str = ""

    def init(self, params, census):
        if self.fault == "no state":
            return None
        if self.fault == "no copy":
            return {"model": dict(params)}
        if self.fault == "a number in a stream":
            return {"model": {n: t.clone() for n, t in params.items()}, "rounds": 0}
        if self.fault == "a stream of its own":
            return {
                "model": {n: t.clone() for n, t in params.items()},
                "rate": {"rate": params["out.bias"].new_zeros(())},
            }
        return {"control" if self.fault == "no model" else "model": {n: t.clone() for n, t in params.items()}}

    def client_init(self, site):
        return {} if self.fault == "never asked" else None

    def select(self, task, own, site):
        return None if self.fault == "no index" else Algorithm.select(self, task, own, site)

    def fetch(self, index, task, own, site):
        return {"modell": index} if self.fault == "fetches another" else Algorithm.fetch(self, index, task, own, site)

    def weight(self, site):
        return -1.0 if self.fault == "weight" else float(len(site.data))

    def aggregators(self):
        return None if self.fault == "no aggregators" else Algorithm.aggregators(self)

    def personalize(self, values, own):
        if self.fault == "never asked":
            return {**values, **own}
        return None if self.fault == "no values" else values

    def examples(self, index, own, site):
        return dict(site.data.columns()) if self.fault == "columns" else Algorithm.examples(self, index, own, site)

    def report(self, held, trained, task, own, site):
        return None if self.fault == "no report" else {}

    def plan(self, held, index, task, own, site):
        plan = FedAvg().local.plan(site, task, loss=wrong if self.fault == "no loss" else None)
        if self.fault == "trains the held values":
            held["model"]["hidden.bias"].add_(1)
        if self.fault in TERMS:
            plan = replace(plan, gradient=(TERMS[self.fault],))
        return {"steps": 3} if self.fault == "no plan" else plan

    def finish(self, held, trained, index, task, own, site):
        updates, own = Algorithm.finish(self, held, trained, index, task, own, site)
        match self.fault:
            case "chance":
                updates = {"model": scale(updates["model"], float(torch.rand(())))}
            case "no streams":
                updates = updates["model"]
            case "own assertion":
                assert site.client < 0, "no such client"
            case "other stream":
                updates = {"control": updates["model"]}
            case "whole index":
                updates = {
                    "model": replace(updates["model"], value={n: v.sum() for n, v in updates["model"].value.items()})
                }
            case "spoils the result":
                trained.change["hidden.bias"].zero_()
        return updates, own

    def commit(self, state, totals, replies):
        state = Algorithm.commit(self, state, totals, replies)
        if self.fault == "no commit":
            return None
        return {"model": {n: t.double() for n, t in state["model"].items()}} if self.fault == "type" else state


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("term of another shape", r"the gradient term .* in their shapes, got \{'table.weight': \(\), "),
        ("term of other names", r"the gradient term .* in their shapes, got \{'else': \(3,\)\}"),
        ("term that gives nothing", "the gradient term .* in their shapes, got None"),
        ("term that writes", "must leave the parameters that the gradient term .* is given as it is"),
        ("", None),
        ("no state", "`init` must give parameters by stream, got None"),
        ("no index", "must select an index, got None"),
        ("fetches another", r"must fetch from streams that there are, \['model'\], got \['modell'\]"),
        ("a stream of its own", r"must fetch parts of what a stream has, .*, got \['rate'\]\. Name the streams"),
        ("no commit", "`commit` must give the next parameters by stream, got None"),
        ("no copy", "must leave the parameters that `init` is given as it is"),
        ("no model", r"must have parameters for each of its streams \['model'\]"),
        ("weight", "a weight is a finite number, at least 0, got -1.0"),
        ("trains the held values", "must leave the held values as it is"),
        ("no plan", "plan must give a LocalPlan, got dict"),
        ("chance", "must depend on task, held values, client state and site alone"),
        ("other stream", r"for each of its streams \['model'\], and for no other, got \['control'\]"),
        ("a number in a stream", r"`init` must give parameters by stream, got \{'rounds': 'int'\}"),
        ("no aggregators", "must name an aggregator for each stream, got None"),
        ("no values", "must personalize values by name, got None"),
        ("never asked", "of a client that was never asked, whose state is None, got TypeError"),
        ("columns", r"must choose examples, got dict\. Return Examples"),
        ("no report", r"must report numbers by name, got None\. Return {} for none"),
        ("no loss", "its plan must run on client 0, got A[a-z]+Error"),  # torch asserts it, or fails, by its version
        ("no streams", "must finish with updates by stream, got Update"),
        ("own assertion", "must report and finish a task, got AssertionError: no such client"),
        ("whole index", "must give an update that fits the model"),
        ("spoils the result", "must leave the training result as it is"),
        ("type", "must keep names, shapes and types"),
    ],
)
def test_algorithm_rule_fails(fault, says):
    if says is None:
        check_algorithm(BrokenAlgorithm())
    else:
        with pytest.raises(AssertionError, match=rf"^BrokenAlgorithm\(fault='{fault}'\): .*{says}"):
            check(BrokenAlgorithm(fault))
