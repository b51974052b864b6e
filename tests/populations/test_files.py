"""Populations in files: the same as in memory, opened without being read, and refused where they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from partwise.algorithms import FedAvg
from partwise.channels import Plain as InTheClear
from partwise.core.errors import DataError
from partwise.core.model import MeanSquaredError, Model
from partwise.core.population import Examples
from partwise.core.program import SERVER
from partwise.experiment.spec import loads
from partwise.local import SGD, LocalTraining
from partwise.populations import (
    ArrayPopulation,
    ClientColumns,
    LogNormal,
    Unreliable,
    from_arrays,
    from_files,
    write_folder,
)
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain, Pool, Stacked
from partwise.runtimes.executors.slots import Inherited
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Uniform
from toy_star import Log

SIZES = (3, 7, 2, 5, 11)


def saved(folder: Path, **columns: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    return folder


def in_memory() -> ArrayPopulation:
    """Five clients of unlike size, x in float64 and y in whole numbers, two of them with test examples."""
    draw = torch.Generator().manual_seed(2)
    n = sum(SIZES)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    columns = {"x": x, "y": torch.randint(-4, 9, (n,), generator=draw)}
    test = {name: column[:6] * 2 for name, column in columns.items()}
    return ArrayPopulation(
        columns,
        torch.tensor([0, *SIZES]).cumsum(0),
        test,
        torch.tensor([0, 0, 4, 4, 4, 6]),
        central=Examples({name: column[4:7] for name, column in columns.items()}),
        names=["anna", "b", "c", "d", "ö"],
    )


def parts(population) -> list[object]:
    found = []
    for client in population.clients:
        test = population.test_data(client)
        found += [population.name(client), population.data(client).columns(), test.columns() if test else None]
    return [*found, population.central_test().columns()]


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
        )
    return one == other


# The same population


def test_what_is_written_is_what_is_read(tmp_path):
    write_folder(tmp_path / "people", in_memory())
    found = from_files(tmp_path / "people", profiles=LogNormal(seed=3), reliability=Unreliable(upload=1.0))
    assert found.fate(0, 4).stage == "upload"
    assert all(same(a, b) for a, b in zip(parts(found), parts(in_memory()), strict=True))
    assert found.profile(2) == LogNormal(seed=3).profile(2)
    assert found.sizes().tolist() == list(SIZES)


def test_a_folder_that_numpy_wrote(tmp_path):
    x = np.arange(12, dtype=np.float64).reshape(6, 2) / 7
    saved(tmp_path, x=x, y=np.arange(6, dtype=np.int16), offsets=np.array([0, 2, 6]))
    found = from_files(tmp_path)
    assert torch.equal(found.data(1).columns()["x"], torch.from_numpy(x[2:]))
    assert found.data(0).columns()["y"].dtype == torch.int16
    assert (found.name(1), found.test_data(0), found.central_test()) == ("1", None, None)


def test_a_safetensors_file(tmp_path):
    was = in_memory()
    tensors = {"x": was.columns["x"], "y": was.columns["y"].to(torch.uint8), "offsets": was.offsets}
    tensors |= {"test/x": was.test_columns["x"], "test/offsets": was.test_offsets, "half": was.columns["y"].bfloat16()}
    tensors["central/x"] = was.columns["x"][4:7].clone()
    save_file(tensors, tmp_path / "all.safetensors", metadata={"by": "a test"})
    found = from_files(tmp_path / "all.safetensors")
    assert torch.equal(found.data(3).columns()["x"], was.data(3).columns()["x"])
    assert torch.equal(found.data(4).columns()["half"], was.data(4).columns()["y"].bfloat16())
    assert torch.equal(found.test_data(4).columns()["x"], was.test_data(4).columns()["x"])
    assert torch.equal(found.central_test().columns()["x"], was.central_test().columns()["x"])


def test_a_stream_of_clients_is_written_one_at_a_time(tmp_path):
    alive = []

    class Column(list):
        def __del__(self):
            alive.remove(id(self))

    def people():
        for n in SIZES:
            column = Column(float(i) for i in range(n))
            alive.append(id(column))
            assert len(alive) <= 2
            yield {"x": column}
            del column

    write_folder(tmp_path, people(), central={"x": [5.0, 6.0]})
    found = from_files(tmp_path)
    assert found.sizes().tolist() == list(SIZES)
    assert found.data(4).columns()["x"].tolist() == list(range(11))
    assert found.central_test().columns()["x"].tolist() == [5.0, 6.0]


def test_clients_with_keys_keep_them(tmp_path):
    write_folder(tmp_path, from_arrays({"x": [1.0, 2.0, 3.0]}, client=["zoe", "al", "zoe"]))
    found = from_files(tmp_path)
    assert [found.name(c) for c in found.clients] == ["al", "zoe"]
    assert list(found.names[:1]) == ["al"]


def test_names_that_are_numbers_are_written_as_text(tmp_path):
    write_folder(tmp_path / "a", [ClientColumns({"x": [1.0]}, name=number) for number in (7, 0)])
    assert list(from_files(tmp_path / "a").names) == ["7", "0"]


@pytest.mark.parametrize("names", [("al", "bo", "al"), ("2", "bo", "")])  # one without a name is called by its number
def test_two_clients_of_one_name_are_not_written(tmp_path, names):
    with pytest.raises(DataError, match=rf"own, got '{names[0]}' for client 0 and client 2\. Rename one"):
        write_folder(tmp_path / "a", [ClientColumns({"x": [1.0]}, name=name) for name in names])
    with pytest.raises(DataError, match="needs offsets"):
        from_files(tmp_path / "a")


def test_writing_into_what_was_read_changes_no_file(tmp_path):
    saved(tmp_path, x=np.zeros(4), offsets=np.array([0, 4]))
    from_files(tmp_path).data(0).columns()["x"].add_(1)
    assert from_files(tmp_path).data(0).columns()["x"].sum() == 0


# Executors


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).squeeze(1)


def trained(population: ArrayPopulation, executor) -> torch.Tensor:
    model = Model(Line, MeanSquaredError())
    algorithm = FedAvg(LocalTraining(SGD(0.05), batch_size=2, steps=4))
    star = Star(algorithm, Synchronous(4, 3), model, population, InTheClear(), seed=5)
    states, _ = Simulate(executor=executor).run(star.programs(), population, Log())
    return torch.cat([t.flatten() for t in states[SERVER].streams["model"].values()])


@pytest.mark.parametrize("executor", [Plain(), Pool(workers=2), Stacked()], ids=repr)
def test_training_gives_the_same_bits_as_from_memory(tmp_path, executor):
    write_folder(tmp_path, in_memory())
    expected = trained(in_memory(), executor)
    assert torch.equal(trained(from_files(tmp_path), executor), expected)
    assert expected.abs().sum() > 0.1


def test_forks_inherit_the_map(tmp_path):
    write_folder(tmp_path, in_memory())
    column = from_files(tmp_path).data(1).columns()["x"]
    inherited = Inherited()
    inherited.add_storage(column.untyped_storage())
    assert inherited.storage(from_files(tmp_path).data(1).columns()["x"].untyped_storage()) is None
    assert inherited.storage(column[1:].untyped_storage()) is not None


SPARSE = """
import json, resource, sys, time
import numpy as np
from test_files import Plain, Pool, Stacked, from_files, trained

def peak():
    own, forks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own, max(own, forks)

before, began = peak()[0], time.process_time()  # not the clock: others may be at work, too
population = from_files(sys.argv[1])
population.data(999)
opened = time.process_time() - began, peak()[0] - before
for executor in (Plain(), Stacked(), Pool(workers=1)):
    trained(population, executor)
print(json.dumps([*opened, peak()[1] - before, population.columns["x"].nbytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
def test_forty_gigabytes_open_at_once_and_little_of_them_is_read(tmp_path):
    from partwise.populations.mapped import npy_header

    n, giant = 1_300_000_000, 500
    for name, dtype, shape in (("x", "float64", (n, 3)), ("y", "int64", (n,))):
        header = npy_header(np.dtype(dtype), shape)
        with (tmp_path / f"{name}.npy").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + 8 * int(np.prod(shape)))
    # All clients are small but one, which is never asked: the others lie forty gigabytes apart.
    roster = SimpleNamespace(clients=range(1000), seed=5, next_available=lambda client, now: now)
    assert all(giant not in Uniform().pick((), 4, turn=t, now=0.0, roster=roster)[0] for t in range(3))  # type: ignore[arg-type]
    sizes = np.full(1000, 9)
    sizes[giant] = n - 999 * 9
    np.save(tmp_path / "offsets.npy", np.concatenate([[0], np.cumsum(sizes)]))
    ran = subprocess.run(
        [sys.executable, "-c", SPARSE, tmp_path],
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    seconds, opening_kib, training_kib, column_bytes = json.loads(ran.stdout)
    assert column_bytes > 31e9
    assert seconds < 1
    assert opening_kib < 20_000
    assert training_kib < 200_000


# What is refused


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as found:
        from_files(path)
    assert str(found.value).startswith(f"from_files({str(path)!r}): ")


GOOD = {"x": np.arange(6.0), "offsets": np.array([0, 2, 6])}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"offsets": None}, r"needs offsets, got x\. Save np\.concatenate"),
        ({"x": None}, r"needs a column besides offsets, got none\. Save one file"),
        ({"x": np.arange(5.0)}, r"x must have as many examples as offsets ends with, 6, got 5\. Write both"),
        ({"offsets": np.array([0, 4, 2, 6])}, r"offsets must ascend from 0, got a fall after client 1\. Put each"),
        ({"offsets": np.array([1, 2, 6])}, r"offsets must ascend from 0, got 1 first"),
        ({"offsets": np.array([0.0, 2.0, 6.0])}, r"offsets must be int64 with one entry per client and one more, got"),
        ({"x": np.asfortranarray(np.ones((6, 2)))}, r"x\.npy: must have its examples one after another, got columns"),
        ({"x": np.array(3.0)}, r"x\.npy: must have its examples one after another, got a single number"),
        ({"x": np.arange(6, dtype=">f8")}, r"x\.npy: must be of one of the types .*, got '>f8'\. Convert it"),
        ({"x": np.arange(6, dtype=np.complex64)}, r"x\.npy: must be of one of the types .*, got '<c8'"),
        ({"x": np.array(list("abcdef"))}, r"x\.npy: must be of one of the types .*, got '<U1'"),
        ({"x": np.array([1, "a", None] * 2, dtype=object)}, r"x\.npy: must hold numbers, got pickled Python objects"),
        ({"names": np.array(["a", None], dtype=object)}, r"names\.npy must be text that np\.save wrote, got: "),
        ({"names": np.array([1, 2])}, r"names\.npy must be one text per client, got \(2,\) int64"),
        (
            {"names": np.array(["b", "b"])},
            r"names\.npy: every client must have a name .* 'b' for client 0 and client 1",
        ),
    ],
)
def test_a_folder_that_does_not_fit(tmp_path, columns, message):
    saved(tmp_path, **{name: c for name, c in {**GOOD, **columns}.items() if c is not None})
    refused(tmp_path, message)


def test_test_folders_are_held_to_the_same(tmp_path):
    saved(tmp_path, **GOOD)
    saved(tmp_path / "test", x=np.arange(3.0))
    refused(tmp_path, r"needs test/offsets, got test/x, x")
    saved(tmp_path / "test", offsets=np.array([0, 1, 2]))
    refused(tmp_path, r"test/x must have as many examples as test/offsets ends with, 2, got 3")
    saved(tmp_path / "test", offsets=np.array([0, 3]))
    with pytest.raises(DataError, match="test_offsets must be one longer than there are clients"):
        from_files(tmp_path)


def test_files_that_are_none(tmp_path):
    refused(tmp_path / "nowhere", r"must be a folder of \.npy files or a \.safetensors file, got a path where there")
    np.savez(tmp_path / "all.npz", **GOOD)
    refused(tmp_path / "all.npz", r"got a \.npz file\. Unpack it into a folder of \.npy files")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x05\0\0\0\0\0\0\0hello")
    refused(bad, r"must be a safetensors file of numbers, got JSONDecodeError")
    bad.write_bytes(b"\xff" * 16)
    refused(bad, r"must be a safetensors file of numbers, got ValueError: a header of")
    saved(tmp_path / "cut", **GOOD)
    (tmp_path / "cut" / "x.npy").write_bytes((tmp_path / "cut" / "x.npy").read_bytes()[:-8])
    refused(tmp_path / "cut", r"x\.npy: must have the 176 bytes its header speaks of, got 168\. Write or copy")
    (tmp_path / "cut" / "x.npy").write_bytes(b"nothing of the kind")
    refused(tmp_path / "cut", r"x\.npy: must be an array that np\.save wrote, got: ")


@pytest.mark.parametrize("shape", ["(-6,)", "(6, -1)", "(True,)"])
def test_a_header_whose_shape_is_none_is_refused(tmp_path, shape):
    saved(tmp_path, **GOOD)
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + text.encode() + bytes(48))
    refused(tmp_path, r"x\.npy: must have a shape of whole numbers from 0 on, .* got .* from byte 128\. Write it again")


def test_a_tensor_before_the_file_is_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "U8", "shape": [2], "data_offsets": [-800, 8]}})
    (tmp_path / "all.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    refused(tmp_path / "all.safetensors", r"'x': must have a shape .* and begin in the file, got \(2,\) from byte -")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.complex64])
def test_what_could_not_be_opened_is_not_written(tmp_path, dtype):
    with pytest.raises(DataError, match=rf"client 0: columns must be .* got {dtype} in column 'x'"):
        write_folder(tmp_path / "a", [{"x": torch.zeros(2, dtype=dtype)}])


def test_values_out_of_step_are_refused(tmp_path):
    offsets = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}
    text = json.dumps({"offsets": offsets, "x": {"dtype": "F64", "shape": [1], "data_offsets": [17, 25]}})
    text = text.ljust(-(-len(text) // 8) * 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(25))
    refused(path, r"'x': values must begin at a multiple of their size, 8, got byte ")


def test_what_cannot_be_written(tmp_path):
    def write(*clients, folder="new"):
        write_folder(tmp_path / folder, clients)

    with pytest.raises(DataError, match=r"client 1 must have the columns of the first with examples here, x float32"):
        write({"x": [1.0]}, {"y": [1.0]})
    assert not (tmp_path / "new" / "offsets.npy").exists()
    with pytest.raises(DataError, match=r"write_folder\('.*'\): needs a new or empty folder, got one with files"):
        write({"x": [1.0]})
    with pytest.raises(DataError, match=r"client 1 must have the columns .* got x int64"):
        write({"x": [1.0]}, {"x": [1]}, folder="types")
    with pytest.raises(DataError, match=r"client 1: numbers must be finite, got NaN or infinity in column 'x'"):
        write({"x": [1.0]}, {"x": [float("nan")]}, folder="nan")
    with pytest.raises(DataError, match=r"needs at least one client, got none"):
        write(folder="none")
    with pytest.raises(DataError, match=r"a column's name must be a file's and not offsets or names, got '\.\./x'"):
        write({"../x": [1.0]}, folder="up")
    with pytest.raises(DataError, match=r"columns must be of a type that NumPy has, got torch.bfloat16 in column 'x'"):
        write({"x": torch.ones(2, dtype=torch.bfloat16)}, folder="bf16")
    with pytest.raises(DataError, match=r"client 0: columns must have equal length, at least 1"):
        write(ClientColumns({"x": [1.0]}, test={"x": []}), folder="empty")


# In a specification

WORKLOAD = """
from dataclasses import dataclass
from pathlib import Path

import partwise as pw
from torch import nn


def net():
    return nn.Linear(1, 2)


@dataclass(frozen=True)
class Visits:
    folder: Path

    def build(self, seed: int) -> pw.Workload:
        return pw.Workload(pw.Model(net, pw.CrossEntropy()), pw.from_files(self.folder), (pw.Accuracy(),))
"""


def test_a_specification_names_the_folder(tmp_path):
    write_folder(
        tmp_path / "people",
        ({"x": [[float(n)]] * n, "y": [n % 2] * n} for n in SIZES),
        central={"x": [[1.0]], "y": [1]},
    )
    (tmp_path / "visits.py").write_text(WORKLOAD)
    text = """
    [workload]
    name = "visits.py:Visits"
    folder = "people"
    [algorithm]
    name = "FedAvg"
    [scheduler]
    name = "Synchronous"
    cohort = 3
    rounds = 2
    """
    result = loads(text, base=tmp_path).run(tmp_path / "run")
    assert len(json.loads((result.folder / "population.json").read_text())["examples"]) == len(SIZES)
    assert loads((result.folder / "spec.toml").read_text()).workload.build(0).population.sizes().tolist() == list(SIZES)
