"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys

import pytest

from toy_cli import TINY


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a small specification in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
