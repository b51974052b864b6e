"""Paths in a specification: beside it, or from somebody's home."""

from pathlib import Path

import pytest

from partwise.core.errors import DataError, SpecError
from partwise.experiment.journaling import Journaling
from partwise.experiment.spec import load, loads

LEAST = """
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
"""


def test_a_home_that_nobody_has():
    with pytest.raises(
        SpecError, match=r"journal\.secret: must be a path, got .~nobody-of-this-name/operator\.key.: nobody"
    ):
        loads(LEAST + '[journal]\nsecret = "~nobody-of-this-name/operator.key"\n')
    with pytest.raises(DataError, match=r"Journaling\(secret='~nobody-of-this-name/operator\.key'\): must be a file"):
        Journaling(Path("~nobody-of-this-name/operator.key")).key()


@pytest.mark.parametrize(
    "workload", ["MNIST", "FashionMNIST", "CIFAR10", "Shakespeare", "ShakespeareGPT", "StdlibCode"]
)
def test_the_folder_of_a_built_in_workload_is_relative_to_the_specification(tmp_path, monkeypatch, workload):
    spec = tmp_path / "there" / "spec.toml"
    spec.parent.mkdir()
    spec.write_text(f'[workload]\nname = "{workload}"\nfolder = "texts"\n[algorithm]\nname = "FedAvg"\n')
    monkeypatch.chdir(tmp_path)
    assert load(spec).workload.folder == spec.parent / "texts"
    assert load(spec, ["workload.folder=here"]).workload.folder == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(spec, ["workload.folder=~/data"]).workload.folder == tmp_path / "data"
