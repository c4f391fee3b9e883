"""An authority of our own with certificates for the broker, and tokens; all made by openssl."""

import base64
import hashlib
import hmac
import json
import subprocess
import time
from pathlib import Path

DAYS = "30"
# Seconds for which tokens hold.
TOKEN_S = 86_400


def openssl(*args: str, given: bytes = b"") -> bytes:
    """What openssl prints."""
    done = subprocess.run(["openssl", *args], input=given, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(args)}: {done.stderr.decode()}")
    return done.stdout


class Authority:
    """An authority below a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = str(directory / "ca.crt")
        self.ca_key = str(directory / "ca.key")
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS,
            "-subj", "/CN=doors-ca", "-keyout", self.ca_key, "-out", self.ca,
        )  # fmt: skip

    def server(self, name: str, kind: str = "ec") -> tuple[str, str]:
        """A certificate (with the authority's behind it) and its key, for localhost and 127.0.0.1. `kind`: `ec` or `rsa`."""
        cert, key, request, names = (str(self.directory / f"{name}.{end}") for end in ("crt", "key", "csr", "names"))
        algorithm = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else ["rsa:2048"]
        openssl("req", "-newkey", *algorithm, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        Path(names).write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.ca_key, "-CAcreateserial", "-days", DAYS,
            "-extfile", names, "-out", cert,
        )  # fmt: skip
        with open(cert, "a") as chain:
            chain.write(Path(self.ca).read_text())
        Path(key).chmod(0o600)
        return cert, key

    def key_digest(self) -> str:
        """The digest of the authority's key, as browsers name keys that they are to trust."""
        public = openssl("x509", "-in", self.ca, "-pubkey", "-noout")
        der = openssl("pkey", "-pubin", "-outform", "der", given=public)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unsigned(algorithm: str, user: str) -> str:
    parts = ({"alg": algorithm, "typ": "JWT"}, {"sub": user, "exp": int(time.time()) + TOKEN_S})
    return ".".join(_url64(json.dumps(part).encode()) for part in parts)


def token_hs256(secret: bytes, user: str) -> str:
    """A token signed with a shared secret."""
    said = _unsigned("HS256", user)
    return f"{said}.{_url64(hmac.new(secret, said.encode(), hashlib.sha256).digest())}"


def token_es256(key_file: str, user: str) -> str:
    """A token signed with a key on P-256."""
    said = _unsigned("ES256", user)
    der = openssl("dgst", "-sha256", "-sign", key_file, given=said.encode())
    return f"{said}.{_url64(_fixed(der))}"


def _fixed(der: bytes) -> bytes:
    """Both numbers of a signature in 32 bytes each, as tokens have them."""
    out, at = b"", 2
    for _ in range(2):
        size = der[at + 1]
        out += der[at + 2 : at + 2 + size].lstrip(b"\0").rjust(32, b"\0")
        at += 2 + size
    return out


def public_key(key_file: str, to: Path) -> str:
    """Writes the public half of a key."""
    to.write_bytes(openssl("pkey", "-in", key_file, "-pubout"))
    return str(to)
