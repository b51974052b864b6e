"""The size of a tree is the length of its encoding, also where part of it was found before."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import strategies
from partwise.core.aggregate import Sum
from partwise.core.codec import decode, encode, encoded_size
from partwise.core.index import Coords, Joint, Rows, Whole
from partwise.core.sizes import UncommonError, header_and_blocks
from partwise.core.spool import Kept, Spool, owned
from partwise.core.tree import register
from partwise.core.update import Update
from partwise.programs.messages import Fetch, Reply
from partwise.transforms import Quantize
from wire import Pair, Ratio

CALM = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

INTS = [
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


def right(tree: Any) -> bool:
    """Twice: what is found the first time is kept for the second."""
    length = len(encode(tree))
    return encoded_size(tree) == length and encoded_size(tree) == length


def is_common(tree: Any) -> bool:
    """Whether the size was found without encoding."""
    try:
        header_and_blocks(tree)
    except UncommonError:
        return False
    return True


def nested(inner: Any, levels: int, wrap: Any) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


# Messages of frozen objects


@st.composite
def messages(draw) -> Any:
    """Fetches, replies and sums, plain and quantised, over any index; an index may be in several of them."""
    update, _, _ = draw(strategies.updates())
    if draw(st.booleans()):
        rng = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        update, _ = Quantize(bits=draw(st.sampled_from([2, 4, 8])), bucket=3).apply(update, (), rng)
    if draw(st.booleans()):
        weight = {n: torch.ones(update.index.held_shape(n)[:1], dtype=torch.int64) for n in update.value}
        update = dataclasses.replace(update, weight=weight)
    many = Sum(update.index, update.values(), update.values(), 7.5, 3)
    reply = Reply(draw(st.integers(-(2**70), 2**70)), 2, 3, 0.5, {"model": update, "": update})
    return draw(st.sampled_from([Fetch(300, update.index), update, reply, many, [update, many, reply], {7: many}]))


@CALM
@given(messages())
def test_messages(message):
    assert right(message)
    for same in (
        pickle.loads(pickle.dumps(message)),
        copy.copy(message),
        copy.deepcopy(message),
        owned(decode(encode(message))),
        owned(message),
    ):
        assert right(same)
        assert encode(same) == encode(message)


@CALM
@given(strategies.indices())
def test_messages_are_common(drawn):
    update = Update(drawn.index, {"w": torch.zeros(3)}, 2.0)
    assert is_common(Reply(1, 2, 3, 0.5, {"model": update}))
    assert is_common(Fetch(3, drawn.index))


# Integers, which are packed


@st.composite
def packed(draw) -> torch.Tensor:
    """Rising, falling, equal and repeated integers over all of a type's range."""
    dtype = draw(st.sampled_from(INTS))
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    bound = draw(st.sampled_from([1, 200, 70_000, 2**40, 2**64]))
    base = draw(st.sampled_from([low, 0, high // 3, max(low, high - 300)]))
    some = draw(st.lists(st.integers(base, min(high, base + bound)), min_size=1, max_size=30))
    values = some * draw(st.sampled_from([1, 3, 40]))
    values = sorted(values) if draw(st.booleans()) else values
    found = torch.from_numpy(np.array(values, str(dtype).removeprefix("torch.")))
    return found if draw(st.booleans()) else found.reshape(1, -1, 1)


@CALM
@given(packed())
def test_integers(ints):
    assert is_common(ints)
    assert right(ints)
    assert right({"a": [ints, Pair(ints, Ratio(0.5, ints))]})


def written_to() -> Iterator[Any]:
    ids = torch.arange(1000, 2000)
    yield ids, Coords({"w": (9000,)}, {"w": ids})
    rows = torch.arange(0, 700, 7)
    yield rows, Joint((Whole({"b": (4,)}), Rows({"t": (900, 2)}, {"t": rows})))
    count = torch.arange(90)
    yield count, Ratio(1.0, (None, {"a": [Pair(Ratio(2.0, count))]}))


@pytest.mark.parametrize(("ints", "holder"), list(written_to()), ids=["coords", "joint", "nested"])
def test_what_is_kept_ends_when_an_integer_is_written_to(ints, holder):
    before = len(encode(holder))
    assert encoded_size(holder) == before
    ints.copy_(torch.randperm(len(ints), generator=torch.Generator().manual_seed(1)) * 2**33)
    assert len(encode(holder)) != before
    assert right(holder)
    view = ints.view(-1)[::2]
    view.zero_()
    assert right(Fetch(1, holder))


def test_replaced_is_another_object():
    index = Coords({"w": (9000,)}, {"w": torch.arange(100)})
    assert right(index)
    assert right(dataclasses.replace(index, at={"w": torch.arange(200) * 17}))
    assert right(dataclasses.replace(Ratio(1.0, index), rows="much longer than before"))


# What is kept, and for how long


def sizes_in(tree: Any) -> bool:
    return any("size" in name for name in vars(tree))


def test_only_what_lasts_is_kept():
    index, floats = Rows({"t": (90, 2)}, {"t": torch.arange(0, 80, 3)}), torch.ones(27, 2)
    update = Update(index, {"t": floats}, 3.0)
    levels = Quantize(bits=4).apply(update, (), torch.Generator())[0].value["t"]
    for tree in (update, Fetch(3, index), levels, Ratio(1.0, Kept(3)), Ratio(1.0, np.arange(3))):
        assert right(tree)
    assert sizes_in(index)
    assert not sizes_in(update)
    assert not sizes_in(levels)
    update.value["u"] = torch.ones(5)
    assert right(update)
    with torch.inference_mode():
        odd = Coords({"w": (9000,)}, {"w": torch.arange(100)})
        assert right(odd)
        odd.at["w"][50:] = 8000
        assert right(odd)


def test_what_stands_for_something_in_a_file():
    kept = Spool(max_bytes=0).keep({"t": torch.arange(5000), "w": torch.ones(3000)})
    tree = Ratio(1.0, kept)
    assert kept.is_in_file
    assert right(tree)
    kept.take()
    assert right(tree)


def test_no_pickle_and_no_copy_has_it():
    index = Rows({"t": (90, 2)}, {"t": torch.arange(0, 80, 3)})
    before = pickle.dumps(index)
    assert right(index)
    assert b"core.sizes" not in pickle.dumps(index)
    assert len(pickle.dumps(index)) < len(before) + 60
    assert not any(vars(pickle.loads(pickle.dumps(index)))[name] for name in vars(index) if "size" in name)
    assert not any(vars(copy.deepcopy(index))[name] for name in vars(index) if "size" in name)


def test_it_keeps_nothing_alive():
    ids = torch.arange(1000)
    index, end = Coords({"w": (9000,)}, {"w": ids}), weakref.ref(ids)
    assert right(Fetch(1, index))
    del ids, index
    gc.collect()
    assert end() is None


# Other trees


@pytest.mark.parametrize(
    "tree",
    [
        {f"layer.{i}.weight": torch.full((i % 3,), 1.5) for i in range(255)},
        {f"layer.{i}.weight": torch.full((i % 3,), 1.5) for i in range(256)},
        dict.fromkeys(range(300)),
        [0.5] * 255,
        tuple([True] * 256),
        [None] * 65_535,
        [None] * 65_536,
        [torch.zeros(())] * 130,
        ["", "a" * 31, "b" * 32, "ü" * 127, "ü" * 128, "c" * 255, "d" * 256, "e" * 70_000, "\ud800"],
        {"x" * 400: "y" * 33_000},
        [s * (2**k) + d for k in (5, 7, 8, 15, 16, 31, 32, 62) for s in (-1, 1) for d in (-1, 0, 1)],
        torch.zeros(5, 0, 300),
        torch.zeros(1, 1).expand(200, 70_000),
        torch.zeros(4, dtype=torch.complex64).conj(),
        Whole({}),
    ],
    ids=range(15),
)
def test_common_trees(tree):
    assert is_common(tree)
    assert right(tree)


@pytest.mark.parametrize(
    "tree",
    [
        2**64, -(2**63) - 1, 2**700, b"", b"x" * 1023, b"x" * 5000, frozenset(range(20)), frozenset({3}),
        np.float32(2.5), np.int64(-3), np.bool_(True), np.arange(300), np.zeros(3), {("a", 3): 1},
        torch.nn.Parameter(torch.zeros(3)), [1, {"a": (np.float16(1.0), torch.arange(70))}],
        Fetch(2**65, Whole({"w": (3,)})), Ratio(1.0, np.int16(7)),
    ],
    ids=range(18),
)  # fmt: skip
def test_uncommon_trees(tree):
    assert not is_common(tree)
    assert right(tree)


def test_many_classes():
    kinds = [register(dataclasses.make_dataclass(f"Sized{i}", [("x", int)], frozen=i % 2 == 0)) for i in range(300)]
    assert right([kind(i) for i, kind in enumerate(kinds[:256])])
    assert right([kind(i) for i, kind in enumerate(kinds)] * 2)


# Refusals are those of `encode`


def refusal(function: Any, tree: Any) -> tuple[type, str]:
    with pytest.raises((TypeError, ValueError)) as caught:
        function(tree)
    return caught.type, str(caught.value)


WRAPS = {
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"a": x},
    "named tuple": Pair,
    "frozen": lambda x: Ratio(1.0, x),
    "spooled": Kept,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("inner", [3, (), {}, torch.arange(3), Ratio(2.0)], ids=str)
def test_as_deep_as_it_may_be(inner, wrap):
    empty = inner if isinstance(inner, tuple | dict | Ratio) else None
    levels = 64 if empty is None else 63
    assert right(nested(inner, levels, WRAPS[wrap]))
    tree = nested(inner, levels + 1, WRAPS[wrap])
    assert refusal(encoded_size, tree) == refusal(encode, tree)
    assert refusal(encoded_size, tree)[0] is ValueError


def test_deep_with_a_size_that_is_kept():
    inner = nested(Ratio(1.0), 30, WRAPS["frozen"])
    assert right(inner)
    assert right(nested(inner, 33, WRAPS["list"]))
    tree = nested(inner, 34, WRAPS["list"])
    assert refusal(encoded_size, tree) == refusal(encode, tree)
    endless: list[Any] = []
    endless.append(endless)
    assert refusal(encoded_size, endless) == refusal(encode, endless)


@pytest.mark.parametrize(
    "thing",
    [
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.int64, device="meta"),
        torch.zeros([1] * 33),
        torch.eye(3).to_sparse(),
        {True: 1},
        {1.5: 1},
        {("a", 2.5): 1},
        object(),
        {1, 2},
        np.array(["a"]),
        frozenset({"a"}),
        st,
    ],
    ids=range(12),
)
def test_what_cannot_be_encoded_has_no_size(thing):
    for tree in (thing, {"a": [thing]}, Ratio(1.0, thing), Update(Whole({"w": (3,)}), {"w": thing})):
        assert refusal(encoded_size, tree) == refusal(encode, tree)
        assert refusal(encoded_size, tree)[0] is TypeError
