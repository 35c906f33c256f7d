"""Who vouches for whom in the tests of TLS: a certificate authority, a broker, a process, and a stranger."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST_NAME = "localhost"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as PEM."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate_pem: bytes

    @property
    def key_pem(self) -> bytes:
        """The private key, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write certificate and key; return both paths."""
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        certificate.write_bytes(self.certificate_pem)
        key.write_bytes(self.key_pem)
        return certificate, key


def issue(common_name: str, by: Issued | None = None, *, hosts: tuple[x509.GeneralName, ...] = ()) -> Issued:
    """A certificate by an authority; without one, the certificate of a new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = by or Issued(name, key, b"")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(signed.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed.key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    certificate = builder.sign(signed.key, hashes.SHA256())
    return Issued(name, key, certificate.public_bytes(serialization.Encoding.PEM))


@dataclass
class TlsSite:
    """A broker with TLS at `host` and `port`, known there as `HOST_NAME` only, and the files to connect with."""

    user: str
    broker_files: Mapping[str, bytes]
    authority: Path
    other_authority: Path
    client: tuple[Path, Path]
    stranger: tuple[Path, Path]
    host: str = ""
    port: int = 0

    @classmethod
    def made(cls, directory: Path) -> Self:
        """Make all keys and certificates; `stranger` is one of the other authority with the client's name."""
        user = "coordinator"
        authority, other = issue("the authority"), issue("another authority")
        server = issue("broker", authority, hosts=(x509.DNSName(HOST_NAME),))
        return cls(
            user=user,
            broker_files={
                "ca.pem": authority.certificate_pem,
                "server.pem": server.certificate_pem,
                "server.key": server.key_pem,
            },
            authority=authority.write(directory, "authority")[0],
            other_authority=other.write(directory, "other")[0],
            client=issue(user, authority).write(directory, "client"),
            stranger=issue(user, other).write(directory, "stranger"),
        )
