"""Keys of nodes, and certificates for a network: the server's name is signed by an authority that the nodes know."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import NameOID

from partwise.core.errors import DataError

__all__ = [
    "check_pair",
    "der_of_pem",
    "fingerprint_of",
    "make_authority",
    "make_node_key",
    "make_server_certificate",
    "public_der",
]

_PEM = serialization.Encoding.PEM
_YEAR = datetime.timedelta(days=365)


def make_node_key(private: Path, public: Path) -> None:
    """A node's key pair (P-384), as Flower's authentication of nodes wants it; only its owner reads the private one."""
    key = ec.generate_private_key(ec.SECP384R1())
    plain = serialization.NoEncryption()
    _write_secret(private, key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, plain))
    form = serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + b"\n")


def make_authority(key_path: Path, certificate_path: Path) -> None:
    """An authority of one's own, for a test network: whoever has its key can be any server."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Partwise test authority")])
    builder = _builder(name, name, key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    _write_key(key_path, key)
    certificate_path.write_bytes(builder.sign(key, hashes.SHA384()).public_bytes(_PEM))


def make_server_certificate(authority: tuple[Path, Path], key_path: Path, path: Path, hosts: Sequence[str]) -> None:
    """A certificate for a server under some names or addresses.

    Args:
        authority: paths of its key and its certificate.
        key_path: of the server's key, made here.
        path: of the certificate, made here.
        hosts: what nodes call the server.
    """
    signer = serialization.load_pem_private_key(authority[0].read_bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority[1].read_bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = _builder(name, issuer.subject, key.public_key())
    builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    builder = builder.add_extension(identifier, critical=False)
    _write_key(key_path, key)
    path.write_bytes(builder.sign(signer, hashes.SHA384()).public_bytes(_PEM))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + _YEAR)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    form = serialization.PrivateFormat.PKCS8
    _write_secret(path, key.private_bytes(_PEM, form, serialization.NoEncryption()))


def _write_secret(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def public_der(path: Path) -> bytes:
    """A public key in OpenSSH's or PEM's form, in the one form in which keys are compared.

    Raises:
        DataError: it is none.
    """
    data = path.read_bytes()
    try:
        key: PublicKeyTypes = (
            serialization.load_pem_public_key(data)
            if data.startswith(b"-----")
            else serialization.load_ssh_public_key(data)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path}: must be a public key, got: {error}. Copy it from the node again.") from error
    return _der(key)


def der_of_pem(text: str) -> bytes:
    """A public key of a PEM text, in the form in which keys are compared."""
    return _der(serialization.load_pem_public_key(text.encode()))


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_pair(private: Path, public: Path) -> None:
    """Refuse a node's keys that are no pair, or that others can read.

    Raises:
        DataError: it says which rule is broken.
    """
    mode = private.stat().st_mode & 0o777
    if mode & 0o077:
        raise DataError(f"{private}: only its owner may read it, got mode {mode:o}. Run: chmod 600 {private}")
    try:
        key: PrivateKeyTypes = serialization.load_ssh_private_key(private.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(
            f"{private}: must be a private key in OpenSSH's form, got: {error}. Make a new pair."
        ) from error
    if _der(key.public_key()) != public_der(public):
        raise DataError(f"{private}: must be the private key of {public}, got that of another. Make a new pair.")


def fingerprint_of(path: Path) -> str:
    """A short name of a public key, to be read over the telephone."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public_der(path))
    found = digest.finalize().hex()[:32]
    return ":".join(found[i : i + 4] for i in range(0, 32, 4))
