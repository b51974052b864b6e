from __future__ import annotations

import numpy as np
import torch

from partwise.core.rng import derive, generator, numpy_generator, restarts


def test_streams_differ_by_seed_purpose_and_every_key():
    seeds = {derive(s, p, c, v) for s in range(5) for p in ("batches", "noise") for c in range(5) for v in range(5)}
    assert len(seeds) == 250
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(1, "a", 12, 3) != derive(1, "a", 1, 23)


def test_generators_repeat_and_know_nothing_of_the_global_one():
    torch.manual_seed(0)
    a = torch.rand(4, generator=generator(1, "x", 2))
    torch.manual_seed(9)
    assert torch.equal(a, torch.rand(4, generator=generator(1, "x", 2)))
    assert numpy_generator(1, "x", 2).integers(0, 2**60) == numpy_generator(1, "x", 2).integers(0, 2**60)


def test_restarts_are_the_generators_of_numpy():
    """Also of seeds that NumPy takes for one word of 32 bits, or for none."""
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, *(derive(7, "batches", n) for n in range(40))]
    found = [chance.integers(0, 2**60, 3).tolist() for chance in restarts(seeds)]
    assert found == [np.random.Generator(np.random.Philox(seed)).integers(0, 2**60, 3).tolist() for seed in seeds]
    assert [chance.permutation(60).tolist() for chance in restarts([derive(3, "x", 1)])] == [
        numpy_generator(3, "x", 1).permutation(60).tolist()
    ]
    assert list(restarts([])) == []
