"""Keys in files and in simulations."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest

from partwise.channels import Masked
from partwise.channels.crypto import verify
from partwise.channels.frames import read_advertised, read_consistency
from partwise.channels.identities import KeyFolder, SimulatedIdentities, write_keys
from partwise.channels.protocol import MaskSigned, digest
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


CLIENTS = {c: whole(c) for c in range(6)}
SIGNED = Masked(min_contributors=3, identities=SimulatedIdentities(3))


@pytest.mark.parametrize(
    ("channel", "session"), [(SIGNED, 6), (replace(SIGNED, max_weight=7), 7)], ids=["another round", "other settings"]
)
def test_signed_keys_are_for_one_round_and_for_one_configuration(channel, session):
    """Client 4 signed them, but not for this: the server deals them out once more, in a frame of this round."""
    old = play(channel, CLIENTS, session=session).answers[0][4].keys
    keys = read_advertised(old, session, 4, is_signed=True).pack(7, 4)

    def again(step, client, message):
        if (step, client) != (1, 2):
            return message
        dealt = (*message.keys[:4], keys, message.keys[5])
        return message._replace(keys=dealt, all_keys=digest(*dealt))

    it = play(SIGNED, CLIENTS, ask=again)
    assert "keys are signed by whose they are, got keys of client 4 that are not" in it.refusals[2]


def test_who_is_lost_does_not_vouch_for_who_is_left():
    """floor(2 * 6 / 3) + 1 = 5 must sign. 5 is said to be lost, and signs for a server that it works with."""
    told = {}

    def ask(step, client, message):
        if step == 3:
            return message._replace(alive=(0, 1, 2, 3, 4), lost=(5,))
        if (step, client) == (4, 2):
            given = dict(zip(message.clients, message.signatures, strict=True))
            given = {0: given[0], 1: given[1], 2: given[2], 3: given[3], 5: SIGNED.identities.sign(5, told["text"])}
            return MaskSigned(tuple(given), tuple(given.values()))
        return message

    def answer(step, client, said):
        if step == 3:
            told["text"] = read_consistency(said, 7, client).digest
        return said

    it = play(SIGNED, CLIENTS, ask=ask, answer=answer)
    assert "5 clients sign the same survivors, model and keys, got 4" in it.refusals[2]
