"""Griffe extensions: fields described under `Args:`, and examples shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_NOTE = re.compile(r"\n(Source|Differs): (.*(?:\n    .*)*)\n?")


class Sections(griffe.Extension):
    """Reads an `Example:` section as code, since griffe knows only the plural, and keeps a source in one paragraph."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = _NOTE.sub(lambda m: f"\n**{m[1]}:** {' '.join(m[2].split())}\n", text)


class NamedTuples(griffe.Extension):
    """Gives each `NamedTuple` and `TypedDict` the `__init__` that Python gives it."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if not any(str(base).endswith(("NamedTuple", "TypedDict")) for base in cls.bases):
            return
        fields = [a for a in cls.attributes.values() if a.annotation is not None and "property" not in a.labels]
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        parameters += [
            griffe.Parameter(
                a.name, annotation=a.annotation, kind=griffe.ParameterKind.positional_or_keyword, default=a.value
            )
            for a in fields
        ]
        init = griffe.Function("__init__", lineno=cls.lineno, endlineno=cls.lineno, parent=cls)
        init.parameters = griffe.Parameters(*parameters)
        cls.set_member("__init__", init)
