import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment import rundir
from partwise.experiment.rundir import environment, list_runs, new_run_folder, save_environment, status_of
from partwise.experiment.store import RECORD, RunStore

NOON = datetime(2031, 2, 3, 12, 4, 5, tzinfo=timezone.utc)


class TestFolders:
    def test_names_are_readable_and_unique(self, tmp_path):
        made = [new_run_folder(tmp_path / "runs", "capped", now=NOON) for _ in range(3)]
        assert [p.name for p in made] == [
            "capped-20310203-120405",
            "capped-20310203-120405-2",
            "capped-20310203-120405-3",
        ]
        assert all(p.is_dir() for p in made)

    @pytest.mark.parametrize(("name", "start"), [("../a b/ü", "a-b-2"), ("...", "run-2"), ("x_1.5-y", "x_1.5-y-2")])
    def test_names_are_made_safe(self, tmp_path, name, start):
        made = new_run_folder(tmp_path, name, now=NOON)
        assert made.parent == tmp_path
        assert made.name.startswith(start)

    def test_the_clock(self, tmp_path):
        assert new_run_folder(tmp_path, "a").name[2:].replace("-", "").isdigit()

    def test_no_folder_to_be_had(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match=r"new_run_folder\('.*file'\): needs a folder"):
            new_run_folder(tmp_path / "file", "a")
        monkeypatch.setattr(Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(FileExistsError()))
        with pytest.raises(CheckpointError, match=r"needs a folder, got a file\. Name another\."):
            new_run_folder(tmp_path / "file", "a")
        monkeypatch.setattr(
            Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        with pytest.raises(
            CheckpointError, match=r"needs a folder it may write to, got: Permission denied\. Name another"
        ):
            new_run_folder(tmp_path, "a")

    def test_listing(self, tmp_path):
        assert list_runs(tmp_path / "none") == []
        for name in ("b", "a"):
            with RunStore(tmp_path / name) as store:
                store.set_meta(status=name)
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / RECORD).write_text("no database" * 500)
        (tmp_path / "other").mkdir()
        with RunStore(tmp_path / "b"):
            found = list_runs(tmp_path)
        assert [(r.folder.name, r.meta.get("status"), r.writer) for r in found] == [
            ("a", "a", None),
            ("b", "b", os.getpid()),
            ("broken", None, None),
        ]
        assert "needs a whole record.sqlite" in found[2].fault

    def test_how_a_run_stands(self, tmp_path):
        with RunStore(tmp_path / "a"):
            assert status_of({"status": "running"}, tmp_path / "a") == f"running (pid {os.getpid()})"
        assert status_of({"status": "running"}, tmp_path / "a") == "killed; can be resumed"
        assert status_of({"status": "done"}, tmp_path / "a") == "done"
        assert status_of({}, tmp_path / "a") == "unknown"


class TestEnvironment:
    def test_what_is_in_it(self, tmp_path):
        found = environment(tmp_path)
        assert found["python"] == ".".join(map(str, sys.version_info[:3]))
        assert found["torch"].startswith("2.")
        assert found["cores"] >= 1
        assert found["memory_bytes"] > 2**28
        assert found["git"] is None
        assert platform.node() not in json.dumps(found)
        assert json.loads(save_environment(tmp_path, found).read_text()) == found

    def test_the_commit_of_the_users_folder(self, tmp_path):
        def git(*arguments):
            who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
            subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

        git("init")
        assert environment(tmp_path)["git"] is None
        (tmp_path / "spec.toml").write_text("seed = 1")
        git("add", ".")
        git("commit", "-m", "first")
        (tmp_path / "untracked").write_text("")
        found = environment(tmp_path)["git"]
        assert (len(found["commit"]), found["is_dirty"]) == (40, False)
        (tmp_path / "spec.toml").write_text("seed = 2")
        assert environment(tmp_path)["git"]["is_dirty"] is True

    def test_files_of_a_repository_may_have_names_that_are_no_text(self, tmp_path):
        def git(*args):
            subprocess.run(["git", "-C", str(tmp_path), *args], check=True, capture_output=True)

        odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")  # noqa: PTH118 - a path in bytes
        git("init", "-q")
        git("config", "core.quotepath", "false")
        for text in ("one", "other"):
            with open(odd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a path in bytes
                file.write(text)
            if text == "one":
                git("add", ".")
                git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
        assert environment(tmp_path)["git"]["is_dirty"] is True

    def test_a_machine_without_these(self, tmp_path, monkeypatch):
        def absent(*args, **kwargs):
            raise FileNotFoundError

        monkeypatch.setattr(subprocess, "run", absent)
        read = Path.read_text
        monkeypatch.setattr(Path, "read_text", lambda p, **k: absent() if p.parts[1] == "proc" else read(p, **k))
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        found = environment(tmp_path)
        assert (found["git"], found["cpu"], found["threads"]) == (None, platform.processor(), 3)
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert rundir._threads() is None
        assert rundir._version("no-such-package-anywhere") is None

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"environment\.json: must be writable, got: No such file or directory"
        ):
            save_environment(tmp_path / "none", {})
