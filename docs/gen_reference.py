"""MkDocs hook: one reference page per public module, and the navigation that leads to it.

The pages are made from the source text alone; nothing is imported. `tests/test_house.py` reads them as well.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


@dataclass(frozen=True)
class Module:
    """A public module: dotted name, first line of its docstring, exported name -> where it is defined."""

    name: str
    is_package: bool
    summary: str
    exports: dict[str, str]

    @property
    def page(self) -> str:
        """Where its page is; flat, because a module may be called `index`."""
        return f"reference/{self.name.removeprefix('partwise.') if '.' in self.name else 'index'}.md"


def public_modules(source: Path = SOURCE) -> list[Module]:
    """Every module without an underscore in its path, packages before what is in them."""
    found = []
    for path in sorted(source.glob("partwise/**/*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        parts = parts[:-1] if is_package else parts
        if not any(part.startswith("_") for part in parts):
            found.append(_read(path, ".".join(parts), is_package=is_package))
    return sorted(found, key=lambda m: m.name.split("."))


def _read(path: Path, name: str, *, is_package: bool) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stub = path.with_suffix(".pyi")  # what is imported when it is asked for
    origin = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8")) if stub.exists() else tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("partwise")
        for alias in node.names
    }
    exports = {public: origin.get(public, f"{name}.{public}") for public in exported(tree)}
    summary = (ast.get_docstring(tree) or "").split("\n")[0]
    return Module(name, is_package, summary, exports)


def exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`; of the package itself, where `__all__` is computed, the keys of `_MODULE_OF`."""
    values: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            values |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            values[node.target.id] = node.value
    if "_MODULE_OF" in values:
        return list(ast.literal_eval(values["_MODULE_OF"]))
    return list(ast.literal_eval(values["__all__"])) if "__all__" in values else []


def pages(source: Path = SOURCE) -> dict[str, str]:
    """Path of each reference page -> its text."""
    modules = public_modules(source)
    return {module.page: _page(module, modules) for module in modules}


def _page(module: Module, modules: list[Module]) -> str:
    own = [name for name, origin in module.exports.items() if origin == f"{module.name}.{name}"]
    lines = [f"# {module.name}", "", f"::: {module.name}", "    options:", f"      members: {own or 'false'}", ""]
    elsewhere = [f"- [`{name}`][{origin}]" for name, origin in module.exports.items() if name not in own]
    if elsewhere:
        lines += ["", "## Names", "", *elsewhere]
    inside = [m for m in modules if m.name.rpartition(".")[0] == module.name]
    if module.is_package and inside:
        lines += ["", "## Modules", ""]
        lines += [f"- [`{m.name}`]({m.page.removeprefix('reference/')}): {m.summary}" for m in inside]
    return "\n".join(lines) + "\n"


def _nav(module: Module, modules: list[Module]) -> Any:
    label = module.name.rpartition(".")[2]
    if not module.is_package:
        return {label: module.page}
    inside = [m for m in modules if m.name.rpartition(".")[0] == module.name]
    return {label: [module.page, *(_nav(m, modules) for m in inside)]}


def _folder(folder: Path) -> list[str]:
    """The pages of a folder, `index.md` first."""
    names = sorted((path.name for path in folder.glob("*.md")), key=lambda name: (name != "index.md", name))
    return [f"{folder.name}/{name}" for name in names]


def on_config(config: Any) -> Any:
    """Completes the navigation: a folder becomes its pages; what nobody has written yet is left out."""
    docs, modules, nav = Path(config["docs_dir"]), public_modules(), []
    for entry in config["nav"]:
        ((title, target),) = entry.items()
        if target == "reference/":
            nav.append({title: next(iter(_nav(modules[0], modules).values()))})
        elif target.endswith("/"):
            inside = _folder(docs / target.rstrip("/"))
            nav += [{title: inside}] if inside else []
        elif (docs / target).exists():
            nav.append(entry)
    config["nav"] = nav
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the reference pages."""
    from mkdocs.structure.files import File  # here, so that the tests need no MkDocs

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
