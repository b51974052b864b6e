"""Paths in a specification that begin with somebody's home."""

from pathlib import Path

import pytest

from partwise.core.errors import DataError, SpecError
from partwise.experiment.journaling import Journaling
from partwise.experiment.spec import loads

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
