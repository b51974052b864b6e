from __future__ import annotations

from pathlib import Path

import pytest

from partwise.cli.doctor import findings
from partwise.core.errors import DataError
from partwise.workloads.cache import cache_dir, whole_file
from partwise.workloads.stdlib_code import StdlibCode


def test_cache_folder_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "partwise"


@pytest.mark.parametrize(
    ("platform", "tail"),
    [
        ("linux", (".cache", "partwise")),
        ("darwin", ("Library", "Caches", "partwise")),
        ("win32", ("local", "partwise", "Cache")),
    ],
)
def test_cache_folder_by_platform(monkeypatch, platform, tail):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("LOCALAPPDATA", str(Path.home() / "local"))
    monkeypatch.setattr("sys.platform", platform)
    assert cache_dir() == Path.home().joinpath(*tail)


@pytest.fixture
def no_home(monkeypatch):
    """As where a container runs as a number that has no name."""
    pwd = pytest.importorskip("pwd")

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_is_told_what_to_set(no_home):
    with pytest.raises(DataError, match=r"a user without a home\. Set XDG_CACHE_HOME, or HOME"):
        cache_dir()
    assert "Set XDG_CACHE_HOME" in next(f.said for f in findings() if f.what == "cache")


def test_the_standard_library_is_read_without_a_home(no_home, tmp_path):
    (tmp_path / "alpha.py").write_text("def f(a, b):\n    return a + b\n" * 90)
    (tmp_path / "beta.py").write_text("x = [a + b for a in x]\n" * 90)
    assert StdlibCode(folder=str(tmp_path), min_names=20, window=3).build(0).population.clients


def test_whole_file_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with whole_file(path) as file:
        file.write(b"12")
        assert not path.exists()
    assert path.read_bytes() == b"12"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_whole_file_leaves_the_old_one_after_an_error(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file.bin", b"old")]
