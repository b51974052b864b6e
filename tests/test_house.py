"""The rules of the house that no linter knows: import direction, sizes, exports, documentation."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

MIDDLE = {"transforms", "aggregators", "channels", "schedulers", "local", "algorithms", "populations", "randomizers"}
MIDDLE |= {"attacks", "observers"}
BELOW_EXPERIMENT = {"core", *MIDDLE, "workloads", "programs", "runtimes"}
MAY_IMPORT = {
    "core": set(),
    **{family: {"core"} for family in MIDDLE},
    "observers": {"core", "aggregators"},  # they compare updates as robust rules do
    "algorithms": {"core", "local"},  # their plans are made of local optimisers and gradient terms
    "journal": {"core", "channels"},  # its signatures are those of the channels
    "workloads": {"core", "populations"},
    "programs": {"core"},
    "runtimes": {"core", "local", "programs"},  # executors know the local rules that they can apply to many clients
    "experiment": {*BELOW_EXPERIMENT, "journal"},
    "testing": BELOW_EXPERIMENT,
    "deploy": {*BELOW_EXPERIMENT, "experiment"},
    "monitor": {"core", "experiment"},
    "cli": {*BELOW_EXPERIMENT, "experiment", "deploy", "monitor"},
    "demo": {*BELOW_EXPERIMENT, "experiment"},
    "__main__": {"cli"},
    "__init__": {*BELOW_EXPERIMENT, "experiment"},
}
LAZY = {"partwise", "partwise.experiment"}  # they load a public name when it is first used
OPTIONAL = {
    "cryptography",
    "datasets",
    "dp_accounting",
    "fastapi",
    "flwr",
    "pandas",
    "peft",
    "pyarrow",
    "ray",
    "uvicorn",
}
HOMES = {"cryptography": 2}  # masks and signatures of a channel; keys and certificates of a network
DEVELOPMENT = {"coverage", "httpx", "hypothesis", "mkdocs", "mypy", "pytest", "ruff", "xdist"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def family(self) -> str:
        """`transforms` of `partwise.transforms.clip`."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else "__init__"

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(SOURCE.glob("partwise/**/*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The module without its `if TYPE_CHECKING:` blocks."""
    body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    return ast.Module(body=body, type_ignores=[])


def imports_of(module: Module, tree: ast.AST | None = None) -> Iterator[str]:
    """Every module that an import statement anywhere in the file names; submodules are resolved."""
    for node in ast.walk(module.tree if tree is None else tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.path}:{node.lineno} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def family_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "docs" / "gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_reference"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def exported(module: Module) -> list[str]:
    names: list[str] = reference().exported(module.tree)
    return names


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600, check=False
    )


# ---- import direction -----------------------------------------------------------------------------------------------


def test_imports_point_upward():
    wrong = []
    for module in modules().values():
        assert module.family in MAY_IMPORT, f"{module.name}: give its family a place in MAY_IMPORT and in the docs"
        allowed = MAY_IMPORT[module.family] | {module.family}
        for name in imports_of(module):
            if name.split(".")[0] == "partwise" and name != "partwise" and family_of(name) not in allowed:
                wrong.append(f"{module.name} imports {name}")
            if name == "partwise" and module.family in BELOW_EXPERIMENT:
                wrong.append(f"{module.name} imports partwise, which reaches everything")
    assert not wrong


def test_schedulers_need_nothing_but_the_standard_library():
    inner = {"partwise.core.schedule", "partwise.core.program", "partwise.schedulers"}
    wrong = []
    for module in modules().values():
        if module.name in inner or module.name.startswith("partwise.schedulers."):
            for name in imports_of(module):
                own = name in inner or name.startswith("partwise.schedulers.")
                if not own and name.split(".")[0] not in sys.stdlib_module_names:
                    wrong.append(f"{module.name} imports {name}")
    assert not wrong


def test_no_import_cycles():
    """At run time; two modules of one folder may name each other's types."""
    edges = {
        name: sorted({n for n in imports_of(module, without_type_checking(module.tree)) if n in modules()} - {name})
        for name, module in modules().items()
    }
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in edges[name]:
                visit(other, (*path, name))
            finished.add(name)

    for name in edges:
        visit(name, ())


def test_optional_dependency_is_imported_in_one_module():
    where: dict[str, set[str]] = {}
    for module in modules().values():
        for name in imports_of(module):
            if (top := name.split(".")[0]) in OPTIONAL:
                where.setdefault(top, set()).add(module.name)
    assert {name: places for name, places in where.items() if len(places) > HOMES.get(name, 1)} == {}


def test_command_line_starts_without_torch():
    lines = ["import sys, partwise"]
    if "partwise.cli" in modules():
        lines.append("import partwise.cli")
    ran = python("\n".join([*lines, "print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"]))
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_package_needs_neither_optional_nor_development_dependencies():
    """Every module imports while they are hidden, except the one module in which each is at home."""
    home = {
        module.name
        for module in modules().values()
        if any(name.split(".")[0] in OPTIONAL for node in module.tree.body for name in imports_of(module, node))
    }
    testing = {name for name in modules() if family_of(name) in {"testing", "__main__"}}
    names = sorted(set(modules()) - home - testing)
    ran = python(
        "import importlib, sys\n"
        f"hidden = {sorted(OPTIONAL | DEVELOPMENT)}\n"
        "sys.modules.update(dict.fromkeys(hidden))\n"  # None there makes an import fail
        f"for name in {names}: importlib.import_module(name)"
    )
    assert ran.returncode == 0, ran.stderr


# ---- exports and documentation --------------------------------------------------------------------------------------


def sort_key(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Constants, classes, the rest; numbers inside a name by value. As ruff's RUF022."""
    rank = 0 if len(name) > 1 and name.isupper() else 1 if name[0].isupper() else 2
    return rank, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def test_all_is_sorted_and_without_repeats():
    for module in modules().values():
        names = exported(module)
        assert names == sorted(set(names), key=sort_key), module.name


@pytest.mark.parametrize("name", sorted(LAZY))
def test_every_lazy_name_is_there(name):
    package = importlib.import_module(name)
    assert {n for n in package.__all__ if not hasattr(package, n)} == set()


def test_all_is_the_whole_promise():
    """What is in `__all__` exists; what one folder imports from another, or a package gathers, is in `__all__`."""
    wrong = []
    for module in modules().values():
        promised = set(exported(module))
        if module.name not in LAZY:
            defined = {n.name for n in module.tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            bound = {*defined, *assigned(module.tree), *imported(module.tree)}
            wrong += [f"{module.name}: {name} is in __all__ and not defined" for name in sorted(promised - bound)]
        if module.is_package and module.name not in LAZY:
            gathered = imported(module.tree, module.name) - promised
            wrong += [f"{module.name}: {name} is gathered and not in __all__" for name in sorted(gathered)]
        wrong += [f"{module.name} imports {name}, not in its __all__" for name in foreign(module)]
    assert not wrong


def foreign(module: Module) -> Iterator[str]:
    """Names imported from another folder that its module does not promise."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules() and family_of(node.module) != module.family:
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in modules()
                if not is_module and alias.name not in {*exported(modules()[node.module]), "__version__"}:
                    yield f"{node.module}.{alias.name}"


def assigned(tree: ast.Module) -> set[str]:
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    targets += [part for target in targets if isinstance(target, ast.Tuple) for part in target.elts]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def imported(tree: ast.Module, package: str = "partwise") -> set[str]:
    """Names bound by `from package… import`."""
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}.")
        for alias in node.names
    }


def test_lazy_exports_agree_with_what_type_checkers_see():
    tree = modules()["partwise"].tree
    stub = ast.parse((ROOT / "src" / "partwise" / "__init__.pyi").read_text(encoding="utf-8"))
    seen = {alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULE_OF"
    )
    lazy = ast.literal_eval(table)
    missing = [f"from {lazy[n]} import {n} as {n}" for n in lazy if seen.get(n) != lazy[n]]
    surplus = [f'    "{n}": "{seen[n]}",' for n in seen if n not in lazy]
    assert not missing, "add to __init__.pyi:\n" + "\n".join(missing)
    assert not surplus, "add to _MODULE_OF:\n" + "\n".join(surplus)
    for name, home in lazy.items():
        assert name in exported(modules()[home]), f"{home} does not export {name}"


def test_lazy_exports_resolve():
    import partwise

    assert partwise.CompositionError.__module__ == "partwise.core.errors"
    assert set(partwise.__all__) <= set(dir(partwise))
    with pytest.raises(AttributeError, match=r"module 'partwise' has no attribute 'Updat'"):
        _ = partwise.Updat


def test_every_public_name_has_a_docstring():
    wrong = []
    for module in modules().values():
        if not ast.get_docstring(module.tree):
            wrong.append(module.name)
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in exported(module):
                wrong += [] if ast.get_docstring(node) else [f"{module.name}.{node.name}"]
    assert not wrong


def test_every_public_name_is_in_the_reference():
    pages = reference().pages()
    public = {m.name: m for m in reference().public_modules()}
    for module in modules().values():
        if any(part.startswith("_") for part in module.name.split(".")):
            continue
        page = pages[public[module.name].page]
        shown = {*re.findall(r"'(\w+)'", page), *re.findall(r"\[`(\w+)`\]", page)}
        assert set(exported(module)) <= shown, module.name
        assert f"::: {module.name}\n" in page


# ---- sizes and words ------------------------------------------------------------------------------------------------


def test_files_stay_under_500_lines():
    paths = [m.path for m in modules().values()] + sorted((ROOT / "tests").rglob("*.py"))
    long = {str(p.relative_to(ROOT)): n for p in paths if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


def test_no_test_imports_another_one():
    """It cannot, as tests are imported: and a file whose imports fail is passed over, with all that it tests."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in names if name.startswith("test_")]
    assert not wrong, "\n".join(wrong)


def test_functions_stay_under_60_lines():
    """Lines of body, docstring not counted."""
    long = {}
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (lines := (body[-1].end_lineno or 0) - body[0].lineno + 1) > 60:
                    long[f"{module.name}.{node.name}"] = lines
    assert not long


def test_examples_stay_under_100_lines():
    paths = [p for p in sorted((ROOT / "examples").rglob("*")) if p.suffix in {".py", ".toml"}]
    long = {p.name: n for p in paths if (n := len(p.read_text(encoding="utf-8").splitlines())) >= 100}
    assert not long


def repository_files() -> list[Path]:
    """What git tracks or would track; without git, everything outside hidden and built folders."""
    built = {"site", "build", "dist", "__pycache__", "runs"}
    ran = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 0:
        return [path for name in ran.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    found = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in built and not name.startswith(".")]
        found += [Path(folder, name) for name in names]
    return found


def test_no_machine_paths_and_no_registry_hosts():
    # written in two pieces, so that this file does not find itself
    words = ["/wor" + "k/", "index" + "-url", "find" + "-links"]
    found = []
    for path in repository_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert not found
