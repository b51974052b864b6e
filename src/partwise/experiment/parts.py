"""The parts there are: found in the packages of their families, or in a file outside Partwise.

Nothing is registered: a part is a frozen dataclass that its family's package names in `__all__`, and it may stand
wherever it satisfies the protocol that is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from partwise.core.annotations import is_callable, is_protocol, members_of, union_members

__all__ = [
    "FAMILIES",
    "Description",
    "Parameter",
    "Part",
    "catalog",
    "describe",
    "fits",
    "is_part",
    "is_writable",
    "misfit",
    "parameters",
    "reference",
    "resolve",
    "spell",
]

FAMILIES: Mapping[str, str] = types.MappingProxyType(
    {
        "algorithms": "partwise.algorithms",
        "local": "partwise.local",
        "transforms": "partwise.transforms",
        "aggregators": "partwise.aggregators",
        "attacks": "partwise.attacks",
        "observers": "partwise.observers",
        "channels": "partwise.channels",
        "graphs": "partwise.channels.graphs",
        "identities": "partwise.channels.identities",
        "unions": "partwise.channels.unions",
        "schedulers": "partwise.schedulers",
        "choices": "partwise.schedulers.choices",
        "staleness": "partwise.schedulers.staleness",
        "randomizers": "partwise.randomizers",
        "populations": "partwise.populations",
        "distributions": "partwise.populations.distributions",
        "workloads": "partwise.workloads",
        "runtimes": "partwise.runtimes",
        "executors": "partwise.runtimes.executors",
        "mechanisms": "partwise.experiment.mechanisms",
        "metrics": "partwise.core.metrics",
        "randomness": "partwise.core.randomness",
        "losses": "partwise.core.model",
    }
)

_SCALARS = (bool, int, float, str, Path)
_SEQUENCES = (tuple, list, frozenset, Sequence, Collection)


class Part(NamedTuple):
    """A part and where it belongs.

    Args:
        family: `transforms`, say; empty for a part from outside Partwise.
        name: of the class.
        cls: the frozen dataclass.
    """

    family: str
    name: str
    cls: type


class Parameter(NamedTuple):
    """One field of a part.

    Args:
        name: of the field.
        annotation: what it may be, resolved.
        default: what it is if it is left out; `dataclasses.MISSING` for a field that must be given.
        about: the first sentence of its line under `Args`.
    """

    name: str
    annotation: Any
    default: Any
    about: str

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING


class Description(NamedTuple):
    """A part in words.

    Args:
        family: `transforms`, say.
        name: of the class.
        summary: the first line of its docstring.
        parameters: its fields.
        source: where the method comes from; empty where nobody is named.
    """

    family: str
    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    source: str


# ---- what there is --------------------------------------------------------------------------------------------------


def is_part(candidate: object) -> bool:
    """Whether it is a frozen dataclass."""
    return (
        isinstance(candidate, type)
        and dataclasses.is_dataclass(candidate)
        and bool(candidate.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    )


@lru_cache(maxsize=1)
def catalog() -> tuple[Part, ...]:
    """All public parts of Partwise, family by family, each family sorted by name."""
    found = []
    for family, where in FAMILIES.items():
        module = importlib.import_module(where)
        parts = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        # What holds tensors or modules does not compare, and cannot be described either.
        found += [
            Part(family, n, cls) for n, cls in sorted(parts.items()) if is_part(cls) and cls.__eq__ is not object.__eq__
        ]
    return tuple(found)


def describe(cls: type, family: str = "") -> Description:
    """A part in words, read from its fields and its docstring."""
    text = inspect.getdoc(cls) or ""
    summary = text.split("\n", 1)[0]
    return Description(family, cls.__name__, summary, tuple(parameters(cls).values()), _section(text, "Source"))


@lru_cache(maxsize=512)
def parameters(cls: type) -> Mapping[str, Parameter]:
    """The fields that a part is made from, by name.

    Raises:
        TypeError: an annotation names something that cannot be found.
    """
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{cls.__name__}: its annotations must name types that its module imports, got: {error}. "
            "Import them outside `if TYPE_CHECKING:`."
        ) from error
    about = _about(inspect.getdoc(cls) or "")
    found = {}
    for field in dataclasses.fields(cls):
        if field.init:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            found[field.name] = Parameter(field.name, hints[field.name], default, about.get(field.name, ""))
    return types.MappingProxyType(found)


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}:[ \n]*(.*?)(?=\n[A-Z]\w*:|\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _about(text: str) -> dict[str, str]:
    """Field -> the first sentence of its line under `Args`."""
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", block[1] if block else "", re.MULTILINE | re.DOTALL)
    return {name: _sentence(" ".join(line.split())) for name, line in entries}


def _sentence(text: str) -> str:
    """What stands before the first full stop that ends a sentence, or before a list."""
    return re.split(r"(?<!e\.g)(?<!i\.e)\. |: +`|\.$|:$", text, maxsplit=1)[0]


def spell(annotation: Any) -> str:
    """An annotation in words that a person would type.

    Example:
        >>> spell(Literal["a", "b"]), spell(float | None), spell(tuple[float, ...])
        ("'a' | 'b'", 'float | None', 'tuple[float, ...]')
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " | ".join(map(spell, args))
    if is_callable(annotation):
        return "function"
    if origin is not None and args:
        inside = ", ".join("..." if a is Ellipsis else spell(a) for a in args)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))


# ---- what may stand where -------------------------------------------------------------------------------------------


def is_writable(annotation: Any) -> bool:
    """Whether a value of this type can be written in a specification."""
    origin, args = get_origin(annotation), get_args(annotation)
    members = union_members(annotation)
    if len(members) > 1 or members[0] is not annotation:
        return any(is_writable(m) for m in members if m is not type(None))
    if origin is Literal or annotation in _SCALARS or is_protocol(annotation):
        return True
    if origin in _SEQUENCES:
        return all(is_writable(a) for a in args if a is not Ellipsis)
    if origin in (dict, Mapping):
        return args[0] is str and is_writable(args[1])
    return is_part(annotation) and all(
        is_writable(p.annotation) for p in parameters(annotation).values() if p.is_required
    )


def fits(cls: type, wanted: Any) -> bool:
    """Whether a part satisfies a protocol: it has every member, and each method can be called as the protocol's.

    Args:
        cls: a part.
        wanted: a protocol, a function's type, or a dataclass.
    """
    if is_callable(wanted):
        args = get_args(wanted)
        takes = args[0] if args else ...
        return "__call__" in dir(cls) and (takes is Ellipsis or _binds(cls.__call__, [object()] * (len(takes) + 1), {}))
    if not is_protocol(wanted):
        return isinstance(wanted, type) and issubclass(cls, wanted)
    return not _unmet(cls, wanted)


def misfit(cls: type, wanted: Any) -> str:
    """What keeps a part from satisfying a protocol, as the end of a sentence; empty for what is no protocol."""
    names = _unmet(cls, wanted) if is_protocol(wanted) else []
    lacks = [name for name in names if name not in dir(cls)]
    if lacks:
        return f", which lacks {', '.join(lacks)}"
    if not names:
        return ""
    asked = getattr(wanted, names[0])
    takes = ", ".join(list(inspect.signature(asked).parameters)[1:]) if inspect.isfunction(asked) else ""
    return f", whose {names[0]} cannot be called as {names[0]}({takes})"


def _unmet(cls: type, protocol: type) -> list[str]:
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return [name for name in members_of(protocol) if name not in fields and not _has(cls, protocol, name)]


def _has(cls: type, protocol: type, name: str) -> bool:
    own, asked = getattr(cls, name, None), getattr(protocol, name, None)
    if not inspect.isfunction(asked):
        return hasattr(cls, name)
    if own is None or not callable(own) or name not in dir(cls):  # every class can be called, its objects may not
        return False
    kinds = inspect.signature(asked).parameters.values()
    positional = [object() for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return _binds(own, positional, {p.name: object() for p in kinds if p.kind is p.KEYWORD_ONLY})


def _binds(function: Any, positional: Sequence[object], named: Mapping[str, object]) -> bool:
    try:
        inspect.signature(function).bind(*positional, **named)
    except (TypeError, ValueError):
        return False
    return True


# ---- parts from outside ---------------------------------------------------------------------------------------------


def resolve(name: str, base: Path) -> type:
    """The class that `path/to/parts.py:MyTransform` or `package.module:MyTransform` names.

    Args:
        name: where, a colon, and the name of the class. A module may have the folder of its package in front:
            `path/to/package.module:MyTransform`.
        base: the folder that a path is relative to, and where a module is looked for as well.

    Raises:
        ValueError: there is no such file, module or class, or it is not a part.
    """
    where, _, attribute = name.rpartition(":")
    folder, _, dotted = where.rpartition("/")
    module = _load_file(base / where) if where.endswith(".py") else _load_module(dotted, base / folder)
    found: object = getattr(module, attribute, None)
    if found is None:
        known = [n for n, value in vars(module).items() if is_part(value) and value.__module__ == module.__name__]
        raise ValueError(
            f"{where} must define {attribute!r}, got {', '.join(known) or 'no part'}. Name one it defines."
        )
    if not isinstance(found, type) or not is_part(found):
        raise ValueError(
            f"{name} must be a frozen dataclass, got {found!r}. Put @dataclass(frozen=True) above the class."
        )
    return found


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"the file must exist, got {path}. A path is relative to the specification's folder.")
    for module in list(sys.modules.values()):  # the same file twice would be two classes of one name
        if getattr(module, "__file__", None) == str(path) and module.__name__ != "__main__":
            return module
    name = path.stem  # so that another file which imports this one gets the same classes
    if not _is_free(name, path):
        name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file is not ours and may raise anything
        del sys.modules[name]
        raise ValueError(f"{path} must run, got {type(error).__name__}: {error}. Try python {path.name}.") from error
    return module


def _is_free(name: str, path: Path) -> bool:
    """Whether nothing else is or would be imported by this name."""
    if name in sys.modules or name in sys.stdlib_module_names:
        return False
    found = PathFinder.find_spec(name)
    return found is None or (found.origin is not None and Path(found.origin).resolve() == path)


def _load_module(name: str, base: Path) -> ModuleType:
    try:
        with _importable(base):
            return importlib.import_module(name)
    except Exception as error:  # as above
        raise ValueError(
            f"the module {name!r} must be importable, got {type(error).__name__}: {error}. "
            "Install it, or name a file: path/to/parts.py:MyPart."
        ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """What lies in the folder, and in the current one, can be imported."""
    added = [str(folder.resolve()), str(Path.cwd())]
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)


def reference(cls: type) -> str:
    """The name under which `resolve` finds a part from outside, whatever the folder.

    Raises:
        TypeError: it can only be found by the program that defined it.
    """
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__" or getattr(module, cls.__qualname__, None) is not cls:
        where = "the script that runs" if cls.__module__ == "__main__" else "a function"
        raise TypeError(
            f"{cls.__qualname__}: must be defined at the top of a module of its own, got one defined in {where}. "
            "Move it into a file beside the script."
        )
    file = getattr(module, "__file__", None)
    if not file:
        return f"{cls.__module__}:{cls.__name__}"
    path, package = Path(file).resolve(), cls.__module__.split(".")[0]
    folder = _folder_of(path, module.__package__ or "")
    found = PathFinder.find_spec(package) if package != cls.__module__ else None
    if found is not None and found.origin is not None and folder not in _of_this_program():
        return f"{cls.__module__}:{cls.__name__}"
    # Not in a package that others can import. Its modules may import one another, so that it is named by its folder.
    return f"{path if folder is None else folder.as_posix() + '/' + cls.__module__}:{cls.__name__}"


def _folder_of(path: Path, package: str) -> Path | None:
    """The folder in which the package of a module lies; None for a module of no package."""
    names = package.split(".") if package else []
    is_there = bool(names) and path.parent.parts[-len(names) :] == tuple(names)
    return path.parents[len(names)] if is_there else None


def _of_this_program() -> set[Path]:
    """Folders whose packages only this program imports: that of the script that runs, and the current one."""
    return {Path(sys.argv[0]).resolve().parent, Path.cwd().resolve()}
