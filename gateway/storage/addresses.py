"""Addresses of files in buckets: `r2://bucket/key`, `s3://…`, `gs://…`, and Google's https form.

They come from callers. One way to write each file is the canonical one; whatever could be read in
two ways is refused.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from gateway.storage.bucket import Scheme

_LONGEST_KEY = 1024
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_SCHEMES: dict[str, Scheme] = {"r2": "r2", "s3": "s3", "gs": "gs"}
_GOOGLE = re.compile(r"https://storage\.googleapis\.com(?::443)?/", re.IGNORECASE)
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class NotAnAddress(ValueError):
    """It names no file in a bucket; the message says why, without the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAddress:
    """One file in one bucket."""

    scheme: Scheme
    bucket: str
    key: str
    """Decoded."""

    def __str__(self) -> str:
        """Write it in the canonical way."""
        return f"{self.scheme}://{self.bucket}/{quote(self.key, safe='/')}"


def parse(text: str) -> FileAddress:
    """Read an address. Raises NotAnAddress.

    Percent signs are decoded exactly once; there is no query, no fragment and no login.
    """
    google = _GOOGLE.match(text)
    address = f"gs://{text[google.end() :]}" if google else text
    scheme, colon, rest = address.partition("://")
    bucket, slash, encoded = rest.partition("/")
    if not colon or scheme.lower() not in _SCHEMES:
        raise NotAnAddress("not like r2://bucket/key, s3://bucket/key or gs://bucket/key")
    if not _BUCKET.fullmatch(bucket):
        raise NotAnAddress("the bucket's name is missing, or none a bucket can have")
    if not slash or not encoded:
        raise NotAnAddress("the key is missing")
    if "?" in encoded or "#" in encoded:
        raise NotAnAddress("a key with ? or # must have them as %3F or %23")
    return FileAddress(scheme=_SCHEMES[scheme.lower()], bucket=bucket, key=_decoded(encoded))


def _decoded(encoded: str) -> str:
    if _LONE_PERCENT.search(encoded):
        raise NotAnAddress("a % in a key must be written as %25")
    data = unquote_to_bytes(encoded)
    try:
        key = data.decode()
    except UnicodeDecodeError:
        raise NotAnAddress("the key is not UTF-8") from None
    if len(data) > _LONGEST_KEY:
        raise NotAnAddress(f"the key is longer than {_LONGEST_KEY} bytes")
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise NotAnAddress("the key has an empty part, . or ..")
    if "\\" in key or not key.isprintable():
        raise NotAnAddress("the key has a character that cannot be seen, or a backslash")
    return key
