"""The fleet's certificate authority: its key, what it issued, and what it took back.

It lies in one directory: `ca.pem`, `ca.key` (for its owner alone) and `ledger.db`. All keys are
P-256. Certificates are valid from 1970 on, so that a device whose clock starts there is not
locked out: a key cannot have been misused before it was made.
"""

import datetime
import ipaddress
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.core.errors import FleetError

CA_DAYS = 20 * 365
SERVER_DAYS = 825
"""A server's certificate is made anew at a start of its server, once a third of this is over."""
DAY_S = 86_400
_FIRST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_NEXT = "restore the directory from a backup: devices trust no other authority"
_SCHEMA = """
create table if not exists issued (
    serial text primary key, subject text not null, not_after integer not null,
    issued_at integer not null, revoked_at integer, provisional integer not null default 0
);
create index if not exists issued_subject on issued (subject);
create table if not exists tokens (
    hash text primary key, subject text not null, expires_at integer not null, used_at integer
);
"""


class AuthorityError(FleetError):
    """The authority cannot be made or used, or refuses to sign; says why."""


@dataclass(frozen=True)
class Issued:
    """A certificate that this authority signed."""

    pem: str
    serial: str
    """Hexadecimal, lower case."""
    subject: str
    not_after: int


@dataclass(frozen=True)
class Entry:
    """What the ledger says of a certificate."""

    serial: str
    subject: str
    not_after: int
    revoked: bool
    provisional: bool
    """Made with its key for a bundle file; one use makes the device's own of it."""


def exists(home: Path) -> bool:
    """Return whether there is an authority in `home`."""
    return (home / "ca.pem").exists()


def init_authority(home: Path, name: str, now: float) -> "Authority":
    """Make an authority in `home` and return it.

    Raises:
        AuthorityError: there is one, or something that may be one, or the disk refuses.
    """
    for each in ("ca.pem", "ca.key", "ledger.db"):
        if (home / each).exists():
            raise AuthorityError(
                f"authority: {home / each} exists already; a new one would lock every device out",
                "fleet authority show, or fleet authority init --data ANOTHER_DIR",
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), _serial(), now + CA_DAYS * DAY_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(home / "ca.key", _key_pem(key))
        # Last: with it, the authority exists.
        write_private(home / "ca.pem", _pem(certificate))
    except OSError as error:
        raise AuthorityError(
            f"authority: cannot write to {home}: {error.strerror}",
            "fleet authority init --data DIR",
        ) from error
    return Authority(home)


class Authority:
    """Signs certificates and remembers which. One process at a time, any thread of it."""

    def __init__(self, home: Path) -> None:
        """Open what `init_authority` made.

        Raises:
            AuthorityError: it is not there, or not as it was made.
        """
        self._home = home
        try:
            self._certificate = x509.load_pem_x509_certificate((home / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
        except OSError as error:
            where = error.filename or home
            raise AuthorityError(
                f"authority: cannot read {where}: {error.strerror}", "fleet authority init"
            ) from error
        except (ValueError, TypeError) as error:
            raise AuthorityError(
                f"authority: expected a certificate and its key in {home}, got another text", _NEXT
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != self._certificate.public_key()
        ):
            raise AuthorityError(
                f"authority: ca.key and ca.pem in {home} do not belong together", _NEXT
            )
        self._key = key
        with closing(self._open()) as ledger:
            ledger.executescript(_SCHEMA)

    @property
    def pem(self) -> str:
        """The authority's own certificate."""
        return _pem(self._certificate)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return _common_name(self._certificate.subject)

    @property
    def not_after(self) -> int:
        """When it ends, in seconds since 1970."""
        return int(self._certificate.not_valid_after_utc.timestamp())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hexadecimal: what tokens pin."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    # ---- servers

    def issue_server(self, hosts: Sequence[str], now: float) -> tuple[str, str]:
        """Return the certificate, the authority's behind it, and the key for a server on `hosts`.

        A host is a DNS name or an IP address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._sign(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]),
            key.public_key(),
            [_host(each) for each in hosts],
            ExtendedKeyUsageOID.SERVER_AUTH,
            now + SERVER_DAYS * DAY_S,
        )
        return issued.pem + self.pem, _key_pem(key)

    def server_files(self, name: str, hosts: Sequence[str], now: float) -> tuple[Path, Path]:
        """Return the paths of a certificate chain and a key for a server on `hosts`.

        They are kept under `name` and made anew when they are for other hosts, or when a third
        of their time is over.

        Raises:
            AuthorityError: the disk refuses.
        """
        chain, key = self._home / f"{name}.pem", self._home / f"{name}.key"
        if not self._serves(chain, key, hosts, now):
            certificate, secret = self.issue_server(hosts, now)
            try:
                chain.unlink(missing_ok=True)
                write_private(key, secret)
                write_private(chain, certificate)
            except OSError as error:
                raise AuthorityError(
                    f"authority: cannot write {error.filename or chain}: {error.strerror}",
                    "fleet serve, on a disk with room",
                ) from error
        return chain, key

    def _serves(self, chain: Path, key: Path, hosts: Sequence[str], now: float) -> bool:
        if not (chain.exists() and key.exists()):
            return False
        try:
            certificate = x509.load_pem_x509_certificate(chain.read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            certificate.verify_directly_issued_by(self._certificate)
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        left_s = certificate.not_valid_after_utc.timestamp() - now
        wanted = [_host(each) for each in hosts]
        return list(names.value) == wanted and left_s > SERVER_DAYS * DAY_S * 2 / 3

    # ---- devices, and what else shows a certificate to the broker

    def issue_client(
        self, csr_pem: str, subject: str, not_after: float, now: float, *, provisional: bool = False
    ) -> Issued:
        """Sign the public key of a request for `subject`, whatever else the request says.

        Raises:
            AuthorityError: it is no request, of another kind of key, or not signed with its key.
        """
        try:
            csr = x509.load_pem_x509_csr(csr_pem.encode())
            signed = csr.is_signature_valid
            public = csr.public_key()
        except Exception as error:  # of many kinds, and all the same
            raise AuthorityError(
                f"request: expected a certificate request as PEM ({type(error).__name__})"
            ) from None
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise AuthorityError("request: expected a key on the curve P-256, got another")
        if not signed:
            raise AuthorityError("request: expected one signed with its own key, it is not")
        return self._issue(public, subject, not_after, now, provisional)

    def issue_with_key(
        self, subject: str, not_after: float, now: float, *, provisional: bool = False
    ) -> tuple[Issued, str]:
        """Return a certificate for `subject` and a key made for it here."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._issue(key.public_key(), subject, not_after, now, provisional), _key_pem(key)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        subject: str,
        not_after: float,
        now: float,
        provisional: bool,
    ) -> Issued:
        serial = _serial()
        issued = self._sign(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            public,
            # NATS knows no list of revoked serials: its users are named by certificate.
            [x509.UniformResourceIdentifier(certificate_uri(subject, f"{serial:x}"))],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            min(not_after, self.not_after),
            serial=serial,
        )
        with closing(self._open()) as ledger, ledger:
            ledger.execute(
                "insert into issued (serial, subject, not_after, issued_at, provisional)"
                " values (?, ?, ?, ?, ?)",
                (issued.serial, subject, issued.not_after, int(now), int(provisional)),
            )
        return issued

    def verified(self, pem: str, signature: bytes, message: bytes) -> Entry:
        """Return the ledger's entry of a client's certificate whose key signed `message`.

        Whether it is expired or revoked is for the caller to judge.

        Raises:
            AuthorityError: it is not ours, or the signature is by another key.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            certificate.verify_directly_issued_by(self._certificate)
            public = certificate.public_key()
            assert isinstance(public, ec.EllipticCurvePublicKey)
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except Exception as error:  # of many kinds, and all the same
            raise AuthorityError(
                "certificate: expected one of this fleet's authority, and a signature by its key"
                f" ({type(error).__name__})"
            ) from None
        found = self._entries("where serial = ?", f"{certificate.serial_number:x}")
        if not found:
            raise AuthorityError("certificate: expected one that the ledger knows")
        return found[0]

    def valid_entries(self, now: float) -> list[Entry]:
        """Return all client certificates that count: not revoked, not expired."""
        return self._entries("where revoked_at is null and not_after > ?", now)

    def entries_of(self, subject: str) -> list[Entry]:
        """Return every client certificate that `subject` ever had, the latest last."""
        return self._entries("where subject = ? order by issued_at, rowid", subject)

    def revoke(self, subject: str, now: float, *, but: str = "", provisional: bool = False) -> int:
        """Take back what `subject` was given but the serial `but`; return how many.

        With `provisional`, only what came in bundles. Tokens that were not used go, too.
        """
        with closing(self._open()) as ledger, ledger:
            done = ledger.execute(
                "update issued set revoked_at = ? where subject = ? and revoked_at is null"
                " and serial != ? and provisional >= ?",
                (int(now), subject, but, int(provisional)),
            )
            if not but:
                ledger.execute(
                    "delete from tokens where subject = ? and used_at is null", (subject,)
                )
            return done.rowcount

    def revocation_list(self, now: float) -> str:
        """Return the list of what was revoked and is not expired anyway, as PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_time(now))
            # A list that expires would lock the whole fleet out.
            .next_update(_LAST)
            .add_extension(self._authority_id(), critical=False)
            .add_extension(x509.CRLNumber(int(now * 1000)), critical=False)
        )
        for serial, revoked_at in self._rows(
            "select serial, revoked_at from issued where revoked_at is not null and not_after > ?",
            now,
        ):
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(serial, 16))
                .revocation_date(_time(revoked_at))
                .build()
            )
        return (
            builder.sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
            .decode()
        )

    # ---- tokens

    def keep_token(self, hash: str, subject: str, expires_at: float, now: float) -> None:
        """Remember the hash of a token that `subject` may enrol with, once."""
        with closing(self._open()) as ledger, ledger:
            ledger.execute("delete from tokens where expires_at < ?", (now - 30 * DAY_S,))
            ledger.execute(
                "insert into tokens (hash, subject, expires_at) values (?, ?, ?)",
                (hash, subject, int(expires_at)),
            )

    def token(self, hash: str) -> tuple[str, int, bool] | None:
        """Return whom a token is for, when it expires, and whether it was used; None: unknown."""
        rows = self._rows("select subject, expires_at, used_at from tokens where hash = ?", hash)
        return (rows[0][0], rows[0][1], rows[0][2] is not None) if rows else None

    def use_token(self, hash: str, now: float) -> bool:
        """Mark a token as used, on disk; False when somebody was faster."""
        with closing(self._open()) as ledger, ledger:
            done = ledger.execute(
                "update tokens set used_at = ? where hash = ? and used_at is null", (int(now), hash)
            )
            return done.rowcount == 1

    # ---- within

    def _sign(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        not_after: float,
        *,
        serial: int = 0,
    ) -> Issued:
        serial = serial or _serial()
        certificate = (
            _builder(subject, self._certificate.subject, public, serial, not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._authority_id(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(_pem(certificate), f"{serial:x}", _common_name(subject), int(not_after))

    def _authority_id(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _entries(self, where: str, *values: object) -> list[Entry]:
        rows = self._rows(
            f"select serial, subject, not_after, revoked_at, provisional from issued {where}",  # noqa: S608
            *values,
        )
        return [Entry(r[0], r[1], r[2], r[3] is not None, bool(r[4])) for r in rows]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(self._open()) as ledger:
            found: list[tuple[Any, ...]] = ledger.execute(query, values).fetchall()
            return found

    def _open(self) -> sqlite3.Connection:
        # A connection a use: requests come from many threads, and seldom.
        try:
            ledger = sqlite3.connect(self._home / "ledger.db", timeout=10)
            (self._home / "ledger.db").chmod(0o600)
            ledger.execute("pragma synchronous = full")
        except (OSError, sqlite3.Error) as error:
            raise AuthorityError(
                f"authority: cannot open {self._home / 'ledger.db'}: {error}", _NEXT
            ) from error
        return ledger


def certificate_uri(subject: str, serial: str) -> str:
    """Return the name that a client's certificate carries beside its subject, unique for it."""
    return f"urn:farflung:{subject}:{serial}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, all of it or nothing."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    serial: int,
    not_after: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_FIRST)
        .not_valid_after(_time(not_after))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _serial() -> int:
    return x509.random_serial_number()


def _time(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(at), datetime.UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _common_name(name: x509.Name) -> str:
    value = name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return value if isinstance(value, str) else value.decode()
