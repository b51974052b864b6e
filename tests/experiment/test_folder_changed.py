"""Runs in which code of a user's own goes to another folder."""

from __future__ import annotations

from partwise.experiment.recorder import Checkpointing, Silent
from toy_scores import experiment


def test_a_run_stays_in_the_folder_that_it_began_in(tmp_path, monkeypatch):
    made = experiment(checkpointing=Checkpointing(every_seconds=0))
    undisturbed = made.run(tmp_path / "undisturbed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)

    class Gone(Silent):
        def started(self, versions: int, folder: str) -> None:
            assert folder == "run"  # as it was named

        def committed(self, version: int, *rest: object) -> None:
            monkeypatch.chdir(elsewhere)

    result = made.run("run", progress=Gone())
    assert result.folder == tmp_path / "run"
    assert result.table() == undisturbed.table()
    names = [{file.name for file in folder.folder.iterdir()} for folder in (undisturbed, result)]
    assert names[0] == names[1]
    assert not list(elsewhere.iterdir())
