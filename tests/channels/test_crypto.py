"""Vectors, and that nothing opens with another key, context or text."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from partwise.channels import crypto
from partwise.channels.crypto import (
    KeyPair,
    agree,
    blocks_at,
    derive_key,
    is_equal,
    key_pair,
    public_of,
    require,
    seal,
    sign,
    stream,
    unseal,
    verify,
    verifying_key,
)
from partwise.channels.graphs import Complete
from partwise.channels.protocol import MaskLayout, MaskNeighbours, Rules, digest, model_digest, session_of
from partwise.core.errors import CompositionError, ProtocolError

KEY = bytes(range(32))


def drawn(key, count, before=0):
    out = bytearray(before + count + 16)
    stream(key).update_into(bytes(before + count), out)
    return bytes(out[before : before + count])


def test_stream_of_the_specification():
    words = np.frombuffer(drawn(KEY, 16), "<u4")
    assert drawn(KEY, 16).hex() == "f29000b62a499fd0a9f39a6add2e7780"
    assert words.tolist() == [3053490418, 3500099882, 1788539817, 2155294429]


def test_derivation_of_the_specification():
    key = derive_key(KEY, salt=bytes(32), info=b"submodel-fl/secagg/v1|mask|round=1|u=1|v=2")
    assert key.hex() == "fbfa7cb8919260e478c9b84df35bf60d69cf150b931cb3c4530ff9224ef63eb8"
    assert derive_key(KEY, salt=bytes(32), info=b"submodel-fl/secagg/v1|mask|round=2|u=1|v=2") != key
    assert derive_key(KEY, salt=bytes(31) + b"1", info=b"submodel-fl/secagg/v1|mask|round=1|u=1|v=2") != key


def test_agreement_of_rfc_7748():
    """Section 6.1 of RFC 7748."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    common = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agree(alice, public_of(bob)).hex() == agree(bob, public_of(alice)).hex() == common


def test_keys_are_fresh_and_not_shown():
    one, other = key_pair(), key_pair()
    assert one.secret != other.secret
    assert agree(one.secret, other.public) == agree(other.secret, one.public)
    assert one.secret.hex() not in repr(one)
    assert KeyPair(one.secret, public_of(one.secret)) == one


@pytest.mark.parametrize("public", [bytes(32), bytes(31), b""], ids=["of low order", "short", "empty"])
def test_what_is_no_key_is_refused(public):
    with pytest.raises(ProtocolError, match="must be an X25519 key"):
        agree(KEY, public)


def test_sealed_text_opens_with_its_key_and_context_only():
    nonce, sealed = seal(KEY, b"share", b"round 3")
    assert unseal(KEY, nonce, sealed, b"round 3") == b"share"
    assert seal(KEY, b"share", b"round 3")[0] != nonce
    assert len(sealed) == len(b"share") + crypto.SEAL_BYTES
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for key, n, text, context in (
        (bytes(32), nonce, sealed, b"round 3"),
        (KEY, bytes(12), sealed, b"round 3"),
        (KEY, nonce, flipped, b"round 3"),
        (KEY, nonce, sealed, b"round 4"),
        (KEY, nonce, b"", b"round 3"),
        (KEY, b"", sealed, b"round 3"),
    ):
        with pytest.raises(ProtocolError, match="must open with the key of its sender"):
            unseal(key, n, text, context)


def test_signatures():
    public = verifying_key(KEY)
    assert verify(public, b"text", sign(KEY, b"text"))
    assert not verify(public, b"text!", sign(KEY, b"text"))
    assert not verify(verifying_key(bytes(32)), b"text", sign(KEY, b"text"))
    assert not verify(public, b"text", bytes(64))
    assert not verify(public, b"text", b"short")
    assert not verify(b"no key", b"text", sign(KEY, b"text"))


def test_blocks_anywhere_are_those_of_the_stream():
    at = np.array([0, 5, 5, 2, 70], np.int64)
    found = blocks_at(KEY, at)
    for row, block in zip(found, at, strict=True):
        assert row.tobytes() == drawn(KEY, 16, 16 * int(block))
    assert blocks_at(KEY, np.array([], np.int64)).shape == (0, 16)


@pytest.mark.parametrize("bit", range(0, 256, 5))
def test_masks_depend_on_every_bit_of_the_key(bit):
    """A seed folded to 32 bits, or one whose bytes are text, would repeat for some of these."""
    changed = (int.from_bytes(KEY, "little") ^ (1 << bit)).to_bytes(32, "little")
    assert drawn(changed, 16) != drawn(KEY, 16)
    assert derive_key(changed, salt=bytes(32), info=b"") != derive_key(KEY, salt=bytes(32), info=b"")


def test_every_bit_of_a_derived_key_occurs():
    """Keys that are text before they are used have a top bit that is never set."""
    keys = [derive_key(KEY, salt=bytes(32), info=b"%d" % i) for i in range(200)]
    together = np.bitwise_or.reduce(np.array([np.frombuffer(k, np.uint8) for k in keys]))
    assert (together == 255).all()


def test_comparison():
    assert is_equal(b"a", b"a")
    assert not is_equal(b"a", b"b")


def test_without_the_package(monkeypatch):
    crypto._parts.cache_clear()
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    try:
        with pytest.raises(CompositionError, match=r"need the package cryptography, got none. Install it: pip"):
            require()
    finally:
        crypto._parts.cache_clear()


def test_a_digest_tells_where_a_part_ends():
    """SHA-256 of each part behind its length in eight bytes."""
    assert digest(b"ab", b"c") == hashlib.sha256(b"\2" + bytes(7) + b"ab" + b"\1" + bytes(7) + b"c").digest()
    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abc", b"")}) == 4


def test_a_session_hangs_on_all_that_clients_must_agree_on():
    """Round, model, configuration, layout and everybody's keys: two clients told otherwise derive other masks."""
    rules = Rules(Complete(), None, 3, bytes(32))
    said = MaskNeighbours(3, bytes(32), MaskLayout(32, 5, given=("w",)), (0, 1, 2), (b"", b"", b""), {})
    others = [
        session_of(1, b"model", rules, said),
        session_of(2, b"model", rules, said),
        session_of(1, b"other", rules, said),
        session_of(1, b"model", replace(rules, config=b"\1" * 32), said),
        session_of(1, b"model", rules, said._replace(layout=replace(said.layout, dense=6))),
        session_of(1, b"model", rules, said._replace(all_keys=b"\1" * 32)),
    ]
    assert len(set(others)) == len(others)
    one, two = {"v": b"1", "w": b"2"}, {"v": b"2", "w": b"1"}
    layout = MaskLayout(32, 5, given=("v", "w"))
    assert len({model_digest(layout, one), model_digest(layout, two), model_digest(said.layout, one)}) == 3
