"""Fed-Influence: optimisation.md §7's exact tests, and retraining without each client as the oracle."""

import numpy as np
import pytest
import torch

from partwise.aggregators import Watch
from partwise.core.index import Coords, Whole
from partwise.core.update import Update
from partwise.observers import FedInfluence
from partwise.observers.influence import diagonal_jacobian, exact_jacobian, influence_step
from partwise.testing.examples import example_probe
from toy_updates import senders, sent_by, whole


def test_scalar_example():
    """a = (1, 1, 1), b = (0, 2, 10), η = 0.5, one step, two rounds; c is the third client."""
    targets, w, error = [0.0, 2.0, 10.0], 0.0, {"w": torch.zeros(1).double()}
    found = []
    for _ in range(2):
        params = {"w": torch.tensor([w]).double()}
        steps = {k: 0.5 * (b - w) for k, b in enumerate(targets)}
        updates = {k: whole([[s]])[0] for k, s in steps.items()}
        error = influence_step(error, 2, updates, params, {k: (lambda e: {"w": 0.5 * e["w"]}) for k in updates})
        w += sum(steps.values()) / 3
        found.append((w, float(error["w"])))
    assert found == [(2.0, pytest.approx(-1.5)), (3.0, pytest.approx(-2.25))]


def quadratic(k, rng):
    root = rng.normal(size=(2, 2))
    return root @ root.T + 0.3 * np.eye(2), rng.normal(size=2) * (k + 1)


def test_equals_retraining_for_quadratic_losses():
    """Three clients, d = 2, I = 4, T = 6, full-batch gradient descent; weights 1, 2, 5; a round without client 0."""
    rng = np.random.default_rng(1)
    problems, weights, lr = [quadratic(k, rng) for k in range(3)], [1.0, 2.0, 5.0], 0.1

    def local(k, w):
        a, b = problems[k]
        for _ in range(4):
            w = w - lr * a @ (w - b)
        return w

    def torch_local(k):
        a, b = (torch.tensor(t) for t in problems[k])

        def train(params):
            w = params["w"]
            for _ in range(4):
                w = w - lr * a @ (w - b)
            return {"w": w}

        return train

    cohorts = [(0, 1, 2), (0, 1, 2), (1, 2), (0, 1, 2), (0, 2), (0, 1, 2)]
    for without in range(3):
        w, other, error = np.zeros(2), np.zeros(2), {"w": torch.zeros(2).double()}
        for cohort in cohorts:
            params = {"w": torch.tensor(w)}
            ends = {k: local(k, w) for k in cohort}
            index = Whole({"w": (2,)})
            updates = {k: Update(index, {"w": torch.tensor(ends[k] - w)}, weights[k]) for k in cohort}
            maps = {k: exact_jacobian(torch_local(k), params) for k in cohort}
            error = influence_step(error, without, updates, params, maps)
            w = sum(weights[k] * ends[k] for k in cohort) / sum(weights[k] for k in cohort)
            stay = [k for k in cohort if k != without]
            other = sum(weights[k] * local(k, other) for k in stay) / sum(weights[k] for k in stay)
        assert error["w"].numpy() == pytest.approx(other - w, abs=1e-12)


def test_client_like_the_mean_of_the_others_has_none():
    error, params = {"w": torch.zeros(2).double()}, {"w": torch.zeros(2).double()}
    updates = dict(enumerate(whole([[1.0, 4.0], [3.0, 0.0], [2.0, 2.0]])))
    assert influence_step(error, 2, updates, params, {})["w"].tolist() == pytest.approx([0.0, 0.0])
    assert influence_step(error, 9, updates, params, {})["w"].tolist() == [0.0, 0.0]  # never there


def test_submodels_are_means_over_holders():
    """A coordinate that only the client held would not have moved; what nobody else held stays."""
    params = {"w": torch.zeros(3).double()}

    def part(at, value):
        index = Coords({"w": (3,)}, {"w": torch.tensor(at)})
        return Update(index, {"w": torch.full((len(at),), value).double()})

    updates = {0: part([0, 1], 2.0), 1: part([1], 4.0)}
    error = influence_step({"w": torch.zeros(3).double()}, 0, updates, params, {})
    assert error["w"].tolist() == [-2.0, 1.0, 0.0]
    later = influence_step(error, 0, {1: part([1], 0.0)}, params, {})
    assert later["w"].tolist() == [-2.0, 1.0, 0.0]


def test_diagonal_jacobian():
    through = diagonal_jacobian({"w": torch.tensor([0.0, 1.0, 30.0])}, lr=0.1, steps=2)
    one = {"w": torch.ones(3).double(), "v": torch.ones(1).double()}
    got = through(one)
    assert got["w"].tolist() == pytest.approx([1.0, 0.81, 1.0])  # 1 - 3 is kept at -1
    assert got["v"].tolist() == [1.0]
    free = diagonal_jacobian({"w": torch.tensor([0.0, 1.0, 30.0])}, lr=0.1, steps=2, clip=False, damping=1.0)(one)
    assert free["w"].tolist() == pytest.approx([0.81, 0.64, 4.41], rel=1e-6)


# ---- 30 clients -----------------------------------------------------------------------------------------------------

CLIENTS, CLASSES, FEATURES, ROUNDS, STEPS, LR = 30, 5, 10, 12, 3, 0.3
FLIPPED = (4, 11, 23)


def synthetic(seed=0):
    """Synthetic(0.5, 0.5) in small, logistic; three clients' labels are permuted; a held-out set."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(CLASSES, FEATURES))
    clients, held = [], []
    for k in range(CLIENTS):
        own = base + 0.5 * rng.normal(size=base.shape)
        centre = 0.5 * rng.normal(size=FEATURES)
        x = centre + rng.normal(size=(40, FEATURES)) * np.arange(1, FEATURES + 1) ** -0.6
        y = (x @ own.T).argmax(1)
        held.append((x[30:], y[30:]))
        clients.append((torch.tensor(x[:30]), torch.tensor(((y + 2) % CLASSES if k in FLIPPED else y)[:30])))
    return clients, tuple(torch.tensor(np.concatenate(t)) for t in zip(*held, strict=True))


def loss(w, x, y):
    return torch.nn.functional.cross_entropy(x @ w.T, y)


def gradient(w, x, y):
    p = torch.softmax(x @ w.T, 1)
    p = p - torch.nn.functional.one_hot(y, CLASSES)
    return p.T @ x / len(x)


def trained(w, x, y):
    for _ in range(STEPS):
        w = w - LR * gradient(w, x, y)
    return w


@pytest.fixture(scope="module")
def measured():
    """True influence of each client on the held-out loss, by retraining without it."""
    clients, held = synthetic()

    def run(without=None):
        w = torch.zeros(CLASSES, FEATURES).double()
        for _ in range(ROUNDS):
            w = torch.stack([trained(w, *c) for k, c in enumerate(clients) if k != without]).mean(0)
        return w

    base = run()
    return clients, held, base, [float(loss(run(k), *held) - loss(base, *held)) for k in range(CLIENTS)]


def estimated(clients, held, maps_of):
    w = torch.zeros(CLASSES, FEATURES).double()
    errors = {k: {"w": torch.zeros_like(w)} for k in range(CLIENTS)}
    for _ in range(ROUNDS):
        ends = [trained(w, *c) for c in clients]
        index = Whole({"w": tuple(w.shape)})
        updates = {k: Update(index, {"w": end - w}) for k, end in enumerate(ends)}
        maps = {k: maps_of(c, w) for k, c in enumerate(clients)} if maps_of else {}
        errors = {k: influence_step(e, k, updates, {"w": w}, maps) for k, e in errors.items()}
        w = torch.stack(ends).mean(0)
    return [float(loss(w + errors[k]["w"], *held) - loss(w, *held)) for k in range(CLIENTS)]


def fisher(client, w):
    """Mean squares of the gradients of single examples."""
    x, y = client
    p = torch.softmax(x @ w.T, 1) - torch.nn.functional.one_hot(y, CLASSES)
    return diagonal_jacobian({"w": (p.square().T @ x.square()) / len(x)}, LR, STEPS)


def exact(client, w):
    return exact_jacobian(lambda params: {"w": trained(params["w"], *client)}, {"w": w})


@pytest.mark.parametrize(("maps_of", "least"), [(fisher, 0.9), (None, 0.9)], ids=["fisher_diag", "zero"])
def test_estimates_agree_with_retraining(measured, maps_of, least):
    clients, held, _, true = measured
    found = estimated(clients, held, maps_of)
    assert np.corrcoef(found, true)[0, 1] >= least
    lowest = sorted(range(CLIENTS), key=found.__getitem__)[:5]
    assert set(FLIPPED) <= set(lowest)


@pytest.mark.slow
def test_exact_jacobians_agree_best(measured):
    clients, held, _, true = measured
    assert np.corrcoef(estimated(clients, held, exact), true)[0, 1] >= 0.99


# ---- in a round -----------------------------------------------------------------------------------------------------


def test_observer_tells_harm_by_the_servers_loss():
    """Loss ½ ‖x‖² at x = (1, 1): two go down, the third goes up."""
    params = {"w": torch.ones(2).double()}
    detector = FedInfluence((0, 1, 2), harmful_below=-0.05, start=1, probe=example_probe())
    part = Watch(detector, exclude=True)
    state = part.init(params, None)
    got, state = part.reduce(whole([[-0.4, -0.4], [-0.2, -0.2], [0.6, 0.6]]), state, params, senders(3))
    assert got.values()["w"].tolist() == pytest.approx([-0.3, -0.3])
    told = part.told(state)
    assert [s["client"] for s in told["suspects"]] == told["excluded"] == [2]
    influence = state[0].influence
    assert influence[0] > influence[1] > 0 > influence[2]
    # the mean is 0: without the third it would be -0.3 each
    assert influence[2] == pytest.approx(0.7**2 - 1.0)
    with pytest.raises(ValueError, match=r"FedInfluence\(.*\): needs a loss that the server can compute, got none\."):
        FedInfluence((0,)).judge(whole([[1.0]]), senders(1), FedInfluence((0,)).init(params, None), params)


def test_two_replies_of_one_client_in_a_commit_are_both_its_own():
    """Without client 0 the mean of 1, 3 and 5 would be 5 and not 3, and the loss half of 25 and not of 9."""
    part, params = FedInfluence((0,), probe=example_probe()), {"w": torch.zeros(1)}
    updates = whole([[1.0], [3.0], [5.0]])
    _, state = part.judge(updates, sent_by(0, 0, 1), part.init(params, None), params)
    assert state.errors[0]["w"].tolist() == [2.0]
    assert state.influence[0] == pytest.approx((5**2 - 3**2) / 2)
