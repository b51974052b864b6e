"""Noise in a tree: which nodes a prefix has, how much noise that is, and that none is used twice."""

from __future__ import annotations

import pytest
import torch

from partwise.core.codec import decode, encode
from partwise.core.index import Whole
from partwise.core.rng import generator
from partwise.core.update import Update
from partwise.transforms import TreeNoise
from partwise.transforms.tree import node_variance

SIZE = 40_000  # coordinates, each a sample of its own
PARAMS = {"w": torch.zeros(SIZE, dtype=torch.float64)}


def outputs(part, rounds, value=0.0, seed=2):
    state, found = part.init(PARAMS), []
    for t in range(rounds):
        update = Update(Whole({"w": (SIZE,)}), {"w": torch.full((SIZE,), value + t, dtype=torch.float64)})
        sent, state = part.apply(update, state, generator(seed, "tree", t))
        found.append(sent.values()["w"])
    return found, state


def prefixes(rounds, **more):
    """N_t of z = S = 1, t from 1."""
    part = TreeNoise(1.0, 1.0, **more)
    found, _ = outputs(part, rounds)
    return (torch.stack(found) - torch.arange(rounds).double()[:, None]).cumsum(0)


def test_without_noise_the_prefix_is_the_cumulative_sum_exactly():
    found, _ = outputs(TreeNoise(0.0, 1.0), 9, value=3.0)
    assert all(torch.equal(v, torch.full((SIZE,), 3.0 + t).double()) for t, v in enumerate(found))


def test_a_prefix_has_the_nodes_of_its_binary_expansion():
    part = TreeNoise(1.0, 1.0)
    assert [len(outputs(part, t)[1]["nodes"]) for t in range(1, 9)] == [1, 1, 2, 1, 2, 2, 3, 1]
    assert [levels for levels, _ in outputs(part, 7)[1]["nodes"]] == [3, 2, 1]


def test_two_prefixes_share_as_much_noise_as_they_share_nodes():
    noise = prefixes(8, efficient=False)

    def covariance(one, other):
        return float((noise[one - 1] * noise[other - 1]).mean())

    near = 5 * 3 / SIZE**0.5
    for t in range(1, 9):
        assert covariance(t, t) == pytest.approx(f"{t:b}".count("1"), abs=near)
    shared = {(3, 2): 1, (7, 6): 2, (7, 4): 1, (8, 7): 0, (2, 1): 0, (5, 4): 1, (6, 5): 1}
    for (one, other), nodes in shared.items():
        assert covariance(one, other) == pytest.approx(nodes, abs=near), (one, other)


def test_the_variance_of_the_efficient_estimate():
    assert [round(node_variance(levels), 4) for levels in range(1, 6)] == [1, 0.6667, 0.5714, 0.5333, 0.5161]
    recursion = [1.0]
    for _ in range(4):
        below = 2 * recursion[-1]  # of the sum of two children, beside the node's own 1
        recursion.append(below / (1 + below))
    assert recursion == pytest.approx([node_variance(levels) for levels in range(1, 6)], rel=1e-12)
    noise = prefixes(16)
    for t, levels in ((1, [1]), (2, [2]), (3, [2, 1]), (8, [4]), (11, [4, 2, 1]), (16, [5])):
        expected = sum(node_variance(n) for n in levels)
        assert float(noise[t - 1].var()) == pytest.approx(expected, rel=5 * (2 / SIZE) ** 0.5), t


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.parametrize("every", [1, 3, 4, 5])
def test_a_completed_tree_leaves_the_noise_of_its_root_and_the_next_has_noise_of_its_own(every, efficient):
    noise = prefixes(2 * every, restart_every=every, efficient=efficient)
    root = node_variance(1 + (every - 1).bit_length()) if efficient else 1.0
    first, second = noise[every - 1], noise[2 * every - 1] - noise[every - 1]
    for tree in (first, second):
        assert float(tree.var()) == pytest.approx(root, rel=5 * (2 / SIZE) ** 0.5)
    assert float((first * second).mean()) == pytest.approx(0, abs=5 * root / SIZE**0.5)


class OneByOne:
    """Draw k is the k-th unit vector, so that a sum of draws shows the factor of each."""

    is_simulated = True

    def __init__(self):
        self.count = 0

    def normal(self, shape, rng):
        draw = torch.zeros(tuple(shape), dtype=torch.float64)
        draw[self.count] = 1.0
        self.count += 1
        return draw


@pytest.mark.parametrize("every", range(1, 17))
def test_a_completed_tree_has_the_variance_of_its_root_exactly(every):
    """The smallest tree over so many leaves has l levels, and the best estimate of its root 1 / (2 (1 - 2^-l))."""
    noise = prefixes(every, restart_every=every, randomness=OneByOne())[-1]
    levels = next(n for n in range(1, 6) if 2 ** (n - 1) >= every)
    assert float((noise**2).sum()) == pytest.approx(1 / (2 * (1 - 2.0**-levels)), rel=1e-12)


def test_the_state_is_one_vector_per_open_level():
    state = outputs(TreeNoise(1.0, 1.0), 15)[1]
    assert len(state["nodes"]) == 4
    after = decode(bytearray(encode(state)))
    update = Update(Whole({"w": (SIZE,)}), {"w": torch.zeros(SIZE, dtype=torch.float64)})
    one, other = (
        TreeNoise(1.0, 1.0).apply(update, s, generator(2, "tree", 15))[0].values()["w"] for s in (state, after)
    )
    assert torch.equal(one, other)


def test_rounds_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"TreeNoise\(restart_every=-1\): must be at least 0, got -1"):
        TreeNoise(1.0, 1.0, restart_every=-1)
