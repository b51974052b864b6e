from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from partwise.core.errors import DataError
from partwise.core.population import Profile
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.profile_table import ProfileTable
from partwise.populations.profiles import ProfileArrays

CSV = """client,seconds_per_step,uplink,downlink,memory,width
2,0.3,10,40,1e6,0.5
0,0.1,inf,20,2e6,1
1,0.2,30.5,30,inf,0.25
"""


def written(tmp_path, text, name="who.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def people(n, **more):
    return ArrayPopulation({"x": torch.zeros(n)}, torch.arange(n + 1), **more)


def test_every_client_has_its_row(tmp_path):
    world = ProfileTable(written(tmp_path, CSV))
    assert world.profile(0) == Profile(0.1, math.inf, 20.0, 2e6, 1.0)
    assert world.profile(1) == Profile(0.2, 30.5, 30.0, math.inf, 0.25)
    assert world.profile(2, 17.0) == Profile(0.3, 10.0, 40.0, 1e6, 0.5)
    assert world.table(np.array([2, 0])).profile(0) == world.profile(2)
    assert world == ProfileTable(str(world.path))


def test_what_is_left_out_is_as_in_constant(tmp_path):
    assert ProfileTable(written(tmp_path, "uplink\n5\n7\n")).profile(1) == Profile(uplink=7.0)
    assert ProfileTable(written(tmp_path, "width\tmemory\n0.5\t9\n", "w.tsv")).profile(0) == Profile(
        memory=9.0, width=0.5
    )


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "who.parquet"
    parquet.write_table(pa.table({"client": [1, 0], "seconds_per_step": [0.5, 0.25]}), path)
    assert ProfileTable(path).profile(1) == Profile(0.5)
    parquet.write_table(pa.table({"client": [1, 0], "seconds_per_step": [Decimal("0.5"), Decimal("0.25")]}), path)
    assert ProfileTable(path).profile(0).seconds_per_step == 0.25
    parquet.write_table(pa.table({"seconds_per_step": [{"mean": 0.5}]}), path)
    with pytest.raises(DataError, match=r"seconds_per_step must be a number, got \"\{'mean': 0.5\}\" in row 1"):
        ProfileTable(path).profile(0)
    parquet.write_table(pa.table({"seconds_per_step": np.array(["2024-03-31"], "M8[ns]")}), path)
    with pytest.raises(DataError, match=r"must be a number, got '2024-03-31T00:00:00[^']*' in row 1"):
        ProfileTable(path).profile(0)
    parquet.write_table(pa.table({"seconds_per_step": [0.5, -0.25]}), path)
    with pytest.raises(DataError, match=r"at least 0, got -0.25 in row 2\. Correct that line\."):
        ProfileTable(path).profile(0)


HEADER = "client,seconds_per_step,uplink\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "0,0.1,5\n1,-0.2,5\n",
            r"seconds_per_step must be finite and at least 0, got -0.2 in line 3\. Correct",
        ),
        (HEADER + "0,inf,5\n", "seconds_per_step must be finite and at least 0, got inf in line 2"),
        (HEADER + "0,0.1,5\n1,0.1,0\n", "uplink must be above 0, got 0.0 in line 3"),
        (HEADER + "0,0.1,nan\n", "uplink must be above 0, got nan in line 2"),
        (HEADER + "0,0.1,5\n1,0.1,fast\n", r"uplink must be a number, got 'fast' in line 3\. Correct that line\."),
        (
            HEADER + "0,0.1,5\n1,,5\n",
            r"every value must be there, got an empty one in column 'seconds_per_step', line 3",
        ),
        (HEADER + "0,0.1,5\n1,0.1\n", "every line must have 3 fields, got 2 in line 3"),
        (HEADER + "0,0.1,5\nann,0.1,5\n", "client must be a number, got 'ann' in line 3"),
        (HEADER + "0,0.1,5\n1.5,0.1,5\n", r"client must be a whole number from 0 on, got 1.5 in line 3\. Number the"),
        (HEADER + "0,0.1,5\n-1,0.1,5\n", "client must be a whole number from 0 on, got -1 in line 3"),
        (HEADER + "0,0.1,5\n1,0.1,5\n0,0.1,6\n", r"every client may have one row, got client 0 again in line 4\. Drop"),
        (HEADER + "0,0.1,5\n3,0.1,5\n", r"2 rows must be of the clients 0 to 1, got none for client 1\. Add its row"),
        ("client,seconds,uplink\n0,0.1,5\n", r"must name a column, got 'seconds'\. Did you mean 'seconds_per_step'\?"),
        ("width\n1.25\n", r"width must be in \(0, 1\], got 1.25 in line 2"),
        ("memory\n-7\n", "memory must be above 0, got -7.0 in line 2"),
        ("width\n", "needs a header and at least one row, got 1 lines"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    world = ProfileTable(written(tmp_path, text))
    with pytest.raises(DataError, match=r"^ProfileTable\('.*who\.csv'\): .*" + message):
        world.profile(0)


def test_fewer_rows_than_clients_are_refused_when_the_population_is_made(tmp_path):
    world = ProfileTable(written(tmp_path, CSV))
    assert people(3, profiles=world).profile(2).seconds_per_step == 0.3
    with pytest.raises(DataError, match=r"needs a row for each client, got 3 rows and client 3\. Add rows, or leave"):
        people(4, profiles=world)


def test_a_file_that_is_not_there_is_refused_when_the_population_is_made(tmp_path):
    with pytest.raises(DataError, match="must be a file, got a path where there is none"):
        people(2, profiles=ProfileTable(tmp_path / "nobody.csv"))


# Arrays


def test_arrays_are_profiles():
    world = ProfileArrays(np.array([0.1, 0.2]), uplink=np.array([3, 4]), width=[0.5, 1.0])
    assert world.profile(1) == Profile(0.2, 4.0, math.inf, math.inf, 1.0)
    assert all(type(value) is float for value in world.profile(1)[:5])
    assert people(2, profiles=world).profile(0).width == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ProfileArrays(np.array([0.1, -0.5])),
            r"seconds_per_step must be .* got -0.5 for client 1\. Correct or",
        ),
        (lambda: ProfileArrays(np.ones(2), memory=np.zeros(2)), "memory must be above 0, got 0.0 for client 0"),
        (
            lambda: ProfileArrays(np.ones(2), uplink=np.ones(3)),
            r"one number per client, 2 as in .*, got \(3,\) for uplink",
        ),
        (lambda: ProfileArrays(np.ones(2)).profile(2), r"has profiles of 2 clients, got client 2\. Give one for each"),
        (lambda: ProfileArrays(np.ones(2)).profile(-1), "got client -1"),
        (lambda: people(3, profiles=ProfileArrays(np.ones(2))), "has profiles of 2 clients, got client 2"),
    ],
)
def test_bad_arrays(make, message):
    with pytest.raises(DataError, match=r"^ProfileArrays\(\): .*" + message):
        make()
