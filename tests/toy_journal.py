"""Journals that are played, and lines that are written by who holds the keys and keeps no rules."""

import hashlib
import json

import pytest

from partwise.journal import Journal, commitment, digest_of, merkle_root

pytest.importorskip("cryptography")
from partwise.channels.crypto import sign, verifying_key

NAMES = ("a", "b", "c", "v1", "v2", "v3")
OPERATOR = bytes([7]) * 32


def secret(name):
    return name.encode().ljust(32, b".")


def begun(path=None, **terms):
    journal = Journal(OPERATOR, path)
    journal.begin("server", {"pool": 1_000_000, "stake_min": 500_000, "validators": 3, **terms})
    for name in NAMES:
        journal.append("register", name, {"pubkey": verifying_key(secret(name)).hex()}, secret(name))
        journal.append("deposit", name, {"amount": 1_000_000}, secret(name))
    return journal


def contribute(journal, items, *, opened=None):
    """Authors commit to their digests and open them; `opened`: what some of them show instead."""
    for name, digest in items.items():
        nonce = name.encode().ljust(32, b"\1")
        journal.append("commit", name, {"commit": commitment(nonce, digest)}, secret(name))
    for name, digest in items.items():
        shown = (opened or {}).get(name, digest)
        if shown is not None:
            nonce = name.encode().ljust(32, b"\1").hex()
            payload = {"digest": shown, "nonce": nonce, "index_root": merkle_root([]), "num_examples": 12}
            journal.append("reveal", name, payload, secret(name))


def judge(journal, scores):
    """Each validator gives its scores of the items that it is to judge. scores: item -> three scores."""
    for item, given in scores.items():
        for validator, score in zip(journal.books.validators(item), given, strict=True):
            journal.append("evaluate", validator, {"scores": {item: score}}, secret(validator))


def played(path=None):
    journal = begun(path)
    contribute(journal, {"a": digest_of(b"1"), "b": digest_of(b"2"), "c": digest_of(b"3")})
    judge(journal, {"a": (900000, 850000, 800000), "b": (700000, 720000, 690000), "c": (150000, 100000, 180000)})
    journal.settle(600_000)
    journal.checkpoint()
    return journal


# ---- written without the implementation's rules ---------------------------------------------------------------------


def plain(value):
    """Canonical bytes by the specification: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def hash_of(line):
    """The hash of a line's entry."""
    return hashlib.sha256(b"submodel-ledger/v1\0" + plain(json.loads(line)["entry"])).hexdigest()


def forged_line(lines, round, type, author, payload, operator=OPERATOR):
    """A line that follows on others: chain and signatures are right, and nobody looked at what it says."""
    entry = {"v": 1, "seq": len(lines), "prev": hash_of(lines[-1]), "round": round, "type": type, "author": author}
    entry["payload"] = payload
    return signed_line(entry, operator)


def signed_line(entry, operator=OPERATOR):
    """A line of an entry, signed by its author and the operator."""
    author = entry["author"]
    told = bytes.fromhex(hash_of(json.dumps({"entry": entry})))
    by = sign(operator if author == "server" else secret(author), told).hex()
    head = sign(operator, b"submodel-ledger/head/v1\0" + entry["seq"].to_bytes(8, "big") + told).hex()
    return plain({"entry": entry, "by": by, "head": head}).decode()
