"""Zeno, Zeno++ and SLSGD: the tables of robustness.md §4 to §6, by hand and by plain loops."""

import math
from dataclasses import dataclass

import pytest
import torch

from partwise.aggregators import SLSGD, TrimmedMean, Zeno, ZenoPlusPlus
from partwise.core.index import Coords, Whole
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Census, Examples
from partwise.core.probe import ModelProbe, Probe, probed
from partwise.core.update import Update
from partwise.testing.examples import example_probe
from toy_updates import aggregate, whole

ONES = {"w": torch.ones(2, dtype=torch.float64)}
GRADIENTS = {(1.0, 1.0): 0.189, (-1.0, -1.0): -0.211, (10.0, -10.0): -1.1, (0.0, 0.0): 0.0, (0.5, 1.5): 0.18625}
GRADIENTS |= {(20.0, 20.0): -0.4}
# The server steps by -γ u: an update is that step, and the penalty is on u, so that ρ of the update is ρ / γ².
GAMMA, RHO = 0.1, 0.1 / 200


def sent(gradients):
    return whole([[-GAMMA * x for x in u] for u in gradients])


def test_scores_of_the_table():
    part = Zeno(f=3, rho=RHO / GAMMA**2, penalty="sum", probe=example_probe())
    assert part.scores(sent(GRADIENTS), ONES, 0) == pytest.approx(list(GRADIENTS.values()), abs=1e-12)
    mean = Zeno(f=3, rho=2 * RHO / GAMMA**2, probe=example_probe())  # of two coordinates
    assert mean.scores(sent(GRADIENTS), ONES, 0) == pytest.approx(list(GRADIENTS.values()), abs=1e-12)
    plain = Zeno(f=3, rho=RHO, rate=GAMMA, penalty="sum", probe=example_probe())  # as the table has it, by γ itself
    whole_steps = whole([[-x for x in u] for u in GRADIENTS])
    assert plain.scores(whole_steps, ONES, 0) == pytest.approx(list(GRADIENTS.values()), abs=1e-12)


def test_what_is_just_good_enough_is_accepted():
    """§5: γ <v, g~> - ρ ‖g~‖² + γ ε >= 0. g = (4, -3) is across v = (3, 4), so that without ρ and ε this is 0."""
    part, params = ZenoPlusPlus(rate=0.1, rho=0.0, probe=example_probe()), {"w": torch.tensor([3.0, 4.0]).double()}
    assert aggregate(part, whole([[-4.0, 3.0]]), params).values()["w"].tolist() == pytest.approx([-0.4, 0.3])


def test_the_best_of_five_are_averaged():
    part = Zeno(f=3, rho=RHO / GAMMA**2, penalty="sum", probe=example_probe())
    got = aggregate(part, sent(list(GRADIENTS)[:5]), ONES)
    assert (got.values()["w"] / -GAMMA).tolist() == pytest.approx([0.75, 1.25])


def test_worst_kept_is_no_worse_than_the_worst_honest():
    rng = torch.Generator().manual_seed(2)
    part = Zeno(f=4, probe=example_probe())
    for q in range(5):  # of seven faulty, at most f; 1,000 trials each, out of a hundred of each kind
        honest = whole((-0.1 * ONES["w"] + 0.2 * torch.randn(100, 2, generator=rng).double()).tolist())
        size = 10.0 ** (torch.arange(100) % 4 - 2).double().unsqueeze(1)
        bad = whole((size * torch.randn(100, 2, generator=rng).double()).tolist())
        good, poor = (torch.tensor(part.scores(u, ONES, 0), dtype=torch.float64) for u in (honest, bad))
        own = good[torch.randint(100, (1000, 7 - q), generator=rng)]
        others = poor[torch.randint(100, (1000, q), generator=rng)]
        kept = torch.cat([own, others], 1).sort(1, descending=True).values[:, : 7 - 4]
        assert bool((kept[:, -1] >= own.min(1).values).all())


def test_without_penalty_it_ranks_by_exact_decrease():
    """Of a linear model on all the server's examples, against a plain loop; the best three of seven are averaged."""
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(20, 2, generator=rng), torch.randint(2, (20,), generator=rng)
    model = Model(lambda: torch.nn.Linear(2, 2, bias=False), CrossEntropy())
    params, rows = {"weight": torch.zeros(2, 2)}, torch.randn(7, 2, 2, generator=rng)
    updates = [Update(Whole({"weight": (2, 2)}), {"weight": row}) for row in rows]

    def loss(w):
        total = 0.0
        for point, label in zip(x.double().tolist(), y.tolist(), strict=True):
            scores = [sum(a * b for a, b in zip(row, point, strict=True)) for row in w]
            total += math.log(sum(map(math.exp, scores))) - scores[label]
        return total / 20

    expected = [loss([[0.0] * 2] * 2) - loss(row.double().tolist()) for row in rows]
    part = Zeno(f=4, rho=0.0, examples=0, probe=ModelProbe(model, Examples({"x": x, "y": y})))
    assert part.scores(updates, params, 0) == pytest.approx(expected, abs=1e-5)
    best = sorted(range(7), key=expected.__getitem__)[-3:]
    got = part.reduce(updates, 0, params)[0].values()["weight"]
    assert torch.allclose(got, rows[best].mean(0), atol=1e-6)


def test_scoring_leaves_running_statistics_as_they_are():
    rng = torch.Generator().manual_seed(3)
    data = Examples({"x": 5 + torch.randn(20, 2, generator=rng), "y": torch.arange(20) % 2})
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    model = Model(module, CrossEntropy())
    params = model.init(1)
    before = {name: t.clone() for name, t in params.items()}
    own = {name: t.clone() for name, t in module.state_dict().items()}
    index = Whole({name: tuple(t.shape) for name, t in params.items()})
    updates = [Update(index, {n: torch.full_like(t, 0.1 * i) for n, t in params.items()}) for i in range(3)]
    part = Zeno(f=1, examples=0, probe=ModelProbe(model, data))
    first = part.scores(updates, params, 0)
    assert part.scores(updates[::-1], params, 0) == first[::-1]
    assert all(torch.equal(t, before[name]) for name, t in params.items())
    assert all(torch.equal(t, own[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [Zeno(f=1, probe=example_probe()), SLSGD(1)], ids=repr)
def test_what_is_not_finite_counts_among_the_faulty(part, bad):
    """One is left out as one of f; two are more than the rule is built for."""
    rows = [[-0.1, -0.1], [-0.2, -0.2], [-0.3, -0.3]]
    got = aggregate(part, whole([*rows, [bad, -0.1]]), ONES).values()["w"]
    assert got.tolist() == pytest.approx([-0.2, -0.2])
    with pytest.raises(ValueError, match=r"allows 1 faulty among 5 updates, got 2 that are not finite"):
        aggregate(part, whole([*rows, [bad, 0.0], [0.0, bad]]), ONES)


def test_one_honest_client_is_enough():
    rows = [[-0.1, -0.1], *[[5.0 + i, 3.0] for i in range(6)]]
    assert aggregate(Zeno(f=6, probe=example_probe()), whole(rows), ONES).values()["w"].tolist() == rows[0]


def test_all_of_a_round_see_the_same_draw_and_each_round_another():
    calls = []

    @dataclass(frozen=True)
    class Recording:
        def loss(self, params, number):
            calls.append(number)
            return 0.0

        def gradient(self, params, number):
            return params

    part = Zeno(f=1, probe=Recording())
    _, state = part.reduce(sent(GRADIENTS), part.init(ONES, Census(6)), ONES)
    part.reduce(sent(GRADIENTS), state, ONES)
    assert calls == [0] * 7 + [1] * 7
    assert isinstance(Recording(), Probe)


def test_holding_little_is_no_fault():
    """Of four coordinates, a client that improves the one it holds as well as another improves all counts as much."""
    params = {"w": torch.ones(4, dtype=torch.float64)}
    small = Update(Coords({"w": (4,)}, {"w": torch.tensor([2])}), {"w": torch.tensor([-0.1]).double()})
    large, harmful = whole([[-0.1] * 4, [0.1] * 4])
    scores = Zeno(f=1, rho=0.0, probe=example_probe()).scores([small, large, harmful], params, 0)
    assert scores[0] == pytest.approx(scores[1]) and scores[2] < 0  # noqa: PT018 - one statement on three scores


def test_trial_whose_loss_overflows_comes_last():
    rows = [[1e200, 0.0], [-0.1, 0.0], [-0.2, 0.0]]
    assert aggregate(Zeno(f=1, probe=example_probe()), whole(rows), ONES).values()["w"].tolist() == pytest.approx(
        [-0.15, 0.0]
    )


# ---- Zeno++ ---------------------------------------------------------------------------------------------------------

AT = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}  # where the gradient of ½ ‖x‖² is v = (3, 4)


def judged(gradient, **settings):
    part = ZenoPlusPlus(**{"rate": 0.1, "rho": 0.01, "probe": example_probe(), **settings})
    return part.reduce(whole([[-x for x in gradient]]), part.init(AT, Census(1)), AT)


@pytest.mark.parametrize(("gradient", "score"), [((6, 8), 2.25), ((-3, -4), -2.75), ((8, -6), -0.25), ((1, 0), 1.25)])
def test_table_of_zeno_plus_plus(gradient, score):
    """γ <v, g~> - ρ ‖g~‖². A little more of ρ or of ε than it is, and the other side wins."""
    accepted = score >= 0
    got, state = judged(gradient)
    assert state.accepted == int(accepted)
    length = math.hypot(*gradient)
    assert 0.1 * 5 / length * (3 * gradient[0] + 4 * gradient[1]) - 0.01 * 25 == pytest.approx(score)
    for more, is_taken in ((1e-9, True), (-1e-9, False)):  # the part's own score: where it changes sides
        settings = {"rho": 0.01 + (score - more) / 25} if accepted else {"epsilon": (more - score) / 0.1}
        assert judged(gradient, **settings)[1].accepted == is_taken
    if accepted:
        assert got.values()["w"].tolist() == pytest.approx([-0.1 * 5 * g / length for g in gradient])
        assert float(got.values()["w"].norm()) == pytest.approx(0.1 * 5)
    else:
        assert not got.value


def test_scale_of_what_is_sent_does_not_matter():
    for gradient in ((6, 8), (1, 0), (-3, -4), (2, 2)):
        one, many = judged(gradient)[0], judged([1000 * g for g in gradient])[0]
        assert one.value.keys() == many.value.keys()
        for name, v in one.values().items():
            assert torch.allclose(v, many.values()[name], atol=1e-12)


@pytest.mark.parametrize(("tiny", "dtype"), [(1e-41, torch.float32), (1e-150, torch.float64), (1e-5, torch.float16)])
def test_however_little_is_sent_the_step_has_the_length_of_the_gradient(tiny, dtype):
    """What 1e-41 is multiplied by is no float32."""
    part, params = ZenoPlusPlus(rate=0.1, probe=example_probe()), {"w": torch.tensor([4.0, 0.0], dtype=dtype)}
    sent = [Update(Whole({"w": (2,)}), {"w": torch.tensor([-tiny, 0.0], dtype=dtype)})]
    assert aggregate(part, sent, params).values()["w"].tolist() == pytest.approx([-0.4, 0.0], rel=1e-3)


def test_epsilon_and_rho_are_a_threshold_on_the_cosine():
    """cos(v, g) >= ρ / γ - ε / ‖v‖²."""
    for degrees in range(0, 181, 7):
        angle = math.radians(degrees)
        gradient = (3 * math.cos(angle) - 4 * math.sin(angle), 3 * math.sin(angle) + 4 * math.cos(angle))
        for rho, epsilon in ((0.01, 0.0), (0.05, 5.0), (0.0, 3.0)):
            expected = math.cos(angle) >= rho / 0.1 - epsilon / 25
            assert judged(gradient, rho=rho, epsilon=epsilon)[1].accepted == expected


def test_gradient_is_computed_anew_after_so_many():
    part = ZenoPlusPlus(delay=3, probe=example_probe())
    state = part.init(AT, Census(1))
    for judged_so_far, draws in enumerate((1, 1, 1, 2, 2, 2, 3), 1):
        _, state = part.reduce(whole([[-1.0, 0.0]]), state, AT)
        assert (state.judged, state.draws) == (judged_so_far, draws)


def test_submodel_is_judged_by_what_it_holds():
    update = Update(Coords({"w": (2,)}, {"w": torch.tensor([1])}), {"w": torch.tensor([-50.0]).double()})
    part = ZenoPlusPlus(rate=0.1, probe=example_probe())
    got, _ = part.reduce([update], part.init(AT, Census(1)), AT)
    assert got.values()["w"].tolist() == pytest.approx([-0.4])  # γ ‖v_I‖, with v_I = 4


def test_nothing_and_what_is_not_finite_are_ignored():
    part = ZenoPlusPlus(probe=example_probe())
    for row in ([0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0]):
        assert not part.reduce(whole([row]), part.init(AT, Census(1)), AT)[0].value


# ---- the server's examples ------------------------------------------------------------------------------------------


def test_probe_of_a_model():
    model = Model(lambda: torch.nn.Linear(2, 2), CrossEntropy())
    data = Examples({"x": torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), "y": torch.tensor([0, 1, 0])})
    probe, params = ModelProbe(model, data), model.init(3)
    gradient = probe.gradient(params, 0)
    for name, t in params.items():
        flat = t.reshape(-1)
        for at in range(len(flat)):
            up, down = flat.clone(), flat.clone()
            up[at] += 1e-2
            down[at] -= 1e-2
            slope = (
                probe.loss({**params, name: up.view_as(t)}, 0) - probe.loss({**params, name: down.view_as(t)}, 0)
            ) / 2e-2
            assert float(gradient[name].reshape(-1)[at]) == pytest.approx(slope, abs=1e-3)
    few = ModelProbe(model, data, examples=1, seed=4)
    losses = {round(few.loss(params, number), 6) for number in range(12)}
    assert len(losses) == 3  # each of the three is drawn at some time
    assert few.loss(params, 5) == few.loss(params, 5)
    assert probed(Zeno(f=1, examples=7), lambda n: ModelProbe(model, data, n)).probe.examples == 7
    assert probed(TrimmedMean(), lambda n: ModelProbe(model, data, n)) == TrimmedMean()


def test_parts_without_a_probe_say_so():
    for part in (Zeno(f=1), ZenoPlusPlus()):
        with pytest.raises(ValueError, match=rf"{type(part).__name__}\(.*\): judges updates on examples that the ser"):
            aggregate(part, whole([[1.0, 2.0]] * 3))


# ---- SLSGD ----------------------------------------------------------------------------------------------------------

MODELS = [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [10.0, -10.0]]


def test_slsgd_by_hand():
    assert aggregate(SLSGD(trim_count=1), whole(MODELS)).values()["w"].tolist() == [2.5, 0.5]
    assert aggregate(SLSGD(1, alpha=0.6), whole(MODELS)).values()["w"].tolist() == pytest.approx([1.5, 0.3])
    assert aggregate(SLSGD(0), whole(MODELS)).values()["w"].tolist() == [4.0, -1.75]  # FedAvg


def test_slsgd_stays_between_the_model_and_the_mean():
    """From any start x: updates are models minus x, and the next x lies on the segment to x'."""
    for alpha in (0.1, 0.6, 1.0):
        start = torch.tensor([7.0, -3.0]).double()
        updates = whole((torch.tensor(MODELS).double() - start).tolist())
        after = start + aggregate(SLSGD(1, alpha=alpha), updates, {"w": start}).values()["w"]
        assert torch.allclose(after, (1 - alpha) * start + alpha * torch.tensor([2.5, 0.5]).double())


def test_alpha_falls_where_it_is_told_to():
    part, params, state = SLSGD(1, alpha=0.5, decay=0.1, decay_at=(2, 4)), {"w": torch.zeros(2).double()}, 0
    found = []
    for _ in range(5):
        got, state = part.reduce(whole(MODELS), state, params)
        found.append(float(got.values()["w"][0]) / 2.5)
    assert found == pytest.approx([0.5, 0.05, 0.05, 0.005, 0.005])


def test_refusals():
    for make, says in (
        (lambda: Zeno(f=-1), r"Zeno\(f=-1\): must be finite and at least 0, got -1\."),
        (lambda: Zeno(f=1, rate=0.0), r"Zeno\(rate=0\.0\): must be finite and above 0, got 0\.0\."),
        (lambda: Zeno(f=1, penalty="max"), r"Zeno\(penalty='max'\): must be 'mean' or 'sum'\."),
        (lambda: ZenoPlusPlus(rate=-1.0), r"ZenoPlusPlus\(rate=-1\.0\): must be finite and above 0, got -1\.0\."),
        (lambda: ZenoPlusPlus(delay=0), r"ZenoPlusPlus\(delay=0\): must be finite and at least 1, got 0\."),
        (lambda: SLSGD(1, alpha=0.0), r"SLSGD\(alpha=0\.0\): must lie in \(0, 1\], got 0\.0\."),
        (lambda: SLSGD(-1), r"SLSGD\(trim_count=-1\): must be at least 0, got -1\."),
        (lambda: aggregate(Zeno(f=3, probe=example_probe()), whole(MODELS[:3])), r"Zeno\(f=3\): needs more than f = 3"),
        (lambda: aggregate(SLSGD(2), whole(MODELS)), r"SLSGD\(trim_count=2\): needs at least 2b\+1 = 5 updates, got 4"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
