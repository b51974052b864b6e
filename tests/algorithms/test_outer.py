"""Outer steps on the worked examples of communication.md §1, §5, §7 and §8."""

import math

import pytest
import torch

from partwise.algorithms import CO2, LANS, Downlink, FedAvg, FedSubAvg, SignMomentum
from partwise.algorithms.memory import NOTHING
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError
from partwise.core.index import Coords, Rows, Whole
from partwise.core.mean import Mean
from partwise.core.population import Census
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.transforms import ErrorFeedback, ServerSGD, Sign
from toy_slopes import linear, quadratic, states_after, steps, theta_after


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lans_takes_the_steps_of_half_precision_in_single(dtype):
    """A D of length 1 and 4096 values has squares of 2e-4, and a thousandth of most is 0 or nearly so in float16."""
    draw = torch.Generator().manual_seed(3)
    x, change = (torch.randn(4096, generator=draw).to(dtype) for _ in range(2))
    change[:3] *= 0.01
    got = LANS(FedAvg(), lr=0.5, decay=0.0)
    found = []
    for kind in (dtype, torch.float64):
        state = got.init({"w": x.to(kind)}, Census(0))
        state = got.commit(state, {"model": Update(Whole({"w": (4096,)}), {"w": change.to(kind)})}, ())
        assert state["model"]["w"].dtype == kind
        found.append(state["model"]["w"].double())
    assert (found[0] - found[1]).abs().max() < 0.05  # a step is 0.5 for each, or next to it


def test_the_momentum_of_half_precision_comes_near_what_it_follows():
    """1 - 0.98^300 is 0.998; in bfloat16, what a round adds is below half of the last digit from 0.9 on."""
    part, x = SignMomentum(FedAvg(), gamma=0.5, lr=1e-6), {"w": torch.zeros(1, dtype=torch.bfloat16)}
    state = part.init(x, Census(0))
    for _ in range(300):
        change = Update(Whole({"w": (1,)}), {"w": torch.tensor([-0.5], dtype=torch.bfloat16)})
        state = part.commit(state, {"model": change}, ())
    assert state["momentum"]["w"].item() == pytest.approx(1 - 0.98**300, rel=1e-4)
    assert state["model"]["w"].dtype == torch.bfloat16


TWO = quadratic((0.0, 4.0), 1.0)
LOCAL = FedAvg(steps(0.25, 2), "uniform")


def path(algorithm, rounds, of=TWO, **more):
    return [theta_after(of, algorithm, n, **more)[0] for n in range(rounds + 1)]


def test_local_sgd_and_diloco():
    assert path(LOCAL, 4) == pytest.approx([1, 1.4375, 1.68359375, 1.82202148, 1.89988709], abs=1e-8)
    outer = {"model": chain(ServerSGD(lr=0.7, momentum=0.9, nesterov=True))}
    assert path(LOCAL, 3, server_chain=outer) == pytest.approx([1, 1.581875, 2.0732340, 2.3575983], abs=1e-7)
    slowmo = {"model": chain(ServerSGD(lr=1.0, momentum=0.5))}
    assert path(LOCAL, 4, server_chain=slowmo) == pytest.approx([1, 1.4375, 1.90234375, 2.17749023, 2.23741150])
    plain = {"model": chain(ServerSGD(lr=1.0, momentum=0.0, nesterov=True))}
    assert path(LOCAL, 3, server_chain=plain) == pytest.approx(path(LOCAL, 3), abs=1e-12)


def test_what_diloco_goes_by():
    """communication.md §1: local ends, D and buf of three rounds; the server keeps the buffer of what is added."""
    for centre, end in ((0.0, 0.5625), (4.0, 2.3125)):
        assert theta_after(quadratic((centre,), 1.0), LOCAL, 1) == pytest.approx([end], abs=1e-12)
    outer, x, buf = chain(ServerSGD(lr=0.7, momentum=0.9, nesterov=True)), 1.0, 0.0
    expected = [(-0.4375, -0.4375), (-0.1829297, -0.5766797), (0.0320399, -0.4869719)]
    for rounds, (d, after) in enumerate(expected, 1):
        node = states_after(TWO, LOCAL, rounds, server_chain={"model": outer})[SERVER]
        (slots,) = node.chains["model"]
        assert float(slots["m"]["theta"]) == pytest.approx(-after, abs=1e-7)
        assert x - (2.0 + 0.75**2 * (x - 2.0)) == pytest.approx(d, abs=1e-7)  # what the mean of the ends makes of x
        assert after - 0.9 * buf == pytest.approx(d, abs=2e-7)
        x, buf = float(node.streams["model"]["theta"]), after


@pytest.mark.parametrize(
    ("by", "lazy", "first", "second", "momentum"),
    [
        ("holders", True, [0.202, 0.734], [-0.2712, 0.734], [0.64, 0.2]),
        ("holders", False, [0.202, 0.734], [-0.2712, 0.734 - 0.7 * 0.9 * 0.18], [0.64, 0.18]),
        ("cohort", True, [0.202, 0.867], [-0.2712, 0.867], [0.64, 0.1]),
    ],
    ids=["coverage, freeze", "coverage, decay", "fixed, freeze"],
)
def test_idle_coordinates(by, lazy, first, second, momentum):
    """communication.md §0: A holds {0, 1} and ends at (0.6, 0.8), B holds {0} and ends at 0.2; then 0 is held alone.

    With D = 0 for what nobody holds, coordinate 1 goes to 0.734 - 0.7 · 0.9 · 0.18 = 0.6206.
    """
    outer, mean = ServerSGD(lr=0.7, momentum=0.9, nesterov=True, lazy=lazy), Mean(by)
    w = {"w": torch.ones(2, dtype=torch.float64)}
    state = outer.init(w)
    one = Coords({"w": (2,)}, {"w": torch.tensor([0])})
    a = Update(Whole({"w": (2,)}), {"w": -torch.tensor([0.4, 0.2], dtype=torch.float64)})
    b, c = (Update(one, {"w": -torch.tensor([x], dtype=torch.float64)}) for x in (0.8, 0.1))
    for round, expected in (([a, b], first), ([c], second)):
        total, _ = mean.reduce(sum_updates(round, w), (), w)
        step, state = outer.apply(total, state, torch.Generator())
        step.index.scatter_add_(w, step.values())
        assert w["w"].tolist() == pytest.approx(expected)
    assert state["m"]["w"].tolist() == pytest.approx([-m for m in momentum])
    if not lazy:
        assert w["w"].tolist() == pytest.approx([-0.2712, 0.6206])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.0}, [1, 1, 1.4375, 1.875, 2.12109375, 2.17578125, 2.12280273]),
        ({"beta": 0.2}, [1, 1, 1.4375, 1.9625, 2.31359375, 2.40021875, 2.28034648]),
        ({"beta": 0.0, "clip": 0.5}, [1, 1, 1.125, 1.25, 1.375]),
    ],
    ids=["no momentum", "momentum", "clipped"],
)
def test_co2(settings, expected):
    part = CO2(LOCAL, 0.25, **{"gap": "constant", "clip": math.inf, **settings})
    assert path(part, len(expected) - 1) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("rate", "local", "kind"),
    [
        (0.2, 1, "monotone"),  # 1 - rho = 0.2, below a quarter
        (0.25, 2, "damped"),  # 0.4375
        (0.95, 1, "damped"),  # 0.95
        (1.25, 1, "unstable"),  # 1.25, not below 1
    ],
)
def test_what_the_round_s_delay_does(rate, local, kind):
    """communication.md §8: y_{t+1} = y_t - (1 - rho) y_{t-1} for the distance to the optimum, rho = (1 - gamma)^tau."""
    part = CO2(FedAvg(steps(rate, local), "uniform"), rate, beta=0.0, clip=math.inf, gap="constant")
    state, found = part.init({"w": torch.tensor([-1.0], dtype=torch.float64)}, Census(0)), [-1.0]
    loss, y = 1 - (1 - rate) ** local, [-1.0, -1.0]
    for _ in range(60):
        change = {"w": -loss * state["model"]["w"]}  # what local steps on y² / 2 come to
        state = part.commit(state, {"model": Update(Whole({"w": (1,)}), change)}, ())
        found.append(float(state["model"]["w"]))
        y.append(y[-1] - loss * y[-2])
    assert found == pytest.approx(y[:61], rel=1e-9, abs=1e-12)
    assert any(x > 0 for x in found) == (kind != "monotone")
    assert (abs(found[-1]) < 1.0 and abs(found[-2]) < 1.0) == (kind != "unstable")
    if kind != "unstable":
        assert path(part, 6) == pytest.approx([2 + x for x in y[:7]], abs=1e-12)


def test_an_update_is_applied_to_what_was_held_when_it_was_made():
    """S changes from {0, 1} to {1, 2} and {0}: D of a round moves its own coordinates a round later, momentum too.

    beta 0.5, gamma 0.1: m = (D / 0.1) for {0, 1}, then D / 0.1 + 0.5 m for {1, 2}, by hand.
    """
    part = CO2(FedAvg(), 0.1, beta=0.5, clip=math.inf, gap="constant")
    state = part.init({"w": torch.zeros(3, dtype=torch.float64)}, Census(0))
    rounds = [
        ([0, 1], [1.0, -2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1, 2], [0.5, 4.0], [1.0, -2.0, 0.0], [-10.0, 20.0, 0.0]),
        ([0], [-3.0], [1.0, -2.5, 4.0], [-10.0, 5.0, -40.0]),
        ([2], [0.0], [-1.5, -2.5, 4.0], [25.0, 5.0, -40.0]),
    ]
    for held, change, model, momentum in rounds:
        index = Coords({"w": (3,)}, {"w": torch.tensor(held)})
        total = Update(index, {"w": torch.tensor(change, dtype=torch.float64)})
        state = part.commit(state, {"model": total}, ())
        assert state["model"]["w"].tolist() == pytest.approx(model)
        assert state["momentum"]["w"].tolist() == pytest.approx(momentum)


def test_the_gap_holds_back():
    """Lambda = 1 + |x - x_before| / C in plain numbers, for the first five rounds."""
    x, moved, pace, m, waiting, expected = 1.0, 0.0, 0.0, 0.0, 0.0, [1.0]
    for _ in range(5):
        ends = [c + (x - c) * 0.75**2 for c in (0.0, 4.0)]
        pace = 0.9 * pace + 0.1 * abs(moved)
        lag = 1 + abs(moved) / pace if pace else 1.0
        m = 0.5 * m - waiting / (0.25 * lag)
        waiting = sum(ends) / 2 - x
        moved = -0.25 * m
        x += moved
        expected.append(x)
    found = path(CO2(LOCAL, 0.25, beta=0.5, clip=math.inf), 5)
    assert found == pytest.approx(expected)
    constant = path(CO2(LOCAL, 0.25, beta=0.5, clip=math.inf, gap="constant"), 5)
    assert abs(found[3] - 1) < abs(constant[3] - 1)


def test_the_gap_is_measured_by_the_mean_over_coordinates():
    """D = (-1, 3) at gamma 1 moves x by (1, -3): then C = 0.1 * 2, and Lambda = 1 + (1, 3) / 0.2 = (6, 16)."""
    part = CO2(FedAvg(), 1.0, beta=0.0, clip=math.inf, delay=0)
    state = committed(part, {"w": torch.zeros(2).double()}, [1.0, -3.0], [6.0, -16.0])
    assert state["model"]["w"].tolist() == pytest.approx([1.0 + 1.0, -3.0 - 1.0])
    assert float(state["pace"]["w"]) == pytest.approx(0.2)


def committed(part, params, *values, index=None):
    """The model after commits of these aggregates."""
    state = part.init(params, Census(0))
    for value in values:
        update = Update(index or Whole({"w": tuple(params["w"].shape)}), {"w": torch.tensor(value).double()}, 1.0)
        state = part.commit(state, {"model": update}, ())
    return state


def test_sign_momentum():
    part, x = SignMomentum(FedAvg(), gamma=0.1), {"w": torch.ones(1, dtype=torch.float64)}
    one = committed(part, x, [-0.03])
    two = committed(part, x, [-0.03], [0.12])
    assert [float(s["model"]["w"]) for s in (one, two)] == pytest.approx([0.89, 0.9811])
    assert [float(s["momentum"]["w"]) for s in (one, two)] == pytest.approx([0.006, -0.01812])
    large = committed(part, x, [-30.0], [120.0])
    assert torch.equal(large["model"]["w"], two["model"]["w"])


def test_sign_momentum_is_lion_for_one_step():
    """Lion in plain numbers: learning rate lr gamma, gradients of (theta - 0)² / 2 and (theta - 4)² / 2."""
    x, m, expected = 1.0, 0.0, []
    for _ in range(6):
        g = ((x - 0.0) + (x - 4.0)) / 2
        u = 0.95 * m + 0.05 * g
        x, m = (1 - 0.5 * 0.25 * 0.1) * x - 0.5 * 0.25 * ((u > 0) - (u < 0)), 0.98 * m + 0.02 * g
        expected.append(x)
    part = SignMomentum(FedAvg(steps(0.25), "uniform"), gamma=0.25, lr=0.5)
    assert path(part, 6)[1:] == pytest.approx(expected, abs=1e-12)


def test_sign_momentum_leaves_alone_what_nobody_holds():
    x = {"w": torch.ones(3, dtype=torch.float64)}
    state = committed(
        SignMomentum(FedSubAvg("count"), 0.1), x, [-0.3], index=Rows({"w": (3,)}, {"w": torch.tensor([1])})
    )
    assert state["model"]["w"].tolist() == [1.0, 0.89, 1.0]
    assert (state["momentum"]["w"] != 0).tolist() == [False, True, False]


def test_lans():
    part, x = LANS(FedAvg(), lr=0.1), {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    assert committed(part, x, [-2.0, 2.0])["model"]["w"].tolist() == pytest.approx([2.634236, 4.340906], abs=1e-6)
    small = committed(part, x, [-0.02, 0.02], [-0.01, 0.03])["model"]["w"]
    large = committed(part, x, [-20.0, 20.0], [-100.0, 300.0])["model"]["w"]
    assert small.tolist() == pytest.approx(large.tolist(), rel=1e-3)  # eps beside a length of 0.02


def test_lans_moves_a_parameter_of_zeros():
    """A new bias has no length to step by: as in the released kernel, its step is lr times what is not made longer."""
    state = committed(LANS(FedAvg(), lr=0.1, decay=0.0), {"w": torch.zeros(2, dtype=torch.float64)}, [-3.0, 4.0])
    assert state["model"]["w"].tolist() == pytest.approx([-0.1, 0.1], rel=1e-5)


def test_lans_counts_the_commits_that_brought_a_change():
    """m' and v' are free of their start by 1 - beta^t, t the times they moved: anchors alone move neither."""
    part, x = LANS(FedAvg(), lr=0.1, decay=0.5), {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    state = part.init(x, Census(0))
    for value in ([-2.0, 2.0], None, None, [-1.0, 3.0]):
        update = NOTHING if value is None else Update(Whole({"w": (2,)}), {"w": torch.tensor(value).double()})
        state = part.commit(state, {"model": update}, ())
    w, m, v = [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]
    for t, d in enumerate(([2.0, -2.0], [1.0, -3.0]), 1):
        g = [a / (math.hypot(*d) + 1e-6) for a in d]
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        root = [math.sqrt(a / (1 - 0.999**t)) + 1e-6 for a in v]
        u_m = [a / (1 - 0.9**t) / r + 0.5 * b for a, r, b in zip(m, root, w, strict=True)]
        u_g = [a / r + 0.5 * b for a, r, b in zip(g, root, w, strict=True)]
        ways = [0.9 * a / math.hypot(*u_m) + 0.1 * b / math.hypot(*u_g) for a, b in zip(u_m, u_g, strict=True)]
        w = [a - 0.1 * math.hypot(*w) * b for a, b in zip(w, ways, strict=True)]
    assert state["model"]["w"].tolist() == pytest.approx(w, abs=1e-12)


def test_clan_compresses_both_ways():
    """One local step, scaled signs up and down: the slopes of two clients, and a model that still gets there."""
    of = quadratic((0.0, 4.0), 1.0)
    part = Downlink(LANS(FedAvg(steps(1.0), "uniform"), lr=0.05, decay=0.0), Sign())
    clan = theta_after(of, part, 40, client_chain={"model": ErrorFeedback(Sign())})
    assert clan == pytest.approx([2.0], abs=0.2)
    plain = linear([[(1.0, -2.0)], [(3.0, 2.0)]], (1.0, 1.0))
    down = theta_after(plain, Downlink(FedAvg(steps(0.1), "uniform"), Sign()), 5)
    assert down == pytest.approx(theta_after(plain, FedAvg(steps(0.1), "uniform"), 5), abs=1e-12)


def test_they_refuse():
    for make, message in (
        (lambda: SignMomentum(FedAvg(), 0.0), r"SignMomentum\(gamma=0\.0\): must be above 0, got 0\.0\."),
        (lambda: SignMomentum(FedAvg(), 0.1, beta1=1.0), r"SignMomentum\(beta1=1\.0\): must lie in \[0, 1\), got 1\.0"),
        (lambda: SignMomentum(FedAvg(), 0.1, decay=-1), r"SignMomentum\(decay=-1\): must be at least 0, got -1\."),
        (lambda: CO2(FedAvg(), 0.1, clip=0.0), r"CO2\(clip=0\.0\): must be above 0, got 0\.0\."),
        (lambda: CO2(FedAvg(), 0.1, gap="some"), r"CO2\(gap='some'\): must be 'moved' or 'constant', got 'some'\."),
        (lambda: LANS(FedAvg(), lr=0.0), r"LANS\(lr=0\.0\): must be above 0, got 0\.0\."),
        (lambda: LANS(FedAvg(), decay=-1), r"LANS\(decay=-1\): must be at least 0, got -1\. 0 is none\."),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(
        CompositionError, match=r"LANS\(FedSubAvg\): takes lengths of whole parameters, got an algorithm"
    ):
        LANS(FedSubAvg("count"))
    params = {"w": torch.zeros(2)}
    with pytest.raises(CompositionError, match=r"has the streams \['momentum'\] of its own, got an algorithm that has"):
        SignMomentum(SignMomentum(FedAvg(), 0.1), 0.1).init(params, Census(0))
    part = LANS(FedAvg())
    held = Update(Rows({"w": (2,)}, {"w": torch.tensor([0])}), {"w": torch.ones(1)})
    with pytest.raises(CompositionError, match=r"takes lengths of whole parameters, got \['w'\] held in part"):
        part.commit(part.init(params, Census(0)), {"model": held}, ())


@pytest.mark.parametrize(
    "part",
    [SignMomentum(LOCAL, 0.25), CO2(LOCAL, 0.25), CO2(LOCAL, 0.25, delay=0), LANS(LOCAL)],
    ids=["SignMomentum", "CO2", "CO2, not kept", "LANS"],
)
@pytest.mark.parametrize("is_part", [False, True])
def test_running_variances_take_their_mean_change(part, is_part):
    """1 - 0.9 - 0.01 = 0.09: no sign, momentum, length or delay on the way."""
    if is_part and isinstance(part, LANS):
        pytest.skip("LANS takes whole parameters")
    model = {"w": torch.ones(2), "var": torch.ones(2)}
    state = part.init({name: t.clone() for name, t in model.items()}, Census(1, still={"var"}))
    shapes = {"w": (2,), "var": (2,)}
    index = Coords(shapes, {"w": torch.tensor([0, 1]), "var": torch.tensor([1])}) if is_part else Whole(shapes)
    for change in (-0.9, -0.01):
        value = index.gather({"w": torch.tensor([0.5, -0.5]), "var": torch.full((2,), change)})
        state = part.commit(state, {"model": Update(index, value, 1.0)}, [])
    assert state["model"]["var"].tolist() == pytest.approx([1.0 if is_part else 0.09, 0.09])
    assert (state["model"]["w"] != 1).all()
