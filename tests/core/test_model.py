from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.model import BinaryCrossEntropy, CrossEntropy, Model, like
from partwise.core.plan import Job, LocalPlan, ModelLoss
from partwise.core.population import Examples
from partwise.local.optimizers import SGD
from partwise.runtimes.executors import Plain, Pool, Stacked


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_initial_parameters_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (
        Model(make, CrossEntropy()).init(1),
        Model(make, CrossEntropy()).init(1),
        Model(make, CrossEntropy()).init(2),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])


def test_floating_buffers_are_parameters_and_integer_ones_are_not():
    model = Model(make, CrossEntropy())
    assert set(model.init(0)) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias",
    }  # fmt: skip
    assert model.buffers() == {"1.running_mean", "1.running_var"}


def test_outputs_are_those_of_the_module_with_these_parameters_and_it_keeps_its_own():
    module = make()
    model = Model(module, CrossEntropy())
    params = {n: t + 0.25 for n, t in model.init(0).items()}
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    got = model.outputs(params, {"x": x})
    own = {n: t.clone() for n, t in module.state_dict().items()}
    other = make()
    other.load_state_dict(params, strict=False)
    assert torch.equal(got, other.eval()(x))
    assert all(torch.equal(t, own[n]) for n, t in module.state_dict().items())
    assert isinstance(module[0].weight, nn.Parameter)


class Counts(nn.Module):
    """Counters that two modules share, that are set anew, and that are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=None)
        self.register_buffer("twice", self.norm.num_batches_tracked)
        self.register_buffer("late", torch.tensor([7, 11]))
        self.register_buffer("has_run", torch.tensor(False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.has_run
        self.has_run.fill_(True)
        self.late = self.late + 3
        x = self.norm(x) * self.late.sum()
        if x[0, 0].isnan():
            raise ArithmeticError("not a number")
        return x + self.twice


def test_integer_buffers_begin_anew_with_every_call_and_the_module_keeps_its_own():
    module = Counts()
    model, rng = Model(module, CrossEntropy()), torch.Generator().manual_seed(1)
    params, buffers = model.init(0), dict(module.named_buffers())
    own = {name: t.clone() for name, t in module.state_dict().items()}
    for x in torch.randn(2, 5, 3, generator=rng):
        seen = {name: t.clone() for name, t in params.items()}
        got = model.outputs(seen, {"x": x}, training=True)
        mean, variance = x.double().mean(0), x.double().var(0, unbiased=False)
        expected = (x - mean) / (variance + 1e-5).sqrt() * (7 + 3 + 11 + 3) + 1
        assert torch.allclose(got.double(), expected, atol=1e-4)
        assert torch.allclose(seen["norm.running_mean"].double(), mean, atol=1e-6)  # that of the first batch it sees
    with pytest.raises(ArithmeticError, match="not a number"):
        model.outputs(params, {"x": torch.full((5, 3), float("nan"))}, training=True)
    assert all(torch.equal(t, own[name]) for name, t in module.state_dict().items() if name in buffers)
    assert all(t is buffers[name] for name, t in module.named_buffers())


def test_a_narrower_model_runs_under_narrower_parameters():
    model = Model(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), CrossEntropy())
    p = model.init(3)
    thin = {
        "0.weight": p["0.weight"][:2],
        "0.bias": p["0.bias"][:2],
        "2.weight": p["2.weight"][:, :2],
        "2.bias": p["2.bias"],
    }
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = (x @ p["0.weight"][:2].T + p["0.bias"][:2]).clamp(min=0) @ p["2.weight"][:, :2].T + p["2.bias"]
    assert torch.allclose(model.outputs(thin, {"x": x}), expected, atol=1e-6)


def test_a_tensor_that_two_layers_share_is_one_parameter():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model = Model(Tied, CrossEntropy())
    assert list(model.init(0)) == ["a.weight"]
    out = model.outputs({"a.weight": 2 * torch.eye(3)}, {"x": torch.ones(1, 3)})
    assert out.tolist() == [[4.0, 4.0, 4.0]]


def test_a_table_that_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match=r"tables and widths must name parameters, got \['emb.weight'\]"):
        Model(make, CrossEntropy(), tables={"emb.weight": ("ids",)}).init(0)


def test_a_table_with_a_row_that_does_not_move_is_refused():
    model = Model(lambda: nn.Embedding(9, 3, padding_idx=2), CrossEntropy(), ("ids",), {"weight": ("ids",)})
    with pytest.raises(ValueError, match=r"rows of 'weight' must be alike, .*, got padding_idx=2\. Leave it out"):
        model.init(0)


def test_like_has_no_storage():
    meta = like({"w": torch.zeros(7, 2, dtype=torch.float64)})["w"]
    assert (meta.device.type, tuple(meta.shape), meta.dtype) == ("meta", (7, 2), torch.float64)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("executor", [Plain(), Plain(autograd=True), Stacked()], ids=repr)
def test_losses_that_are_not_one_per_example_are_refused_by_every_executor(width, executor):
    """`Stacked` would add up what `Plain` averages: gradients as many times too long as a batch has examples."""
    model = Model(lambda: nn.Linear(3, width), BinaryCrossEntropy())
    plan = LocalPlan(ModelLoss(model), SGD(0.1), batch_size=4, steps=2)
    columns = {"x": torch.ones(8, 3), "y": torch.ones(8, width)}
    found = executor.run([Job(plan, model.init(1), Examples(columns), seed=c) for c in range(3)])
    for one in found:
        assert isinstance(one, ValueError)
        assert f"must give one loss per example, (b,), got shape (4, {width})" in str(one)


class SomeOf:
    """Cross entropy of some of a batch, or of all of it twice."""

    def __init__(self, pick):
        self._pick = pick

    def __call__(self, outputs, batch):
        return self._pick(CrossEntropy()(outputs, batch))


@pytest.mark.parametrize(
    ("pick", "many"), [(lambda losses: losses[:1], 1), (lambda losses: torch.cat([losses, losses]), 8)]
)
@pytest.mark.parametrize("executor", [Plain(), Plain(autograd=True), Stacked()], ids=repr)
def test_losses_of_fewer_or_more_than_the_examples_are_refused_by_every_executor(pick, many, executor):
    """Of one loss for four examples `Stacked` would make four, and `Plain` the mean of one."""
    plan = LocalPlan(ModelLoss(Model(lambda: nn.Linear(3, 2), SomeOf(pick))), SGD(0.1), batch_size=4, steps=2)
    columns = {"x": torch.ones(8, 3), "y": torch.zeros(8, dtype=torch.int64)}
    found = executor.run([Job(plan, plan.loss.model.init(1), Examples(columns), seed=c) for c in range(3)])
    for one in found:
        assert isinstance(one, ValueError)
        assert f"must give one loss per example, (b,), got {many} for 4 examples." in str(one)


class Moving(nn.Module):
    """Buffers that are set anew: one before it is used, one whose old value the backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.mean = 0.75 * self.mean + 0.25 * x.mean(0)
        found = self.out(x - self.mean) * self.size
        if self.training:
            self.size = 0.75 * self.size + 0.25 * x.abs().mean()
        return found


@pytest.mark.parametrize("executor", [Plain(), Stacked()], ids=repr)
def test_buffers_that_forward_sets_anew_move_as_in_a_loop_over_the_module(executor):
    model = Model(Moving, CrossEntropy())
    start = model.init(4)
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 0])
    plan = LocalPlan(ModelLoss(model), SGD(lr=0.5), batch_size=0, epochs=3, buffers=model.buffers())
    results = executor.run([Job(plan, start, Examples({"x": x, "y": y}), 1)] * 2)
    module = Moving()
    module.load_state_dict(start)
    rule = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(3):
        rule.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        rule.step()
    for found in results:
        for name, value in module.state_dict().items():
            assert torch.allclose(start[name] + found.change[name], value, rtol=0, atol=1e-6)
    assert not found.change["mean"].eq(0).any()


def test_evaluation_moves_no_buffer_and_a_buffer_keeps_its_shape():
    model = Model(Moving, CrossEntropy())
    params = model.init(4)
    model.outputs(params, {"x": torch.ones(2, 3)})
    assert not params["mean"].any()

    class Growing(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen = torch.cat([self.seen, x[:, 0]])
            return super().forward(x)

    growing = Model(Growing, CrossEntropy())
    with pytest.raises(ValueError, match=r"leave buffer 'seen' with its shape \(1,\), got \(3,\)\. Keep what"):
        growing.outputs(growing.init(0), {"x": torch.ones(2, 3)}, training=True)


def half_frozen() -> nn.Module:
    """As of a pretrained part with a new head."""
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(4, 2))


@pytest.mark.parametrize("executor", [Plain(autograd=True), Plain(), Stacked(), Pool(workers=1)], ids=repr)
def test_what_is_frozen_is_no_parameter_and_stays(executor):
    module = half_frozen()
    model = Model(module, CrossEntropy())
    body = {name: t.clone() for name, t in module[0].state_dict().items()}
    start = model.init(4)
    assert sorted(start) == ["1.bias", "1.weight"]
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 0])
    plan = LocalPlan(ModelLoss(model), SGD(lr=0.5), batch_size=0, epochs=3)
    results = executor.run([Job(plan, start, Examples({"x": x, "y": y}), 1)] * 2)
    other = half_frozen()
    rule = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        rule.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        rule.step()
    for found in results:
        assert not isinstance(found, Exception), found
        for name, value in other[1].named_parameters():
            assert torch.allclose(start[f"1.{name}"] + found.change[f"1.{name}"], value, rtol=0, atol=1e-6)
    assert all(torch.equal(t, body[name]) for name, t in module[0].state_dict().items())
    logits = model.outputs({f"1.{n}": t for n, t in other[1].state_dict().items()}, {"x": x})
    assert torch.allclose(logits, other(x), atol=1e-6)


def test_a_module_that_is_frozen_as_a_whole_is_refused():
    with pytest.raises(ValueError, match=r"needs something to train, got a module of which no parameter requires a gr"):
        Model(make().requires_grad_(False), CrossEntropy()).init(1)


@pytest.mark.parametrize(
    ("loss", "got"),
    [(CrossEntropy, "the class CrossEntropy"), (nn.CrossEntropyLoss(), r"torch's CrossEntropyLoss\(\)")],
)
def test_a_loss_that_takes_other_things_is_refused(loss, got):
    """A client would call it with outputs and a batch, and each would be lost for it."""
    with pytest.raises(TypeError, match=rf"must take outputs and a batch .*, got {got}\. Take CrossEntropy\(\)"):
        Model(make, loss)


def test_what_makes_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must make an nn\.Module, got None\. Return the module from it\."):
        Model(lambda: None, CrossEntropy()).init(1)


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.turn).abs()


def test_a_complex_parameter_would_never_be_trained():
    with pytest.raises(ValueError, match=r"must be real, got torch\.complex64 for 'turn', which would stay as it is"):
        Model(_Complex, CrossEntropy()).init(1)
    still = nn.Sequential(_Complex().requires_grad_(False), nn.Linear(2, 2))
    assert sorted(Model(still, CrossEntropy()).init(1)) == ["1.bias", "1.weight"]


@pytest.mark.parametrize(
    "module", [lambda: nn.LazyLinear(2), lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d())]
)
def test_a_lazy_module_has_no_shapes(module):
    with pytest.raises(
        ValueError, match=r"Model\(module=\.\.\.\): must know the shapes of its parameters, got '.*weight'"
    ):
        Model(module, CrossEntropy()).init(1)


def test_a_lazy_module_that_was_called_has():
    def made():
        module = nn.LazyLinear(2)
        module(torch.zeros(1, 3))
        return module

    assert Model(made, CrossEntropy()).init(1)["weight"].shape == (2, 3)


@pytest.mark.parametrize(("losses", "got"), [(None, "a NoneType"), (1.5, "a float")])
def test_a_loss_that_is_no_tensor_is_named(losses, got):
    model = Model(lambda: nn.Linear(3, 2), lambda outputs, batch: losses)
    with pytest.raises(ValueError, match=rf"must give one loss per example, \(b,\), got {got}\."):
        model.losses(model.init(1), {"x": torch.zeros(4, 3)})
