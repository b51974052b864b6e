"""Files that a specification is read from."""

from __future__ import annotations

import os

import pytest

from partwise.algorithms import FedAvg
from partwise.core.errors import DataError, SpecError
from partwise.experiment.spec import load

LEAST = """
[workload]
name = "LeafSynthetic"
[algorithm]
name = "FedAvg"
"""


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    (tmp_path / "spec.toml").write_bytes(b"\xef\xbb\xbf" + LEAST.strip().encode())
    assert load(tmp_path / "spec.toml").algorithm == FedAvg()


def test_a_file_without_an_end(tmp_path):
    (tmp_path / "large.toml").touch()
    os.truncate(tmp_path / "large.toml", 1 << 36)  # takes no room on the disk, and more memory than there is
    with pytest.raises(
        DataError, match=r"large\.toml: must be a specification of 67,108,864 bytes at most, got more\."
    ):
        load(tmp_path / "large.toml")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_bytes(b'name = "a"\n# caf\xe9\n')
    with pytest.raises(SpecError, match=r"line 2: TOML must be UTF-8, got the byte 0xe9\. Save it as UTF-8\."):
        load(path)
    with pytest.raises(DataError, match=r"none\.toml: must be a specification that can be read, got: No such file"):
        load(tmp_path / "none.toml")
