"""FedHyper-G: the server's rate, alone and behind the real server."""

from __future__ import annotations

import math

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.codec import decode, encode
from partwise.core.index import Coords, Rows, Whole
from partwise.core.transform import Chain
from partwise.core.update import Update
from partwise.transforms import HyperRate, ServerSGD
from toy_sent import RNG
from toy_star import everybody, full_batch, number_model, parabolas, run, server, star_of


def whole(*values):
    return Update(Whole({"w": (len(values),)}), {"w": torch.tensor(values, dtype=torch.float64)}, 4.0)


def feed(part, updates):
    """What comes out, and alpha after each update."""
    state, steps, alphas = part.init({}), [], []
    for update in updates:
        step, state = part.apply(update, state, RNG)
        steps.append(step)
        alphas.append(state[0])
    return steps, alphas


def two_clients(*chain):
    """optimisation.md §9.6: halves of (w - 0)² and (w - 4)², rate 0.1, one step, from w = 10."""
    population = parabolas((1.0, 1.0), (0.0, 4.0))
    star = star_of(
        FedAvg(full_batch(1), "uniform"),
        number_model(10.0),
        population,
        everybody(population, 6),
        server_chain={"model": Chain(chain)},
    )
    _, log = run(star, lambda world: (float(server(world).streams["model"]["w"]), server(world).chains["model"]))
    return [w for w, _ in log.seen], [chain for _, chain in log.seen]


def test_numbers_of_the_method_notes():
    at, chains = two_clients(HyperRate(gamma=3.0))
    alphas = [states[0][0] for states in chains]
    assert alphas == pytest.approx([1, 1.576, 2.01270016, 2.306533923, 2.487094830, 2.591459542], abs=5e-10)
    assert at == pytest.approx([9.2, 8.06528, 6.844520997, 5.727115795, 4.800146753, 4.074500050], abs=5e-10)


def test_bound_of_one_is_federated_averaging_to_the_bit():
    assert two_clients(HyperRate(gamma=1.0))[0] == two_clients()[0]
    assert two_clients(HyperRate(rate=0.0))[0] == two_clients()[0]


def test_orthogonal_aggregates_leave_the_rate():
    steps, alphas = feed(HyperRate(), [whole(3.0, 0.0), whole(0.0, -2.0), whole(0.5, 0.0), whole(0.0, 0.0)])
    assert alphas == [1, 1, 1, 1]
    assert [s.values()["w"].tolist() for s in steps] == [[3, 0], [0, -2], [0.5, 0], [0, 0]]


def test_alternating_aggregates_lower_it_by_their_square():
    """The norm is 0.3, so alpha falls by 0.09 a round, down to a third."""
    forth, back = whole(0.3 * 0.6, 0.3 * 0.8), whole(-0.3 * 0.6, -0.3 * 0.8)
    steps, alphas = feed(HyperRate(gamma=3.0), [forth, back] * 5)
    assert alphas == pytest.approx([max(1 - 0.09 * t, 1 / 3) for t in range(10)], abs=1e-12)
    assert alphas[-2:] == [1 / 3, 1 / 3]
    assert steps[-1].values()["w"].tolist() == pytest.approx([-0.06, -0.08], abs=1e-12)
    assert steps[-1].weight == 4.0


@pytest.mark.parametrize(("sign", "bound"), [(1, 2.5), (-1, 0.4)])
def test_rate_stays_within_its_bounds(sign, bound):
    assert feed(HyperRate(2.5), [whole(100.0), whole(sign * 100.0)])[1] == [1, bound]


def test_speed_and_cosine():
    updates = [whole(3.0, 0.0), whole(0.4, 0.3), whole(-0.8, -0.6)]
    assert feed(HyperRate(9.0, rate=0.1), updates)[1] == pytest.approx([1, 1.12, 1.12 - 0.05])
    assert feed(HyperRate(9.0, rate=0.1, normalize=True), updates)[1] == pytest.approx([1, 1.08, 0.98])
    assert feed(HyperRate(normalize=True), [whole(0.0), whole(2.0), whole(0.0)])[1] == [1, 1, 1]


def test_product_runs_over_what_both_touch():
    """Rows 1 and 4, then 4 and 6, then everything: 2 * 5 over row 4, then 5 * 1 + 7 * 3 over rows 4 and 6."""

    def rows(at, values):
        value = torch.tensor(values).reshape(-1, 1)
        return Update(Rows({"E": (9, 1)}, {"E": torch.tensor(at)}), {"E": value})

    everything = Update(Whole({"E": (9, 1)}), {"E": torch.tensor([9.0, 9, 9, 9, 1, 9, 3, 9, 9]).reshape(9, 1)})
    single = Update(Coords({"E": (9, 1)}, {"E": torch.tensor([6])}), {"E": torch.tensor([-2.0])})
    updates = [rows([1, 4], [4.0, 2.0]), rows([4, 6], [5.0, 7.0]), everything, single, rows([0, 8], [1.0, 1.0])]
    assert feed(HyperRate(50.0), updates)[1] == [1, 11, 37, 31, 31]


def test_a_saved_state_is_independent_of_what_came_in():
    update = whole(2.0)
    part = HyperRate(50.0)
    _, state = part.apply(update, part.init({}), RNG)
    update.values()["w"].fill_(99.0)
    _, state = part.apply(whole(3.0), decode(bytearray(encode(state))), RNG)
    assert state[0] == 7.0


def test_behind_a_server_optimizer_it_sees_the_step():
    at, chains = two_clients(ServerSGD(lr=0.5, momentum=0.0), HyperRate())
    assert chains[1][1][0] == pytest.approx(1 + 0.5 * 0.8 * 0.5 * 0.76)
    assert at[0] == pytest.approx(9.6)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"HyperRate\(gamma=0\.5\): must be finite and at least 1, got 0\.5\. 3 is"):
        HyperRate(0.5)
    with pytest.raises(ValueError, match=r"HyperRate\(rate=-1\): must be finite and at least 0, got -1\. 1 is usual"):
        HyperRate(rate=-1)
    with pytest.raises(ValueError, match=r"HyperRate\(gamma=nan\)"):
        HyperRate(math.nan)
