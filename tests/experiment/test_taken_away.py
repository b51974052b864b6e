"""Files of a run that are taken away while it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment.log import LOG
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.experiment.store import RECORD
from toy_scores import experiment


class Taken(Silent):
    """Takes a file away after the second version."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def committed(self, version: int, *rest: object) -> None:
        if version == 2:
            self.file.unlink()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (LOG, r"log\.bin: must have the \d+ messages that were written before, got no file: .* Put it back"),
        (RECORD, r"record\.sqlite must stay where it is while the run goes on, got no file: .* Restore the file"),
    ],
)
def test_the_run_stops_and_says_which(name, said, tmp_path):
    made = experiment(checkpointing=Checkpointing(every_seconds=0))
    with pytest.raises(CheckpointError, match=said):
        made.run(tmp_path / "run", progress=Taken(tmp_path / "run" / name))


def test_a_log_that_is_put_back_goes_on_to_the_same_bits(tmp_path):
    made, away = experiment(checkpointing=Checkpointing(every_seconds=0)), tmp_path / "away"
    made.run(tmp_path / "undisturbed")

    class Moved(Taken):
        def committed(self, version: int, *rest: object) -> None:
            if version == 2:
                self.file.rename(away)

    with pytest.raises(CheckpointError, match="Put it back and resume the run"):
        made.run(tmp_path / "run", progress=Moved(tmp_path / "run" / LOG))
    away.rename(tmp_path / "run" / LOG)
    made.run(tmp_path / "run", resume=True)
    one, other = ((tmp_path / name / LOG).read_bytes() for name in ("undisturbed", "run"))
    assert one == other


def test_a_run_whose_folder_was_moved_leaves_the_one_in_its_place_alone(tmp_path):
    made = experiment(checkpointing=Checkpointing(every_seconds=0))
    place, aside = tmp_path / "run", tmp_path / "aside"
    made.run(tmp_path / "undisturbed")
    others: dict[Path, bytes] = {}

    class Moved(Silent):
        def committed(self, version: int, *rest: object) -> None:
            if version == 2:
                place.rename(aside)
                replace(made, seed=made.seed + 1).run(place)
                others.update({path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()})

    with pytest.raises(CheckpointError, match=r"the run's folder must stay where it is .* got another record\.sqlite"):
        made.run(place, progress=Moved())
    assert {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()} == others
    made.run(aside, resume=True)
    one, other = ((tmp_path / name / LOG).read_bytes() for name in ("undisturbed", "aside"))
    assert one == other
