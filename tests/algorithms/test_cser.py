"""communication.md §4."""

import pytest
import torch
from torch import nn

from partwise.algorithms import CSER, FedAvg, FedHyper, FedSubAvg, SignMomentum
from partwise.algorithms.cser import Drift
from partwise.channels import Plain
from partwise.core.algorithm import Site, Task
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.core.plan import Trained
from partwise.core.program import SERVER
from partwise.core.transform import Identity, chain
from partwise.programs.star import Star
from partwise.schedulers import Synchronous
from partwise.testing.examples import example_model, example_sites
from partwise.transforms import ErrorFeedback, LowRank, RandomK, ServerSGD, Sign, TopK
from toy_slopes import Itself, Weights, linear, quadratic, states_after, steps, theta_after
from toy_star import Clients


def drawn(clients, rows, dim, seed=5):
    x = torch.randn(clients, rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [[tuple(row) for row in client] for client in x.tolist()]


def test_worked_example():
    """Gradients (4, 1) and (0, -3), top-1, rate 0.1: x_i after one step, and after a full reset."""
    of = linear([[(4.0, 1.0)], [(0.0, -3.0)]], (0.0, 0.0))
    states = states_after(of, CSER(TopK(k=1), every=9, local=steps(0.1)), 1)
    w = states[SERVER].streams["model"]["theta"]
    drift = [states[i].own.value["theta"] for i in (0, 1)]
    assert [(w + e).tolist() for e in drift] == [pytest.approx([-0.2, 0.05]), pytest.approx([-0.2, 0.15])]
    assert [e.tolist() for e in drift] == [pytest.approx([0.0, -0.1]), pytest.approx([0.0, 0.0])]
    states = states_after(of, CSER(TopK(k=1), every=1, local=steps(0.1)), 1)
    assert states[SERVER].streams["model"]["theta"].tolist() == pytest.approx([-0.2, 0.1])
    assert not any(states[i].own.value["theta"].any() for i in (0, 1))


@pytest.mark.parametrize(
    "part",
    [
        CSER(TopK(k=2), TopK(k=3), every=4, local=steps(0.1)),
        CSER(RandomK(0.3, block=2), RandomK(0.5, block=2), every=3, local=steps(0.1)),
        CSER(None, Sign(), every=2, local=steps(0.1)),
    ],
    ids=["top-k", "blocks", "sign of the reset alone"],
)
def test_the_mean_model_is_that_without_loss(part):
    """To 1e-12 in float64, over 17 rounds of gradients that do not depend on the model."""
    of = linear(drawn(4, 5, 9), (0.0,) * 9)
    states = states_after(of, part, 17)
    drift = torch.stack([states[i].own.value["theta"] for i in range(4)])
    mean = states[SERVER].streams["model"]["theta"] + drift.mean(0)
    plain = theta_after(of, FedAvg(steps(0.1), "uniform"), 17)
    assert drift.abs().max() > 1e-3
    assert mean.tolist() == pytest.approx(plain, abs=1e-12)


class Rates(nn.Module):
    """Rows of a table times given slopes, summed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3, dtype=torch.float64)

    def forward(self, rows, slopes):
        return (self.table(rows) * slopes).flatten(1).sum(1)


def slopes_of(own, seed=9):
    """Each client's examples name two of its rows, with slopes for them: gradients that do not depend on the model."""
    rng, columns = torch.Generator().manual_seed(seed), []
    for rows in own:
        at = torch.tensor(rows)[torch.randint(len(rows), (6, 2), generator=rng)]
        columns.append({"rows": at, "slopes": torch.randn(6, 2, 3, generator=rng, dtype=torch.float64)})
    tables = {"table.weight": ("rows",)}
    return Model(Rates, Itself(), inputs=("rows", "slopes"), tables=tables), Clients(columns)


@pytest.mark.parametrize("gradient", [RandomK(0.3), RandomK(0.5, by_row=True), None], ids=repr)
def test_over_rows_the_mean_model_of_those_who_hold_a_row_is_that_without_loss(gradient):
    """Per coordinate and to 1e-12, against the mean over holders of what each sends whole; row 6 is nobody's."""
    of = slopes_of([(0, 1, 2), (1, 2, 3), (2, 4), (5,)])
    part = CSER(gradient, RandomK(0.6), every=4, local=steps(0.1), submodel=True)
    states = states_after(of, part, 11)
    server = states[SERVER].streams["model"]["table.weight"]
    held, total, drifts = torch.zeros(7, 1, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64), []
    for i, columns in enumerate(of[1].columns):
        rows = columns["rows"].unique()
        drift = states[i].own.value["table.weight"]
        assert drift.shape == (len(rows), 3)
        held[rows] += 1
        total[rows] += drift
        drifts.append(drift)
    plain = states_after(of, FedSubAvg("count", steps(0.1), "uniform"), 11)[SERVER].streams["model"]["table.weight"]
    mean = server + torch.where(held > 0, total / held.clamp(min=1), 0.0)
    assert max(float(d.abs().max()) for d in drifts) > 1e-3
    assert (mean - plain).abs().max() < 1e-12
    assert torch.equal(server[6], of[0].init(3)["table.weight"][6])


def test_over_rows_all_must_send_the_same():
    with pytest.raises(CompositionError, match=r"CSER\(submodel=True\): needs compressors that send the same"):
        CSER(TopK(k=2), submodel=True)
    assert CSER(RandomK(0.5), Identity(), submodel=True).model == Identity()


def test_over_rows_a_client_whose_rows_changed_is_refused():
    model, clients = slopes_of([(0, 1, 2)])
    part = CSER(RandomK(0.5), submodel=True)
    star = Star(part, Synchronous(1, rounds=1), model, clients, Plain())
    site, other = star.site(0), Drift({"table.weight": torch.zeros(2, 3)})
    assert part.select(Task(0, 0, 0, 0), Drift(), site) is site.touched()
    with pytest.raises(CompositionError, match="client 0: must hold the rows that it held in its last task"):
        part.select(Task(0, 0, 0, 0), other, site)


def test_without_loss_it_is_sgd():
    of = quadratic((0.0, 4.0, 7.0), 1.0)
    part = CSER(Identity(), Identity(), every=3, local=steps(0.25))
    assert theta_after(of, part, 7) == pytest.approx(theta_after(of, FedAvg(steps(0.25), "uniform"), 7), abs=1e-12)


def test_without_gradients_it_is_local_sgd():
    of = quadratic((0.0, 4.0, 7.0), 1.0)
    part = CSER(None, Identity(), every=4, local=steps(0.25))
    expected = theta_after(of, FedAvg(steps(0.25, 4), "uniform"), 2)
    assert theta_after(of, part, 8) == pytest.approx(expected, abs=1e-12)
    assert theta_after(of, part, 11) == pytest.approx(expected, abs=1e-12)  # between two resets the server stands


CENTRES = [(0.5, 3.0), (-4.0, 1.0), (2.5, -7.0)]


def bowls(centres, start):
    """Client i's loss is ‖theta - c_i‖² / 4, of one example for each of two coordinates."""
    columns = [{"x": torch.eye(2, dtype=torch.float64), "y": torch.tensor(c, dtype=torch.float64)} for c in centres]
    return Model(lambda: Weights(start), MeanSquaredError(), inputs=("x",)), Clients(columns)


def largest(v):
    at = 0 if abs(v[0]) >= abs(v[1]) else 1
    return [v[j] if j == at else 0.0 for j in range(2)]


def psync(vs, compress):
    """communication.md §4: mean of C(v_k) + r_i, and r_i = v_i - C(v_i)."""
    sent = [compress(v) for v in vs]
    rest = [[v[j] - c[j] for j in range(2)] for v, c in zip(vs, sent, strict=True)]
    mean = [sum(c[j] for c in sent) / len(vs) for j in range(2)]
    return [[mean[j] + r[j] for j in range(2)] for r in rest], rest


def workers(rounds, gradient, model, every, rate=0.2, at_common=False):
    """x_i and e_i of workers that keep both, by the paper's rules; with `at_common`, of gradients at x_i - e_i."""
    x, e = [[1.0, -2.0] for _ in CENTRES], [[0.0, 0.0] for _ in CENTRES]
    for t in range(1, rounds + 1):
        at = [[xi[j] - ei[j] * at_common for j in range(2)] for xi, ei in zip(x, e, strict=True)]
        g = [[(a[j] - c[j]) / 2 for j in range(2)] for a, c in zip(at, CENTRES, strict=True)]
        moved, rest = psync(g, gradient)
        for i in range(len(x)):
            x[i] = [x[i][j] - rate * moved[i][j] for j in range(2)]
            e[i] = [e[i][j] - rate * rest[i][j] for j in range(2)]
        if t % every == 0:
            after, kept = psync(e, model)
            x = [[x[i][j] - e[i][j] + after[i][j] for j in range(2)] for i in range(len(x))]
            e = kept
    return x, e


RULES = {
    "top-1, never reset": (TopK(k=1), Identity(), 99, largest, list),
    "top-1 of both": (TopK(k=1), TopK(k=1), 3, largest, largest),
    "error assimilation": (None, TopK(k=1), 1, lambda v: [0.0, 0.0], largest),
    "partly synchronised local SGD": (None, TopK(k=1), 4, lambda v: [0.0, 0.0], largest),
}


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_taken_at_the_client_s_own_model(rule):
    """Against workers that keep x_i and e_i each; x_i - e_i of theirs is one and the same, which is the server's."""
    gradient, model, every, c2, c1 = RULES[rule]
    part = CSER(gradient, model, every=every, local=steps(0.2, batch_size=2))
    states = states_after(bowls(CENTRES, (1.0, -2.0)), part, 7)
    server = states[SERVER].streams["model"]["theta"]
    x, e = workers(7, c2, c1, every)
    for i in range(len(CENTRES)):
        assert [x[i][j] - e[i][j] for j in range(2)] == pytest.approx(server.tolist(), abs=1e-12)
        assert (server + states[i].own.value["theta"]).tolist() == pytest.approx(x[i], abs=1e-12)
    elsewhere, _ = workers(7, c2, c1, every, at_common=True)
    assert max(abs(a - b) for xs, ys in zip(x, elsewhere, strict=True) for a, b in zip(xs, ys, strict=True)) > 0.02


@pytest.mark.parametrize(
    ("every", "model", "gradient", "rate"), [(8, 16, 128, 64), (32, 8, 256, 128), (1, 256, None, 256)]
)
def test_rates(every, model, gradient, rate):
    """communication.md §4: 1 / (1 / (H R1) + 1 / R2), of what a client sends in H rounds, within what is by chance."""
    size = 1 << 17
    part = CSER(gradient and RandomK(1 / gradient), RandomK(1 / model), every=every, local=steps(0.1))
    drift, sent, index = part.client_init(None), 0, Whole({"w": (size,)})
    site = Site(0, None, {}, None, None, 3)
    change = {"w": torch.randn(size, generator=torch.Generator().manual_seed(1))}
    rounds = max(every, 16)
    for version in range(rounds):
        task = Task(version, version, 0, 0, (), 0)
        updates, drift = part.finish({"model": change}, Trained(change, 1, 0.0), index, task, drift, site)
        sent += sum(v.numel() for u in updates.values() for v in u.values().values())
    expected = rounds * size / rate
    assert rate == 1 / (1 / (every * model) + (1 / gradient if gradient else 0))
    assert sent == pytest.approx(expected, abs=5 * expected**0.5)


def test_a_reset_sends_other_coordinates_than_the_gradient():
    """What the gradient's draw has just sent is not owed: with the same draw, a reset would send nothing but zeros."""
    part, size = CSER(RandomK(0.5), RandomK(0.5), every=1), 1000
    trained, site = Trained({"w": torch.ones(size)}, 1, 0.0, 0), example_sites(example_model())[0]
    index, held = Whole({"w": (size,)}), {"model": {"w": torch.zeros(size)}}
    updates, own = part.finish(held, trained, index, Task(0, 0, 0, 0), Drift(), site)
    first, second = (set(updates[stream].index.coords("w").tolist()) for stream in ("model", "reset"))
    again = updates["reset"].values()["w"].sum()  # 1 for each that the first has left out
    assert float(again) == len(second - first) > 150
    assert float(own.value["w"].sum()) == size - len(first | second)


def test_cser_refuses():
    with pytest.raises(ValueError, match=r"CSER\(every=0\): must be at least 1, got 0\. 8 is usual\."):
        CSER(every=0)
    for part in (ErrorFeedback(TopK(k=1)), LowRank(1)):
        with pytest.raises(CompositionError, match=r"CSER\(\): needs compressors that keep nothing, got"):
            CSER(part)


def test_what_sends_nothing_of_gradients_has_no_stream_for_them():
    """A chain or an outer step for what is never sent would do nothing, and nobody would be told."""
    part = CSER(None, Identity(), every=2, local=steps(0.25))
    for around in (lambda: SignMomentum(part, 0.25), lambda: FedHyper(part)):
        with pytest.raises(CompositionError, match=r"what clients send of the model, got .* the streams \['reset'\]\."):
            around()
    of, outer = quadratic((0.0, 4.0), 1.0), chain(ServerSGD(0.5, momentum=0.0))
    with pytest.raises(CompositionError, match=r"has the streams \['reset'\], got a server chain for \['model'\]\."):
        theta_after(of, part, 2, server_chain={"model": outer})
    # Two versions of one step each, in which the mean goes from 1 to 2 - 0.75²; the server goes half of that.
    assert theta_after(of, part, 2, server_chain={"reset": outer}) == pytest.approx([1 + 0.5 * (1 - 0.75**2)])


@pytest.mark.parametrize("gradient", [None, Identity()])
def test_a_step_that_is_not_finite_stays_in_no_drift(gradient):
    part, params = CSER(gradient), {"w": torch.zeros(2)}
    wild = Trained({"w": torch.tensor([1.0, torch.inf])}, 1, 0.0, 0)
    with pytest.raises(ValueError, match=r"CSER\(.*\): needs a finite update, got NaN or infinity\."):
        part.finish({"model": params}, wild, Whole({"w": (2,)}), Task(0, 0, 0, 0), Drift(), None)
