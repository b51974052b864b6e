from __future__ import annotations

import threading

import pytest
import torch

from partwise.runtimes.threads import at_once, torch_threads


@pytest.fixture
def four():
    with torch_threads(4):
        yield


def test_torchs_threads_are_as_they_were(four):
    with torch_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("calls", "each"), [(1, 4), (2, 2), (3, 1), (4, 1), (7, 1)])
def test_calls_are_made_at_once_and_share_torchs_threads(four, calls, each):
    barrier = threading.Barrier(calls, timeout=10)  # nobody is through before all have begun

    def call(number: int) -> tuple[int, int]:
        barrier.wait()
        return number, torch.get_num_threads()

    assert at_once([lambda n=n: call(n) for n in range(calls)]) == [(n, each) for n in range(calls)]
    assert torch.get_num_threads() == 4


def test_no_calls(four):
    assert at_once([]) == []


@pytest.mark.parametrize("bad", [0, 2])
def test_what_one_raises_is_raised_once_all_have_ended(four, bad):
    ended: list[int] = []

    def call(number: int) -> None:
        if number == bad:
            raise KeyError(f"call {number}")
        ended.append(number)

    with pytest.raises(KeyError, match=f"call {bad}"):
        at_once([lambda n=n: call(n) for n in range(3)])
    assert sorted(ended) == [n for n in range(3) if n != bad]
    assert torch.get_num_threads() == 4
