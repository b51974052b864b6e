"""What a client of `Distillation` keeps."""

from __future__ import annotations

import math

import torch
from torch import nn

from partwise.algorithms import Distillation
from partwise.core.algorithm import Task
from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Trained
from partwise.core.population import Examples
from toy_star import Clients, Cohorts, star_of


def test_a_task_without_a_finite_result_leaves_the_model_as_it_was():
    data = {"x": torch.eye(2), "y": torch.tensor([0, 1])}
    model = Model(lambda: nn.Linear(2, 2), CrossEntropy())
    part, public = Distillation(rows=2, batch=0), Examples({"x": torch.ones(4, 2)})
    star = star_of(part, model, Clients([data]), Cohorts(((0,),)), trusted=public)
    site, task = star.site(0), Task(1, 0, 0, 0)
    own = star.algorithm.client_init(site)
    index = star.algorithm.select(task, own, site)
    for broken in ("weight", "bias"):
        change = {name: torch.full_like(t, math.nan if name == broken else 0.0) for name, t in own.items()}
        sent, kept = star.algorithm.finish({"model": own}, Trained(change, 1, 0.0, 0), index, task, own, site)
        assert not sent["targets"].values()["public"].isfinite().any()  # which the server refuses
        assert all(torch.equal(kept[name], t) for name, t in own.items())
