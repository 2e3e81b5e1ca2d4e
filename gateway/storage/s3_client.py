"""The client that speaks to a store."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.handlers import add_expect_header

from gateway.storage.bucket import Bucket

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

CONNECTIONS = 64
_CONNECT_S = 5
_READ_S = 60


@asynccontextmanager
async def opened(bucket: Bucket) -> "AsyncGenerator[S3Client]":
    """A client of the bucket's store."""
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        # otherwise bodies go out in chunks with a trailer, which R2 and GCS refuse
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=CONNECTIONS,
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    async with _session().client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        config=config,
    ) as client:
        # It would wait without end for a store, or a proxy before it, that never says "continue".
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield client


@cache
def _session() -> Any:  # noqa: ANN401 - stubs exist for every service of AWS, here for one
    # nothing but our own settings: no profile of whoever starts this, no file in their home
    unset = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    return aioboto3.Session(botocore_session=AioSession(session_vars=unset))
