"""The page over TLS, with a certificate that the test makes."""

import datetime
import http.client
import ipaddress
import ssl

import pytest
from helpers.http_server import Server

from samkd.deploy.runtime.serve.http.options import HttpOptions

x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed: pip install 'samkd[sign]'")

TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture
def certificate(tmp_path):
    """The files of a certificate for this machine, and of its key."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "samkd")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(plain)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_the_page_is_encrypted_and_its_cookie_is_sent_over_nothing_else(built, tmp_path, certificate):
    cert, key = certificate
    options = HttpOptions(port=0, token=TOKEN, cert=cert, key=key)
    with Server([built], tmp_path / "spool", options) as server:
        assert server.door.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=20)
        connection.request("GET", f"/?token={TOKEN}")
        answer = connection.getresponse()
        assert answer.status == 303 and "Secure" in (answer.getheader("set-cookie") or "")
        connection.close()
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with pytest.raises((OSError, http.client.HTTPException)):
            plain.request("GET", "/health")
            plain.getresponse()
        plain.close()
