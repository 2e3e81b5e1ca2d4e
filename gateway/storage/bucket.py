"""A bucket, what opens it, and addresses signed for it; nothing here goes over the network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal
from urllib.parse import quote

Scheme = Literal["r2", "s3", "gs"]
LONGEST_SIGNED = timedelta(days=7)
"""Signature version 4 allows no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket of one store."""

    scheme: Scheme
    name: str
    endpoint: str
    region: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)

    def address(self, key: str) -> str:
        """`<scheme>://<bucket>/<key>`, as callers see it."""
        return f"{self.scheme}://{self.name}/{key}"

    def signed(
        self,
        method: Literal["GET", "PUT"],
        key: str,
        lifetime: timedelta,
        *,
        length: int | None = None,
        query: Mapping[str, str] | None = None,
    ) -> str:
        """An address that permits that one thing, for at most seven days.

        `length`: of a body of exactly so many bytes, as its `Content-Length` is signed too.

        Made by botocore's signer alone: a client's own way is a coroutine in aioboto3, for the sake
        of credentials that must be fetched, which these are not.
        """
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - see storage_of
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        seconds = math.ceil(min(lifetime, LONGEST_SIGNED).total_seconds())
        # always by path: a name with dots would fit no certificate
        url = f"{self.endpoint}/{self.name}/{quote(key, safe='/')}"
        headers = {} if length is None else {"Content-Length": str(length)}
        request = AWSRequest(method=method, url=url, params=dict(query or {}), headers=headers)
        credentials = Credentials(self.access_key_id, self.secret_access_key)
        signer = S3SigV4QueryAuth(credentials, "s3", self.region, expires=seconds)
        signer.add_auth(request)
        return str(request.url)
