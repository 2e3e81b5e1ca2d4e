"""Addresses that carry their own permission, and file names nobody can guess.

A signature is HMAC-SHA256 over version, method, path and expiry. Whoever holds the address may do
that one thing until then; nothing about it is stored.
"""

import base64
import hmac
import math
import os
import secrets
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

_ROUNDED_TO_S = 3600
_SECRET_BYTES = 32
_SECRET_HEX = _SECRET_BYTES * 2
_EXPIRES_DIGITS = 12


class UnusableSecret(Exception):
    """The secret file is there and does not hold a secret."""


def load_secret(path: Path) -> bytes:
    """The secret in that file, made at the first start (mode 0600, hexadecimal)."""
    try:
        return _read_secret(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # link, not rename: of two processes starting at once the second must not replace
        # the secret the first one has already signed with
        os.link(draft, path)
    except FileExistsError:
        return _read_secret(path)
    finally:
        draft.unlink()
    return _read_secret(path)


def _read_secret(path: Path) -> bytes:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < _SECRET_BYTES:
        raise UnusableSecret(
            f"{path} must hold at least {_SECRET_HEX} hexadecimal digits; remove it to have a new "
            "one made (links given out before stop working)"
        )
    return secret


def webhook_secret(secret: bytes) -> str:
    """What this installation's webhooks are signed with, as Standard Webhooks write a secret."""
    return "whsec_" + base64.b64encode(hmac.digest(secret, b"webhooks", "sha256")).decode()


class Signer:
    """Signs addresses and names with one secret."""

    def __init__(self, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        # one derived key a purpose, so that a name can never be replayed as a signature
        self._address_key = hmac.digest(secret, b"addresses", "sha256")
        self._name_key = hmac.digest(secret, b"file names", "sha256")
        self._hook_key = hmac.digest(secret, b"hooks", "sha256")
        self._clock = clock

    def link(self, path: str, lifetime: timedelta) -> str:
        """The path, readable by GET and HEAD; the same text for an hour, so caches keep it."""
        ends = self._clock() + lifetime.total_seconds()
        return self._signed("GET", path, math.ceil(ends / _ROUNDED_TO_S) * _ROUNDED_TO_S)

    def slot(self, path: str, lifetime: timedelta) -> str:
        """The path, writable by PUT."""
        return self._signed("PUT", path, math.ceil(self._clock() + lifetime.total_seconds()))

    def valid(self, method: str, path: str, expires: str | None, signature: str | None) -> bool:
        """Whether that signature permits that method on that path now."""
        if not expires or not signature or len(expires) > _EXPIRES_DIGITS:
            return False
        if not (expires.isascii() and expires.isdigit()):
            return False
        wanted = self._signature("GET" if method == "HEAD" else method, path, expires)
        fits = hmac.compare_digest(wanted.encode(), signature.encode(errors="replace"))
        return fits and self._clock() < int(expires)

    def name(self, run_id: str, slot: str) -> str:
        """A file name nobody can guess, always the same for one slot of one run."""
        return hmac.digest(self._name_key, f"{run_id}\0{slot}".encode(), "sha256").hex()[:32]

    def hook(self, run_id: str) -> str:
        """What nobody but us and whom we tell can call about that run."""
        return hmac.digest(self._hook_key, run_id.encode(errors="replace"), "sha256").hex()

    def is_hook(self, run_id: str, given: str) -> bool:
        """Whether that is what we told about the run."""
        return hmac.compare_digest(self.hook(run_id).encode(), given.encode(errors="replace"))

    def _signed(self, method: str, path: str, expires: int) -> str:
        return f"{path}?expires={expires}&signature={self._signature(method, path, str(expires))}"

    def _signature(self, method: str, path: str, expires: str) -> str:
        text = f"v1\n{method}\n{path}\n{expires}".encode(errors="replace")
        digest = hmac.digest(self._address_key, text, "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class SignedFileNames:
    """Storage keys whose last part is a keyed hash: a slot issued again has the same key."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        """`<prefix>/yyyy/mm/dd/<job_id>/<name>.<ext>`."""
        return f"{prefix}/{day:%Y/%m/%d}/{job_id}/{self._signer.name(run_id, slot)}.{ext}"

    def filename(self, key: str) -> str:
        """The last part of a key."""
        return key.rpartition("/")[2]
