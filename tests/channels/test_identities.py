"""Keys in files and in simulations."""

from __future__ import annotations

import stat

import pytest

from partwise.channels import Masked
from partwise.channels.crypto import verify
from partwise.channels.identities import KeyFolder, SimulatedIdentities, write_keys
from partwise.core.errors import ProtocolError
from toy_exchange import play, whole


def test_keys_in_files(tmp_path):
    write_keys(tmp_path / "keys", [3, 8])
    folder = KeyFolder(str(tmp_path / "keys"))
    assert verify(folder.key_of(3), b"text", folder.sign(3, b"text"))
    assert not verify(folder.key_of(8), b"text", folder.sign(3, b"text"))
    assert stat.S_IMODE((tmp_path / "keys" / "3.key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_keys(tmp_path / "keys", [3])


def test_a_client_needs_its_own_key_only(tmp_path):
    write_keys(tmp_path, range(5))
    it = play(Masked(identities=KeyFolder(str(tmp_path))), {c: whole(c) for c in range(5)})
    assert it.opened.clients == (0, 1, 2, 3, 4)
    (tmp_path / "3.key").unlink()
    assert KeyFolder(str(tmp_path)).key_of(3)
    with pytest.raises(ProtocolError, match=r"KeyFolder\(.*needs 3.key, got FileNotFoundError. Write it"):
        KeyFolder(str(tmp_path)).sign(3, b"")


@pytest.mark.parametrize(("text", "words"), [("zz", "got ValueError"), ("00ff", "has 64 digits, got 4")])
def test_files_that_are_no_keys(tmp_path, text, words):
    (tmp_path / "1.pub").write_text(text)
    with pytest.raises(ProtocolError, match=words):
        KeyFolder(str(tmp_path)).key_of(1)


def test_simulated():
    one, other = SimulatedIdentities(1), SimulatedIdentities(2)
    assert verify(one.key_of(3), b"text", SimulatedIdentities(1).sign(3, b"text"))
    assert not verify(other.key_of(3), b"text", one.sign(3, b"text"))
    assert not verify(one.key_of(4), b"text", one.sign(3, b"text"))
