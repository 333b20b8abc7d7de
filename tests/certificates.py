# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of all kinds, made for one test."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import typing as t
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificates:
    """Authorities, and what they signed for the server at ``address``."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder = folder
        self._address = address
        self.authority("ca")
        self.authority("other-ca")
        self.signed("server", address)
        self.signed("elsewhere", "elsewhere.example")
        self.signed("expired", address, days=-1)
        self.signed("nameless", None)
        self.signed("client", "client")
        self.signed("stranger", "stranger", "other-ca")

    def authority(self, name: str) -> None:
        self._make(name, name, None, 1)

    def signed(self, name: str, hostname: str | None, by: str = "ca", days: int = 1) -> None:
        self._make(name, hostname, by, days)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _make(self, name: str, hostname: str | None, by: str | None, days: int) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer_key: t.Any = key
        subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname or self._address)])
        if by:
            issuer_key = serialization.load_pem_private_key((self.folder / f"{by}.key").read_bytes(), None)
            issuer = x509.load_pem_x509_certificate((self.folder / f"{by}.pem").read_bytes()).subject
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=3)).not_valid_after(now + datetime.timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=not by, path_length=None), critical=True)
        if by and hostname:
            known = x509.IPAddress(ipaddress.ip_address(hostname)) if hostname[0].isdigit() else x509.DNSName(hostname)
            builder = builder.add_extension(x509.SubjectAlternativeName([t.cast(x509.GeneralName, known)]), critical=False)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        for suffix, protection in (("key", serialization.NoEncryption()), ("locked", serialization.BestAvailableEncryption(b"word"))):
            content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, t.cast(t.Any, protection))
            (self.folder / f"{name}.{suffix}").write_bytes(content)

    def server(self, name: str, asks_for_clients: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        if asks_for_clients:
            context.load_verify_locations(self.path("ca.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context
