"""A certificate for the fake upstream, made for one measurement: `subjects` gives it to whoever speaks TLS.

It signs itself, so it is also what a client has to trust. The key is ECDSA on P-256, as Amazon's are by now.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Certificate:
    """Two PEM files: the certificate with its key, for the server, and without, for whoever trusts it."""

    server: Path
    trusted: Path


def certify(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1 that holds for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = Certificate(folder / "server.pem", folder / "trusted.pem")
    made.server.write_bytes(private + public)
    made.trusted.write_bytes(public)
    return made
