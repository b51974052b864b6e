from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from partwise.core.errors import DataError
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.population import Examples
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.checks import check_fits

MODEL = Model(lambda: nn.Embedding(6, 2), BinaryCrossEntropy(), ("item",), {"weight": ("item",)})
PARAMS = MODEL.init(seed=0)


def population(ids, test=(0,), central=None) -> ArrayPopulation:
    return ArrayPopulation(
        {"item": torch.tensor(ids)},
        torch.tensor([0, 1, len(ids)]),
        {"item": torch.tensor(test)},
        torch.tensor([0, 0, len(test)]),
        central=central,
        names=["ann", "bob"],
    )


@dataclass(frozen=True)
class Plain:
    """A population that is no ArrayPopulation."""

    of: ArrayPopulation

    def __getattr__(self, name: str):
        return getattr(self.of, name)


@pytest.mark.parametrize("wrap", [lambda p: p, Plain])
def test_good_ids_pass(wrap):
    check_fits(wrap(population([0, 5, 3])), MODEL, PARAMS)


@pytest.mark.parametrize("wrap", [lambda p: p, Plain])
@pytest.mark.parametrize("bad", [6, -1])
def test_id_outside_the_table(wrap, bad):
    with pytest.raises(DataError, match=rf"in 0\.\.5, got {bad} in column 'item' of client 1 \(bob\)\. Number the ids"):
        check_fits(wrap(population([0, 5, bad])), MODEL, PARAMS)


@pytest.mark.parametrize("wrap", [lambda p: p, Plain])
def test_test_id_outside_the_table(wrap):
    with pytest.raises(DataError, match=r"got 8 in column 'item' of the test data of client 1 \(bob\)"):
        check_fits(wrap(population([0, 5, 3], test=(1, 8))), MODEL, PARAMS)


def test_central_id_outside_the_table():
    with pytest.raises(DataError, match="got 7 in column 'item' of the central test set"):
        check_fits(population([0, 1], central=Examples({"item": torch.tensor([7])})), MODEL, PARAMS)


def test_ids_that_are_no_whole_numbers():
    with pytest.raises(DataError, match=r"must be whole numbers in 0\.\.5, got torch\.float32 in column 'item'"):
        check_fits(population([0.0, 1.0]), MODEL, PARAMS)


@pytest.mark.parametrize("wrap", [lambda p: p, Plain])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float64])
def test_ids_of_a_type_that_torch_does_not_look_up(wrap, dtype):
    ids = torch.tensor([0, 1]).to(dtype)
    of = ArrayPopulation({"item": ids}, torch.tensor([0, 2]), names=["ann"])
    with pytest.raises(DataError, match=rf"got {dtype} in column 'item' of client 0 \(ann\)\. Give them as int64\."):
        check_fits(wrap(of), MODEL, PARAMS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_short_types(dtype):
    def of(last):
        return ArrayPopulation({"item": torch.tensor([0, last]).to(dtype)}, torch.tensor([0, 2]))

    check_fits(of(5), MODEL, PARAMS)
    with pytest.raises(DataError, match=r"got 6 in column 'item' of client 0 \(0\)\. Number the ids from 0"):
        check_fits(of(6), MODEL, PARAMS)


def test_missing_column_names_the_nearest():
    model = Model(lambda: nn.Embedding(6, 2), BinaryCrossEntropy(), ("items",))
    with pytest.raises(DataError, match=r"the clients: must name a column, got 'items'\. Did you mean 'item'\?"):
        check_fits(population([0, 1]), model, PARAMS)
