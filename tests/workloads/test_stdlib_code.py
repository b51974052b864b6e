from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
import torch

from partwise.core.errors import DataError
from partwise.populations.availability import Daily
from partwise.populations.checks import check_fits
from partwise.populations.profiles import Constant
from partwise.populations.reliability import Unreliable
from partwise.workloads import stdlib_code
from partwise.workloads.stdlib_code import StdlibCode

ALPHA = "def f(a, b):\n    return a + b * a - f(b, a)  # a comment with words\n" * 6
BETA = "for x in a:\n    b = x + 'a string' + x\nclass C(x): pass\n" * 5
# identifiers of one repetition, keywords left out
ALPHA_NAMES = ["f", "a", "b", "a", "b", "a", "f", "b", "a"] * 6
BETA_NAMES = ["x", "a", "b", "x", "x", "C", "x"] * 5


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "partwise"


@pytest.fixture
def library(tmp_path):
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "alpha.py").write_text(ALPHA)
    (tmp_path / "pkg" / "__init__.py").write_text(BETA)
    (tmp_path / "pkg" / "tests" / "test_alpha.py").write_text(ALPHA)
    (tmp_path / "small.py").write_text("a = rare")
    (tmp_path / "broken.py").write_text("def (:\n  'unclosed" * 90)
    (tmp_path / "odd.py").write_bytes(b"# -*- coding: none-such -*-\n" + b"a = b\n" * 90)
    (tmp_path / "notes.txt").write_text(ALPHA)
    return tmp_path


def source(folder, **fields) -> StdlibCode:
    return StdlibCode(**{"folder": str(folder), "min_names": 20, "window": 3, "max_rows": 0, **fields})


def rows_of(*sequences: list[str], min_count: int = 3) -> dict[str, int]:
    counts = Counter(name for names in sequences for name in names)
    ranked = sorted((name for name in counts if counts[name] >= min_count), key=lambda name: (-counts[name], name))
    return {name: row for row, name in enumerate(ranked)}


def test_clients_are_modules_with_enough_names(library):
    population = source(library).build(0).population
    assert [population.name(c) for c in population.clients] == ["alpha", "pkg"]


def test_clients_in_time_reach_the_population(library):
    told = {"profiles": Constant(0.7), "availability": Daily(seed=3), "reliability": Unreliable(train=0.5)}
    population = source(library, **told).build(0).population
    assert {name: getattr(population, name) for name in told} == told


def test_examples_against_loops(library):
    """Positives in order with their histories; every other example is a negative of the same client."""
    rows = rows_of(ALPHA_NAMES, BETA_NAMES)
    population = source(library, test_share=0.3).build(5).population
    for client, names in enumerate((ALPHA_NAMES, BETA_NAMES)):
        ids = [rows[name] for name in names]
        cut = int(len(ids) * 0.7)
        for data, part, own in (
            (population.data(client), ids[:cut], set(ids[:cut])),
            (population.test_data(client), ids[cut:], set(ids)),
        ):
            columns = {name: column.tolist() for name, column in data.columns().items()}
            assert columns["y"] == [1, 0] * (len(part) - 3)
            for k in range(len(part) - 3):
                positive, negative = columns["candidate"][2 * k : 2 * k + 2]
                assert columns["history"][2 * k] == columns["history"][2 * k + 1] == part[k : k + 3]
                assert positive == part[k + 3]
                assert negative in own - {positive}


def test_negatives_follow_the_seed_and_are_spread_evenly(library):
    one, same, other = (source(library).build(s).population.columns["candidate"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one[::2], other[::2])
    assert not torch.equal(one, other)
    drawn: Counter[int] = Counter()
    for seed in range(60):
        population = source(library, test_share=0.0).build(seed).population
        data = population.data(0).columns()
        drawn.update(data["candidate"][1::2][data["candidate"][::2] == 0].tolist())
    assert max(drawn.values()) / min(drawn.values()) < 1.3  # the two other names of the client


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_no_source_is_left_out(library, cache):
    """A lock of an editor is a link to nothing; a codec may be known and yet be none for text."""
    (library / "hidden.py").write_bytes(b"# -*- coding: hex -*-\n" + b"a = b\n" * 90)
    if sys.platform != "win32":
        (library / ".#alpha.py").symlink_to("somebody@host.123:456")
    population = source(library, cache=cache).build(0).population
    assert [population.name(c) for c in population.clients] == ["alpha", "pkg"]


def test_rare_names_have_no_row(library):
    (library / "gamma.py").write_text("a = seldom + seldom\nb = a\n" * 1 + "b = a\n" * 20)
    work = source(library, min_count=3).build(0)
    words = source(library, min_count=3).vocabulary()
    assert "seldom" not in words
    assert work.model.init(0)["items.weight"].shape == (len(words), 16)
    data = work.population.data(1).columns()
    assert [words[i] for i in data["history"][0].tolist()] == ["a", "b", "a"]  # closed up over what is left out


def test_vocabulary_is_ordered_by_count(library):
    rows = rows_of(ALPHA_NAMES, BETA_NAMES)
    assert source(library).vocabulary() == sorted(rows, key=rows.__getitem__)


def test_largest_clients_train_on_their_most_frequent_names(library):
    work = source(library, max_rows=2).build(0)
    words = source(library).vocabulary()
    data = work.population.data(1).columns()
    assert {words[i] for i in data["candidate"].tolist()} == {"x", "a"}  # a, b and C tie; the lower row stays
    assert "b" in {words[i] for i in work.population.test_data(1).columns()["candidate"].tolist()}


def test_model_fits_the_data(library):
    work = source(library).build(0)
    params = work.model.init(0)
    check_fits(work.population, work.model, params)
    assert work.model.tables == {"items.weight": ("history", "candidate")}
    assert [m.name for m in work.metrics] == ["auc", "loss", "accuracy"]
    assert work.model.losses(params, work.population.data(0).columns()).ndim == 1


def test_cache_spares_the_reading(library, own_cache, monkeypatch):
    first = source(library).build(0).population.columns["history"]
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(stdlib_code, "_identifiers", lambda path: pytest.fail("read again"))
    assert torch.equal(source(library).build(0).population.columns["history"], first)
    assert torch.equal(source(library, min_names=30).build(0).population.columns["history"], first)


def test_cache_notices_other_sources(library, own_cache):
    source(library).build(0)
    (library / "alpha.py").write_text(ALPHA + "new_name = 1\n" * 3)
    assert "new_name" in source(library).vocabulary()
    assert len(list(own_cache.iterdir())) == 2


def test_cache_tells_apart_sources_of_one_length(library, tmp_path_factory):
    assert "a" in source(library).vocabulary()
    (library / "alpha.py").write_text(ALPHA.replace("a", "q"))  # each file is as long as it was
    assert "q" in source(library).vocabulary()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name, body in (("one", ALPHA), ("two", ALPHA.replace("a", "z"))):
        (elsewhere / name).mkdir()
        (elsewhere / name / "alpha.py").write_text(body)
    assert "a" in source(elsewhere / "one").vocabulary()
    assert "z" in source(elsewhere / "two").vocabulary()


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"PK" + raw[9:]])
def test_damaged_cache_is_rebuilt(library, own_cache, damage):
    first = source(library).build(0).population.columns["history"]
    (path,) = own_cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(source(library).build(0).population.columns["history"], first)
    assert len(path.read_bytes()) == len(whole)


def test_without_a_cache(library, own_cache):
    source(library, cache=False).build(0)
    assert not own_cache.exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written(library, own_cache):
    own_cache.parent.chmod(0o500)
    assert len(source(library).build(0).population.clients) == 2


def test_cache_path_that_is_taken(library, own_cache):
    own_cache.write_text("a file where the folder should be")
    assert len(source(library).build(0).population.clients) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, r"StdlibCode\(window=0\): window must be at least 1, got 0\. Leave it out"),
        ({"min_count": 0}, "min_count must be at least 1"),
        ({"test_share": 1.0}, r"test_share must be in \[0, 1\), got 1\.0\. Use 0\.2"),
        ({"max_rows": 1}, r"max_rows must be 0 or at least 2, got 1\. Use 0 for no limit"),
        ({"max_rows": -5}, "must be 0 or at least 2, got -5"),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises(ValueError, match=message):
        StdlibCode(**fields)


def test_no_module_is_large_enough(library):
    with pytest.raises(
        DataError, match=r"StdlibCode\(min_names=999\): needs a module with that many names, got none in"
    ):
        source(library, min_names=999).build(0)


def test_folder_without_sources(tmp_path):
    with pytest.raises(DataError, match=r"Lower min_names, or name another folder of Python sources"):
        source(tmp_path / "none").build(0)


@pytest.mark.slow
def test_the_real_library():
    work = StdlibCode(cache=False).build(0)
    population, rows = work.population, len(StdlibCode(cache=False).vocabulary())
    held = sorted(
        len(torch.cat([d["history"].flatten(), d["candidate"]]).unique())
        for d in (population.data(c).columns() for c in population.clients)
    )
    assert 200 < len(population.clients) < 400
    assert 9_000 < rows < 20_000
    assert 70 < held[len(held) // 2] < 150
    assert held[-1] <= 300
    if sys.version_info[:2] == (3, 11):  # what a plain reading of 3.11 counts
        assert len(population.clients) == pytest.approx(295, abs=3)
        assert rows == pytest.approx(13_549, rel=0.01)
        assert held[len(held) // 2] == pytest.approx(109, abs=2)
