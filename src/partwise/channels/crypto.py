"""What is taken from the package `cryptography`: agreement, derivation, sealing, signatures and AES streams.

Nothing here is our own but the choice: X25519, HKDF-SHA-256, AES-256-GCM, Ed25519 and AES-256 in counter mode with a
counter that begins at zero, each key used once. Randomness is the operating system's.
"""

from __future__ import annotations

import hmac
import os
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partwise.core.errors import CompositionError, ProtocolError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

__all__ = [
    "BLOCK_BYTES",
    "KEY_BYTES",
    "NONCE_BYTES",
    "SEAL_BYTES",
    "SIGNATURE_BYTES",
    "KeyPair",
    "agree",
    "blocks_at",
    "derive_key",
    "is_equal",
    "key_pair",
    "public_of",
    "require",
    "seal",
    "sign",
    "stream",
    "unseal",
    "verify",
    "verifying_key",
]

BLOCK_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES = 12
SEAL_BYTES = 16  # what sealing adds to the text, beside the nonce
SIGNATURE_BYTES = 64


class KeyPair(NamedTuple):
    """An X25519 key pair, as raw bytes. Printing it does not show the secret."""

    secret: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()[:8]}…)"


class _Parts(NamedTuple):
    x25519: ModuleType
    ed25519: ModuleType
    ciphers: ModuleType
    aead: ModuleType
    hashes: ModuleType
    hkdf: ModuleType
    invalid_tag: type[Exception]
    invalid_signature: type[Exception]


@lru_cache(maxsize=1)
def _parts() -> _Parts:
    try:
        from cryptography.exceptions import InvalidSignature, InvalidTag
        from cryptography.hazmat.primitives import ciphers, hashes
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
        from cryptography.hazmat.primitives.ciphers import aead
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise CompositionError(
            "channels: masks need the package cryptography, got none. Install it: pip install 'partwise[secure]'."
        ) from error
    return _Parts(x25519, ed25519, ciphers, aead, hashes, hkdf, InvalidTag, InvalidSignature)


def require() -> None:
    """Refuse to go on without the package.

    Raises:
        CompositionError: it is not installed.
    """
    _parts()


def key_pair() -> KeyPair:
    """A fresh X25519 key pair."""
    secret = os.urandom(KEY_BYTES)
    return KeyPair(secret, public_of(secret))


def public_of(secret: bytes) -> bytes:
    """The public key of an X25519 secret key; 32 bytes each."""
    public: bytes = _parts().x25519.X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return public


def agree(secret: bytes, public: bytes) -> bytes:
    """What the holders of two X25519 keys have in common: 32 bytes, to be put through `derive_key`.

    Raises:
        ProtocolError: a public key that is none.
    """
    lib = _parts().x25519
    try:
        theirs = lib.X25519PublicKey.from_public_bytes(public)
        common: bytes = lib.X25519PrivateKey.from_private_bytes(secret).exchange(theirs)
    except ValueError as error:  # also a point of low order, whose result would be zero whatever the secret
        raise ProtocolError(f"agree(): the peer's public key must be an X25519 key, got one that is not: {error}. "
                            "Leave that peer out.") from error  # fmt: skip
    return common


def derive_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256: a 32-byte key for one purpose.

    Args:
        secret: what is agreed, 32 bytes.
        salt: the session, 32 bytes.
        info: what the key is for.
    """
    lib = _parts()
    key: bytes = lib.hkdf.HKDF(algorithm=lib.hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)
    return key


def seal(key: bytes, text: bytes, context: bytes) -> tuple[bytes, bytes]:
    """AES-256-GCM under a fresh nonce: the nonce, and the sealed text. `context` is authenticated, not sent."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce, _parts().aead.AESGCM(key).encrypt(nonce, text, context)


def unseal(key: bytes, nonce: bytes, sealed: bytes, context: bytes) -> bytes:
    """Undo `seal`.

    Raises:
        ProtocolError: anything was changed: key, nonce, text or context.
    """
    lib = _parts()
    try:
        text: bytes = lib.aead.AESGCM(key).decrypt(nonce, sealed, context)
    except (lib.invalid_tag, ValueError) as error:
        raise ProtocolError(
            "unseal(): a sealed share must open with the key of its sender, got one that does not. "
            "It was changed on the way, or the two sides disagree about the session; begin a new one."
        ) from error
    return text


def sign(secret: bytes, text: bytes) -> bytes:
    """An Ed25519 signature, 64 bytes, by a secret key of 32 bytes."""
    signature: bytes = _parts().ed25519.Ed25519PrivateKey.from_private_bytes(secret).sign(text)
    return signature


def verify(public: bytes, text: bytes, signature: bytes) -> bool:
    """Whether the holder of the Ed25519 key signed the text."""
    lib = _parts()
    try:
        lib.ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (lib.invalid_signature, ValueError):
        return False
    return True


def verifying_key(secret: bytes) -> bytes:
    """The public key of an Ed25519 secret key; 32 bytes each."""
    public: bytes = _parts().ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return public


def stream(key: bytes) -> CipherContext:
    """AES-256 in counter mode from zero on: `update_into(zeros, out)` writes the next bytes of the stream."""
    lib = _parts().ciphers
    cipher: CipherContext = lib.Cipher(lib.algorithms.AES256(key), lib.modes.CTR(bytes(BLOCK_BYTES))).encryptor()
    return cipher


def blocks_at(key: bytes, at: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Blocks of `stream(key)`, wherever they lie, without those before them.

    Args:
        key: 32 bytes.
        at: (b,) int64, numbers of the blocks, >= 0.

    Returns:
        (b, 16) uint8.
    """
    lib = _parts().ciphers
    counters = np.zeros((len(at), 2), ">u8")  # the counter is one big-endian number of 128 bits
    counters[:, 1] = at
    # The stream is the encryption of its counters, so any of them can be encrypted by itself.
    cipher = lib.Cipher(lib.algorithms.AES256(key), lib.modes.ECB()).encryptor()
    return np.frombuffer(cipher.update(counters.view(np.uint8).data), np.uint8).reshape(-1, BLOCK_BYTES)


def is_equal(one: bytes, other: bytes) -> bool:
    """Whether two texts are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)
