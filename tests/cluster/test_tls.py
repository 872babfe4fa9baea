"""Ray's gRPC under TLS with certificates of our own: who shows none does not get in (SECURITY.md)."""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import ray
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

DAY = datetime.timedelta(days=1)


class Authority:
    """Makes certificates that are valid for two days."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self._write("ca", builder, self._key)

    def issue(self, *addresses: str) -> None:
        """`node.crt` and `node.key`, for a node that Ray knows by one of these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in {"127.0.0.1", *addresses}]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        builder = self._builder(subject, key)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([*names, x509.DNSName("localhost")]), False
        )
        self._write("node", builder, key)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def environment(self) -> dict[str, str]:
        """What Ray's processes are told."""
        names = {"SERVER_CERT": "node.crt", "SERVER_KEY": "node.key", "CA_CERT": "ca.crt"}
        files = {f"RAY_TLS_{name}": str(self.folder / file) for name, file in names.items()}
        return {"RAY_USE_TLS": "1", **files}

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - DAY,
            not_valid_after=now + DAY,
        )

    def _write(self, name: str, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> None:
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, plain))
        (self.folder / f"{name}.key").chmod(0o600)


def answers(channel: grpc.Channel) -> bool:
    """Whether a connection comes about."""
    try:
        grpc.channel_ready_future(channel).result(timeout=5)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def test_only_holders_of_a_certificate_get_in(tmp_path: Path) -> None:
    own, other = Authority(tmp_path / "own", "own"), Authority(tmp_path / "other", "other")
    own.issue(ray.util.get_node_ip_address())
    other.issue()
    head = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.tls_head"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **own.environment(), "RAY_AUTH_MODE": "disabled"},
    )
    try:
        assert head.stdout is not None
        size, address = head.stdout.readline().split()
        assert int(size) == 2**22, "tasks, actors and objects work"
        root = own.read("ca.crt")
        with_own = grpc.ssl_channel_credentials(root, own.read("node.key"), own.read("node.crt"))
        with_other = grpc.ssl_channel_credentials(root, other.read("node.key"), other.read("node.crt"))
        assert answers(grpc.secure_channel(address, with_own))
        assert not answers(grpc.secure_channel(address, with_other)), "a certificate of another authority"
        assert not answers(grpc.secure_channel(address, grpc.ssl_channel_credentials(root))), "none"
        assert not answers(grpc.insecure_channel(address)), "in the clear"
    finally:
        head.communicate(timeout=60)
    assert head.returncode == 0
