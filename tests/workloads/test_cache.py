from __future__ import annotations

from pathlib import Path

import pytest

from partwise.workloads.cache import cache_dir, whole_file


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
