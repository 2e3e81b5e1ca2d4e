"""What a bucket store says when it refuses, in words, with what to do about it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from gateway.settings import Settings

_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9]{1,80})\s*</Code>")
_CLASSES: Final = {
    "EndpointConnectionError": "NoConnection",
    "ConnectTimeoutError": "NoConnection",
    "ConnectError": "NoConnection",
    "ConnectTimeout": "NoConnection",
    "ConnectionClosedError": "NoConnection",
    "ReadTimeoutError": "NoAnswer",
    "ReadTimeout": "NoAnswer",
    "SSLError": "Certificate",
}
"""What libraries raise where no store has answered."""

_WORDS: Final[dict[tuple[str, ...], tuple[str, str]]] = {
    ("NoSuchBucket", "NoSuchBucketException"): (
        "there is no bucket {bucket} at {endpoint}",
        "create the bucket, or correct STORAGE_URL",
    ),
    ("InvalidAccessKeyId",): (
        "the store does not know the access key",
        "correct {p}_ACCESS_KEY_ID: a key of the account at {p}_ENDPOINT_URL",
    ),
    ("SignatureDoesNotMatch",): (
        "the store does not accept our signature: the secret is not that of the access key",
        "correct {p}_SECRET_ACCESS_KEY; no proxy before the store may change host or path",
    ),
    ("RequestTimeTooSkewed", "RequestExpired"): (
        "this machine's clock is too far from the store's",
        "set the clock (timedatectl set-ntp true)",
    ),
    ("AccessDenied", "403", "Forbidden", "AllAccessDisabled"): (
        "the access key may not do this in the bucket",
        "let the key in {p}_ACCESS_KEY_ID read, write, list and delete objects of {bucket}",
    ),
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect", "301"): (
        "the bucket is in another region",
        "set S3_REGION to the bucket's region",
    ),
    ("NoConnection",): (
        "no store answers at {endpoint}",
        "correct {p}_ENDPOINT_URL, or the network and name server of this machine",
    ),
    ("NoAnswer",): (
        "{endpoint} takes connections and does not answer in time",
        "see the store's own status, or the network between",
    ),
    ("Certificate",): (
        "the certificate of {endpoint} is not accepted",
        "let {p}_ENDPOINT_URL have the name the certificate is for, or install its authority",
    ),
}
"""By code: what it means, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The settings behind STORAGE_URL, by name: what a fix has to point at."""

    address: str
    """`r2://bucket`"""
    prefix: str
    """Of its settings: `R2`, `S3` or `GCS`."""
    endpoint: str
    """Where it is, without a login."""

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.address.partition("://")[2]


def store_of(settings: Settings) -> Store | None:
    """The bucket files are kept in; None where that is a folder."""
    if settings.storage_url is None or settings.files is not None:
        return None
    return store_at(settings, settings.storage_url)


def store_at(settings: Settings, address: str) -> Store:
    """The settings behind an address `scheme://bucket`."""
    scheme, _, rest = address.partition("://")
    prefix, endpoint = {
        "r2": ("R2", settings.r2_endpoint_url),
        "s3": ("S3", settings.s3_endpoint_url),
        "gs": ("GCS", settings.gcs_endpoint_url),
    }[scheme]
    bucket = rest.partition("/")[0]
    return Store(address=f"{scheme}://{bucket}", prefix=prefix, endpoint=endpoint or "AWS")


def code_in(body: bytes) -> str | None:
    """The code in a store's XML answer."""
    found = _CODE.search(body)
    return found[1].decode() if found else None


def code_of(error: BaseException) -> str | None:
    """The store's code behind an error, or one of ours where nothing answered."""
    for each in _chain(error):
        response: object = getattr(each, "response", None)
        if isinstance(response, dict):
            fields = cast("dict[str, dict[str, object]]", response).get("Error", {})
            if fields.get("Code"):
                return str(fields["Code"])
        if type(each).__name__ in _CLASSES:
            return _CLASSES[type(each).__name__]
    return None


def words(store: Store, code: str | None) -> tuple[str, str]:
    """What a code means, and what to do."""
    known = next((told for codes, told in _WORDS.items() if code in codes), None)
    if known is None:
        said = f"the store refused it ({code})" if code else "the store could not do it"
        return said, "see the store's own log or status page"
    said, fix = known
    names = {"p": store.prefix, "bucket": store.bucket, "endpoint": store.endpoint}
    return said.format(**names), fix.format(**names)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
