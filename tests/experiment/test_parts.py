from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import pytest

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.plan import Executor, LocalOptimizer
from partwise.core.runtime import Runtime
from partwise.core.schedule import Scheduler
from partwise.core.transform import Transform
from partwise.experiment import parts
from partwise.experiment.parts import (
    FAMILIES,
    catalog,
    describe,
    fits,
    is_writable,
    parameters,
    reference,
    resolve,
    spell,
)
from partwise.populations.profiles import Profiles
from partwise.schedulers.choices import Choice
from partwise.schedulers.staleness import Staleness


@dataclass(frozen=True)
class Documented:
    """What it does.

    More about it: not asked for.

    Args:
        rate: how fast, > 0, e.g. 0.5 of it. Default: not very.
        mode: one of two:
            `a`: the first;
            `b`: the second.
        inner: a part.

    Source: Somebody, "A title",
        somewhere 2020, eq. 3.
    Differs: in every way.
    """

    rate: float
    mode: Literal["a", "b"] = "a"
    inner: Sequence[int] = (1, 2)
    kind: ClassVar[str] = "none"
    _hidden: dict[str, int] = field(default_factory=dict, init=False)


def classes(family):
    return {p.name: p.cls for p in catalog() if p.family == family}


def test_every_family_has_parts():
    assert {p.family for p in catalog()} == set(FAMILIES)
    assert {"FedAvg", "FedSubAvg"} <= set(classes("algorithms"))
    assert set(classes("choices")) >= {"Oort", "Stalest", "Uniform", "Weighted"}
    assert {"SGD", "AdamW", "LocalTraining"} <= set(classes("local"))
    assert "ArrayPopulation" not in classes("populations")  # it holds tensors
    assert "Model" not in classes("losses")


def test_every_part_is_described():
    for part in catalog():
        found = describe(part.cls, part.family)
        assert found.summary, part.name
        assert len(found.summary) <= 120, part.name
        assert "\n" not in found.summary


def test_description_is_read_from_the_docstring():
    found = describe(Documented, "mine")
    assert (found.family, found.name, found.summary) == ("mine", "Documented", "What it does.")
    assert found.source == 'Somebody, "A title", somewhere 2020, eq. 3.'
    about = {p.name: (p.is_required, p.about) for p in found.parameters}
    assert about == {
        "rate": (True, "how fast, > 0, e.g. 0.5 of it"),
        "mode": (False, "one of two"),
        "inner": (False, "a part"),
    }
    assert [p.default for p in found.parameters[1:]] == ["a", (1, 2)]


def test_annotations_are_spelled():
    assert spell(Literal["a", "b"] | None) == "'a' | 'b' | None"
    assert spell(tuple[float, ...]) == "tuple[float, ...]"
    assert spell(Callable[[int], str]) == "function"
    assert spell(Transform) == "Transform"


@pytest.mark.parametrize(
    ("family", "protocol"),
    [
        ("algorithms", Algorithm),
        ("transforms", Transform),
        ("aggregators", Aggregator),
        ("schedulers", Scheduler),
        ("choices", Choice),
        ("runtimes", Runtime),
        ("executors", Executor),
    ],
)
def test_a_family_fits_its_protocol_and_no_other_does(family, protocol):
    fitting = {p.family for p in catalog() if fits(p.cls, protocol)}
    assert fitting == {family}
    assert all(fits(cls, protocol) for cls in classes(family).values())


def test_parts_of_one_family_fit_by_what_they_can_do():
    assert {p.name for p in catalog() if fits(p.cls, LocalOptimizer)} == {"AdamW", "SGD"}
    assert {p.name for p in catalog() if fits(p.cls, Profiles)} == {
        "Constant",
        "Drawn",
        "Drift",
        "LogNormal",
        "ProfileTable",
        "Widths",
    }
    assert {p.family for p in catalog() if fits(p.cls, Staleness)} == {"staleness"}
    assert fits(classes("losses")["CrossEntropy"], Callable[[int, int], int])
    assert not fits(classes("losses")["CrossEntropy"], Callable[[int], int])


class Wanted(Protocol):
    @property
    def size(self) -> int: ...

    def act(self, one: int, *, two: int) -> int: ...


@dataclass(frozen=True)
class Right:
    size: int

    def act(self, one: int, *, two: int, three: int = 3) -> int:
        return one


@dataclass(frozen=True)
class LacksArgument:
    size: int

    def act(self, one: int) -> int:
        return one


@dataclass(frozen=True)
class LacksField:
    def act(self, one: int, *, two: int) -> int:
        return one


def test_fit_looks_at_members_and_at_how_they_are_called():
    assert [fits(cls, Wanted) for cls in (Right, LacksArgument, LacksField)] == [True, False, False]
    assert fits(Right, Right)
    assert not fits(Right, LacksField)


def test_only_plain_values_and_parts_are_writable():
    assert all(
        map(is_writable, (int, Path, Literal["a"], tuple[float, ...], dict[str, int], Transform, Right, int | None))
    )
    assert not any(map(is_writable, (object, bytes, tuple[bytes, ...], dict[int, int])))


def test_unresolvable_annotation():
    @dataclass(frozen=True)
    class Odd:
        x: Missing  # noqa: F821

    with pytest.raises(
        TypeError, match=r"Odd: its annotations must name types .* got: name 'Missing' is not defined\."
    ):
        parameters(Odd)


# ---- parts from outside ---------------------------------------------------------------------------------------------

MINE = textwrap.dedent("""
    from __future__ import annotations
    from dataclasses import dataclass
    import beside

    @dataclass(frozen=True)
    class Half:
        "Half of it."
        factor: float = beside.FACTOR

    class Plain:
        pass
""")


@pytest.fixture
def mine(tmp_path):
    before = set(sys.modules)
    (tmp_path / "beside.py").write_text("FACTOR = 0.5\n")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text(MINE)
    (tmp_path / "pack" / "sub").mkdir()  # of no __init__.py
    (tmp_path / "pack" / "sub" / "deep.py").write_text(MINE + "\nfrom ..inner import Half as Base")
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_part_from_a_file(mine):
    cls = resolve("mine.py:Half", mine)
    assert cls().factor == 0.5
    assert resolve(str(mine / "mine.py") + ":Half", Path("elsewhere")) is cls  # not loaded twice
    assert reference(cls) == f"{mine / 'mine.py'}:Half"
    assert str(mine) not in sys.path


def test_a_file_that_another_imports_is_loaded_once(mine):
    """Whichever is named first, or a state's class would be registered under one name twice."""
    (mine / "first_half.py").write_text(MINE)
    (mine / "more.py").write_text("from first_half import Half\nclass More(Half): pass")
    half = resolve("first_half.py:Half", mine)
    assert resolve("more.py:More", mine).__mro__[1] is half
    (mine / "pack" / "first_half.py").write_text(MINE)
    assert resolve("pack/first_half.py:Half", mine) is not half  # a file of the same name elsewhere is another
    (mine / "statistics.py").write_text(MINE)
    assert resolve("statistics.py:Half", mine).__module__ != "statistics"


def test_part_from_a_module(mine, monkeypatch):
    cls = resolve("pack.inner:Half", mine)
    assert cls.__module__ == "pack.inner"
    assert reference(cls) == f"{mine.as_posix()}/pack.inner:Half"  # nobody else could import it
    monkeypatch.syspath_prepend(mine)
    assert reference(cls) == "pack.inner:Half"
    monkeypatch.chdir(mine)  # then it is there for this program alone
    assert reference(cls) == f"{mine.as_posix()}/pack.inner:Half"


@pytest.mark.parametrize("name", ["pack.inner:Half", "pack.sub.deep:Half"])
def test_a_part_of_a_package_beside_is_found_again_by_another_program(mine, name):
    found = reference(resolve(name, mine))
    for module in [m for m in sys.modules if m.split(".")[0] == "pack"]:
        del sys.modules[module]
    assert resolve(found, Path("elsewhere"))().factor == 0.5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.py:Half", r"the file must exist, got .*none\.py\. A path is relative to the specification's folder\."),
        ("mine.py:Haf", r"mine\.py must define 'Haf', got Half\. Name one it defines\."),
        (
            "mine.py:Plain",
            r"mine\.py:Plain must be a frozen dataclass, got .*\. Put @dataclass\(frozen=True\) above the class\.",
        ),
        (
            "no_such_package:Half",
            r"the module 'no_such_package' must be importable, got ModuleNotFoundError: .*Install it",
        ),
    ],
)
def test_part_that_is_not_there(mine, name, said):
    with pytest.raises(ValueError, match=said):
        resolve(name, mine)


def test_file_that_does_not_run(mine):
    (mine / "broken.py").write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(
        ValueError, match=r"broken\.py must run, got ZeroDivisionError: division by zero\. Try python broken\.py\."
    ):
        resolve("broken.py:Half", mine)
    assert set(sys.modules) == before


def test_no_reference_to_what_only_a_function_knows():
    @dataclass(frozen=True)
    class Local:
        pass

    with pytest.raises(
        TypeError, match=r"Local: must be defined at the top of a module of its own, got one defined in a function"
    ):
        reference(Local)
    assert parts.is_part(Local)
