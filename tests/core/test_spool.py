"""Trees that go to a file and come back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partwise.core.codec import decode, encode
from partwise.core.errors import CheckpointError
from partwise.core.index import Rows
from partwise.core.spool import Kept, Spool, footprint, owned
from partwise.core.update import Update


class Pair(NamedTuple):
    left: object
    right: object


def tree(n: int = 2000, at: float = 0.5) -> dict[str, object]:
    rows = torch.arange(0, 2 * n, 2)
    update = Update(Rows({"E": (2 * n, 1)}, {"E": rows}), {"E": torch.full((n, 1), at)}, 3.0)
    return {"update": update, "list": [torch.arange(n), (1, None)], "array": np.arange(5.0)}


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    return encode(a) == encode(b)


def test_what_fits_stays_and_what_does_not_goes_to_the_file():
    spool = Spool(max_bytes=60_000)
    first, second, small = spool.keep(tree(at=1.0)), spool.keep(tree(at=2.0)), spool.keep({"n": 3})
    assert (first.is_in_file, second.is_in_file, small.is_in_file) == (False, True, False)
    assert 40_000 < spool.bytes_in_memory <= 60_000
    assert spool.bytes_in_file > 8_000  # the ascending rows and the long range are packed
    assert same(second.tree, tree(at=2.0))
    assert same(second.tree, tree(at=2.0))  # reading does not take
    assert same(first.take(), tree(at=1.0))
    assert spool.bytes_in_memory == footprint({"n": 3})
    assert same(second.take(), tree(at=2.0))
    assert spool.bytes_in_file == 0
    assert not spool.keep(tree()).is_in_file  # there is room again


def test_what_is_dropped_makes_room():
    spool = Spool(max_bytes=0)
    kept = [spool.keep(tree(at=float(i))) for i in range(4)]
    assert spool.bytes_in_file > 4 * 8_000
    del kept
    gc.collect()
    assert spool.bytes_in_file == 0


@given(st.lists(st.tuples(st.integers(1100, 6000), st.integers(0, 5)), min_size=1, max_size=25))
def test_places_of_the_file_are_used_again_and_never_shared(steps):
    spool = Spool(max_bytes=0)
    kept: dict[int, tuple[Kept, float]] = {}
    for number, (n, victim) in enumerate(steps):
        kept[number] = spool.keep({"w": torch.full((n,), float(number))}), float(number)
        if victim in kept:
            found, value = kept.pop(victim)
            assert bool((found.take()["w"] == value).all())
    for found, value in kept.values():
        assert bool((found.take()["w"] == value).all())
    assert (spool.bytes_in_file, spool._end, spool._gaps) == (0, 0, [])


def test_file_does_not_grow_when_things_come_and_go():
    spool = Spool(max_bytes=0)
    first = spool.keep({"w": torch.zeros(5000)})
    for _ in range(20):
        held, first = first, spool.keep({"w": torch.zeros(5000)})
        held.take()
    assert spool._end <= 3 * 24_576


def test_kept_trees_are_encoded_as_what_they_keep():
    spool = Spool(max_bytes=0)
    kept = spool.keep(tree())
    assert kept.is_in_file
    again = decode(encode({"inbox": {7: kept}}))["inbox"][7]
    assert same(again.tree, tree())
    assert same(again.take(), tree())
    assert same(decode(bytearray(b"".join(kept.encoded()))), tree())


def test_owned_tensors_are_aligned_and_let_go_of_the_message():
    message = bytearray(encode(Pair_tree()))
    found = owned(decode(message))
    for name, value in found["values"].items():
        assert value.data_ptr() % 64 == 0, name
        assert value.untyped_storage().nbytes() == value.nbytes
    assert encode(found) == bytes(message)
    message.append(0)  # no view holds the buffer: it can be resized


def Pair_tree() -> dict[str, object]:
    values = {f"w{n}": torch.arange(n, dtype=torch.float32) for n in (3, 33, 70)}
    return {"values": values, "rows": [torch.tensor([True, False])], "pair": (1, np.float32(2.0))}


def test_footprint_counts_bytes_of_tensors():
    assert footprint(torch.zeros(100)) == 400
    assert 800 <= footprint({"a": [np.zeros(100)], "b": None}) < 1000
    assert 4000 + 8000 <= footprint(tree(1000)["update"]) < 12_500
    assert footprint(Pair(b"abc", "defg")) < 100


def test_folder_that_cannot_be_written(tmp_path):
    spool = Spool(max_bytes=0, folder=str(tmp_path / "none"))
    with pytest.raises(
        CheckpointError, match=r"^Spool\(folder='.*none'\): needs a folder it can write to for \d+ bytes"
    ):
        spool.keep(tree())


def test_full_disk(monkeypatch):
    class Full:
        closed = False

        def seek(self, at: int) -> None: ...
        def truncate(self, at: int) -> None: ...
        def close(self) -> None: ...

        def write(self, part: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(
        CheckpointError, match=r"needs room on the disk for \d+ bytes, got: No space left on device. Free"
    ):
        Spool(max_bytes=0).keep(tree())


# A disk with room for a few trees only.
FULL = """
import resource, torch
from partwise.core.errors import CheckpointError
from partwise.core.spool import Spool
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
spool, kept = Spool(max_bytes=0), []
try:
    while True:
        kept.append(spool.keep(torch.arange(1500.0)))
except CheckpointError as error:
    print(error)
kept.clear()
"""


def test_nothing_is_said_behind_the_sentence_of_a_full_disk():
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # which writes files, too
    ran = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True, env=env)
    assert ran.stderr == ""
    assert "needs room on the disk for" in ran.stdout


def test_no_folder_for_temporary_files(monkeypatch):
    def nowhere(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.TemporaryFile", nowhere)
    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.setattr("tempfile.tempdir", None)
    said = r"^Spool\(folder=None\): needs a folder it can write to for \d+ bytes, got: No usable temporary directory"
    with pytest.raises(CheckpointError, match=said):
        Spool(max_bytes=0).keep(tree())
