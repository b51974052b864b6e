"""Gradients of one client without autograd: to the same bits, or not at all."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job
from partwise.core.population import Examples
from partwise.local import SGD, AdamW, Proximal
from partwise.runtimes.executors import Plain, plain, solo
from partwise.runtimes.executors.rules import RELU
from partwise.runtimes.executors.solo import RULES_ALONE, Solo
from partwise.runtimes.executors.tape import Tape, recorded
from partwise.testing import check_jobs
from toy_stack import CASES, CNN, MLP, SCALED, Case, ids, images, normal

KNOWN = ("mlp", "din", "sparse", "tied", "cnn")


class Images(nn.Module):
    """An image network around what is to be tried: 1 x 8 x 8 in, classes out."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            width = self.layers(torch.zeros(2, 1, 8, 8)).flatten(1).shape[1]
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layers(x).flatten(1))
        return result


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def case(*layers: nn.Module, channels_last: bool = False) -> Case:
    return Case(Model(lambda: Images(*layers), CrossEntropy(), channels_last=channels_last), images)


def conv(channels: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, **settings)


NETWORKS: dict[str, Callable[[], Case]] = {
    "convolution": lambda: case(conv()),
    "without a bias": lambda: case(conv(bias=False)),
    "strides, padding, dilation": lambda: case(conv(stride=2, padding=(1, 2), dilation=2)),
    "groups": lambda: case(conv(padding=1), conv(4, groups=2)),
    "two of them": lambda: case(conv(), nn.ReLU(), conv(4)),
    "pooling": lambda: case(conv(padding=1), nn.MaxPool2d(2)),
    "pooling that overlaps": lambda: case(conv(padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
    "pooling of what is left": lambda: case(conv(), nn.ReLU(), nn.MaxPool2d(4, ceil_mode=True)),
    "pooling before": lambda: case(conv(padding=1), nn.MaxPool2d(2), nn.ReLU(), conv(4)),
    "channels last": lambda: case(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(4), channels_last=True),
    "a convolution along a line": lambda: case(nn.Flatten(2), nn.Conv1d(1, 3, 5, stride=2), nn.Tanh()),
    "a convolution in space": lambda: case(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 3, (1, 3, 3))),
    "layer norm": lambda: case(nn.Flatten(1), nn.Linear(64, 6), nn.LayerNorm(6)),
    "softmax": lambda: case(nn.Flatten(1), nn.Linear(64, 6), nn.Softmax(1)),
    "two readers of a ReLU": lambda: case(conv(), Function(lambda x: F.max_pool2d(x.relu(), 1) + x.relu())),
}
LEFT_TO_AUTOGRAD: dict[str, Callable[[], Case]] = {
    "dropout": lambda: case(conv(), nn.Dropout(0.5)),
    "a named padding": lambda: case(conv(padding="same")),
    "layer norm without weights": lambda: case(
        nn.Flatten(1), nn.Linear(64, 6), nn.LayerNorm(6, elementwise_affine=False)
    ),
    "positions of pooling": lambda: case(conv(), Function(lambda x: F.max_pool2d(x, 2, return_indices=True)[0])),
    "a power": lambda: case(conv(), Function(lambda x: x**2)),
    "what is left out by chance": lambda: case(conv(), Function(lambda x: x.tanh() if torch.rand(()) < 0.9 else x)),
}


def tape_of(job: Job) -> Tape | None:
    return Solo().tape(job, list(job.start))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KNOWN)
def test_models_have_the_bits_of_autograd(name, dtype):
    jobs = CASES[name].jobs(dtype=dtype)
    assert tape_of(jobs[0]) is not None
    check_jobs(Plain(), jobs)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_bits_of_autograd(name):
    jobs = NETWORKS[name]().jobs(dtype=torch.float32)
    if name != "a convolution in space":  # unflatten is not known
        assert tape_of(jobs[0]) is not None
    check_jobs(Plain(), jobs)


@pytest.mark.parametrize("name", LEFT_TO_AUTOGRAD)
def test_what_is_left_to_autograd(name):
    jobs = LEFT_TO_AUTOGRAD[name]().jobs(dtype=torch.float32)
    assert tape_of(jobs[0]) is None
    check_jobs(Plain(), jobs)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_what_is_left_out_by_other_generators_is_left_to_autograd(draw):
    """The draw decides nothing here, so that no trial would come to something else."""
    drawing = case(conv(), Function(lambda x: x.tanh() if draw() < 2 else x)).jobs()
    assert tape_of(drawing[0]) is None
    assert tape_of(case(conv(), Function(torch.tanh)).jobs()[0]) is not None


@pytest.mark.parametrize("plan", [{"optimizer": AdamW(0.01)}, {"optimizer": SGD(0.1, momentum=0.9)}, {"batch_size": 0}])
def test_with_any_rule(plan):
    check_jobs(Plain(), CNN.jobs(**plan))


def test_with_gradient_terms_and_what_is_not_trainable():
    jobs = CNN.jobs(trainable=lambda name: name.startswith("conv"))
    terms = [replace(job.plan, gradient=(Proximal(0.1, job.start),)) for job in jobs]
    check_jobs(Plain(), [job._replace(plan=plan) for job, plan in zip(jobs, terms, strict=True)])


def test_autograd_is_called_in_the_trial_only(monkeypatch):
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(args) or grad(*args, **kwargs))
    executor, jobs = Plain(), CNN.jobs()
    executor.run(jobs)
    assert len(calls) == 1
    executor.run(jobs)
    assert len(calls) == 1
    Plain(autograd=True).run(jobs[:1])
    assert len(calls) == 1 + 2  # 7 examples in batches of 4


def test_relu_comes_after_pooling():
    tape = tape_of(CNN.jobs()[0])
    assert tape is not None
    kinds = [type(step.op).__name__ if step.op is not RELU else "ReLU" for step in tape.steps]
    assert kinds[:6] == ["_Convolution", "_MaxPool", "ReLU", "_Convolution", "_MaxPool", "ReLU"]


def test_relu_that_others_see_stays_where_it_is():
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3 * 80, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            result: Tensor = self.head(torch.cat([F.max_pool2d(x, 2).flatten(1), x.flatten(1)], 1))
            return result

    jobs = Case(Model(Seen, CrossEntropy()), images).jobs()
    tape = tape_of(jobs[0])
    assert tape is not None
    assert tape.steps[1].op is RELU
    check_jobs(Plain(), jobs)


def test_rule_with_other_bits_is_refused(monkeypatch):
    """A gradient that is as right as autograd's, but rounds otherwise."""

    class Off:
        takes_parameters, is_differentiable = False, True

        def forward(self, x: Tensor) -> tuple[Tensor, Any]:
            return x.tanh(), x.tanh()

        def backward(self, grad: Tensor, kept: Any, wanted: Any) -> Any:
            return (grad / (1 / (1 - kept * kept)),)

    jobs = case(conv(), nn.Tanh()).jobs()
    assert tape_of(jobs[0]) is not None
    monkeypatch.setattr(solo, "RULES_ALONE", {**RULES_ALONE, torch.tanh: lambda x: (Off(), (x,))})
    assert recorded(jobs[0].plan.loss.model, jobs[0].start, jobs[0].data.columns(), ["head.bias"], solo.RULES_ALONE)
    assert tape_of(jobs[0]) is None
    check_jobs(Plain(), jobs)


def test_client_that_cannot_be_trained_says_nothing_of_the_others(monkeypatch):
    jobs = CNN.jobs()
    bad = jobs[0]._replace(data=Examples({**jobs[0].data.columns(), "y": ids(4, 7, seed=1) + 90}))
    taped = []
    monkeypatch.setattr(plain, "mean_and_grads", lambda *args: taped.append(1) or solo.mean_and_grads(*args))
    found = Plain().run([bad, *jobs])
    assert isinstance(found[0], IndexError)
    assert len(taped) == sum(job.plan.num_steps(len(job.data)) for job in jobs)


def test_other_shapes_are_another_trial():
    executor = Solo()
    wide = Case(Model(lambda: Images(conv()), CrossEntropy()), images).jobs()[0]
    narrow = wide._replace(
        start={
            n: t[:2] if n.startswith("layers") else t[:, : t.shape[1] // 2] if t.dim() == 2 else t
            for n, t in wide.start.items()
        }
    )
    tapes = [executor.tape(job, list(job.start)) for job in (wide, narrow, wide)]
    assert tapes[0] is tapes[2]
    assert tapes[0] is not tapes[1] is not None
    check_jobs(Plain(), [wide, narrow])


def test_models_are_not_kept_alive():
    import gc
    import weakref

    def used() -> weakref.ref[Model]:
        of = Case(Model(lambda: Images(conv()), CrossEntropy()), images)
        executor.run(of.jobs())
        return weakref.ref(of.model)

    executor = Plain()
    seen = used()
    gc.collect()
    assert seen() is None


def test_it_can_be_sent():
    executor = Plain(autograd=True)
    assert pickle.loads(pickle.dumps(executor)) == executor != Plain()
    check_jobs(pickle.loads(pickle.dumps(Plain())), MLP.jobs()[:1])


def test_a_loss_that_is_not_a_number_is_that_of_autograd():
    jobs = [
        job._replace(data=Examples({**job.data.columns(), "x": normal(7, 1, 8, 8, seed=3) * torch.inf}))
        for job in CNN.jobs((7,))
    ]
    (one,), (other,) = Plain().run(jobs), Plain(autograd=True).run(jobs)
    assert str(one.loss) == str(other.loss) == "nan"
    torch.testing.assert_close(one.change, other.change, rtol=0, atol=0, equal_nan=True)


def test_parameter_that_the_loss_does_not_know():
    jobs = SCALED.jobs()
    assert "unused" in jobs[0].start
    check_jobs(Plain(), jobs)
