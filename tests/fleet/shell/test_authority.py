import datetime
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from fleet.shell.authority import (
    SERVER_DAYS,
    Authority,
    AuthorityError,
    certificate_uri,
    init_authority,
)
from fleet.shell.backup import restore_backup, write_backup

NOW = time.time()
DAY = 86_400


@pytest.fixture
def authority(tmp_path):
    return init_authority(tmp_path / "authority", "Test fleet", NOW)


def request(name="whatever", key=None):
    """Return a certificate request as PEM, and its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return csr.public_bytes(serialization.Encoding.PEM).decode(), key


def test_an_authority_is_made_once_and_its_key_is_its_owners_alone(tmp_path):
    def fleet(*words):
        command = [sys.executable, "-m", "fleet", "authority", *words, "--data", str(tmp_path)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    first = fleet("init")
    again = fleet("init")
    shown = fleet("show")

    assert first.returncode == 0, first.stderr
    assert again.returncode == 1
    assert "exists already" in again.stderr
    home = tmp_path / "authority"
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o600, "ledger.db": 0o600}
    assert home.stat().st_mode & 0o077 == 0
    assert Authority(home).fingerprint in first.stdout
    assert shown.stdout == first.stdout


def test_a_server_with_its_certificate_is_trusted_by_who_holds_the_authoritys(authority, tmp_path):
    chain, key = authority.server_files("api", ["127.0.0.1", "fleet.example"], NOW)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        for _ in range(2):
            with suppress(OSError):
                server.wrap_socket(listener.accept()[0], server_side=True).close()

    thread = threading.Thread(target=answer)
    thread.start()

    def greet(host):
        context = ssl.create_default_context(cadata=authority.pem)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        with socket.create_connection(listener.getsockname()) as raw:
            context.wrap_socket(raw, server_hostname=host).close()

    greet("127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greet("elsewhere.example")

    thread.join(10)
    listener.close()


def test_a_servers_certificate_is_kept_until_a_third_of_its_time_is_over(authority):
    chain, key = authority.server_files("api", ["127.0.0.1"], NOW)
    first = chain.read_text()

    same = authority.server_files("api", ["127.0.0.1"], NOW + DAY)[0].read_text()
    later = authority.server_files("api", ["127.0.0.1"], NOW + SERVER_DAYS / 2 * DAY)[0].read_text()
    moved = authority.server_files("api", ["fleet.example"], NOW)[0].read_text()

    assert key.stat().st_mode & 0o777 == 0o600
    assert same == first
    assert len({first, later, moved}) == 3


def test_a_request_decides_its_key_and_nothing_else(authority):
    pem, key = request("somebody-else")

    issued = authority.issue_client(pem, "cam-1", NOW + 90 * DAY, NOW)

    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=cam-1"
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_before_utc == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [certificate_uri("cam-1", issued.serial)]


@pytest.mark.parametrize("what", ["words", "another kind of key", "a broken signature"])
def test_what_is_no_proper_request_is_refused(authority, what):
    pem = "-----BEGIN NONSENSE-----"
    if what == "another kind of key":
        pem, _ = request(key=ed25519.Ed25519PrivateKey.generate())
    if what == "a broken signature":
        der = bytearray(x509.load_pem_x509_csr(request()[0].encode()).public_bytes(
            serialization.Encoding.DER))  # fmt: skip
        der[-1] ^= 1
        pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")

    with pytest.raises(AuthorityError, match="request: expected"):
        authority.issue_client(pem, "cam-1", NOW + DAY, NOW)


def test_what_is_revoked_is_on_the_list_until_it_would_have_expired_anyway(authority):
    old = authority.issue_with_key("cam-1", NOW + DAY, NOW)[0]
    new = authority.issue_with_key("cam-1", NOW + 90 * DAY, NOW)[0]
    other = authority.issue_with_key("cam-2", NOW + 90 * DAY, NOW)[0]

    def listed(now):
        crl = x509.load_pem_x509_crl(authority.revocation_list(now).encode())
        assert crl.next_update_utc.year == 9999
        return {f"{each.serial_number:x}" for each in crl}

    assert listed(NOW) == set()
    assert authority.revoke("cam-1", NOW) == 2
    assert listed(NOW) == {old.serial, new.serial}
    assert listed(NOW + 2 * DAY) == {new.serial}
    assert [each.serial for each in authority.valid_entries(NOW)] == [other.serial]


def test_a_token_is_used_once_also_after_a_restart(authority, tmp_path):
    authority.keep_token("hash", "cam-1", NOW + DAY, NOW)

    assert authority.token("hash") == ("cam-1", int(NOW + DAY), False)
    assert authority.use_token("hash", NOW)
    again = Authority(tmp_path / "authority")
    assert again.token("hash") == ("cam-1", int(NOW + DAY), True)
    assert not again.use_token("hash", NOW)


def test_only_the_holder_of_a_certificates_key_speaks_for_it(authority, tmp_path):
    pem, key = request()
    issued = authority.issue_client(pem, "cam-1", NOW + DAY, NOW)
    foreign = init_authority(tmp_path / "other", "Test fleet", NOW)
    forged = foreign.issue_with_key("cam-1", NOW + DAY, NOW)[0]

    signature = key.sign(b"renew", ec.ECDSA(hashes.SHA256()))

    assert authority.verified(issued.pem, signature, b"renew").subject == "cam-1"
    for certificate, message in ((issued.pem, b"other"), (forged.pem, b"renew")):
        with pytest.raises(AuthorityError, match="certificate: expected"):
            authority.verified(certificate, signature, message)


def test_a_backup_holds_the_authority_and_what_it_revoked(authority, tmp_path):
    import sqlite3

    authority.issue_with_key("cam-1", NOW + DAY, NOW)
    authority.revoke("cam-1", NOW)
    (tmp_path / "controller.key").write_text("key")
    for name in ("fleet.db", "telemetry.db"):
        sqlite3.connect(tmp_path / name).close()

    write_backup(tmp_path, tmp_path / "file", lambda _: None)
    restore_backup(tmp_path / "file", tmp_path / "back", lambda _: None)

    back = Authority(tmp_path / "back" / "authority")
    assert back.fingerprint == authority.fingerprint
    assert [each.revoked for each in back.entries_of("cam-1")] == [True]
