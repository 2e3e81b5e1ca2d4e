"""What a store's refusals mean.

Only codes and status numbers are passed on: a store's own words may repeat the signature, the
request's address or the key's name.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus

from aiohttp import ClientError as TransferError
from botocore.exceptions import BotoCoreError, ClientError

from gateway.storage.base import NoRoom, StorageError

_NOT_THERE = frozenset({"NoSuchKey", "404", "NotFound"})
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"})
_REFUSED = {
    "NoSuchBucket": "the bucket does not exist",
    "InvalidAccessKeyId": "the store does not know the access key",
    "SignatureDoesNotMatch": "the secret access key does not fit the access key",
    "AccessDenied": "the access key may not do this",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
_NOT_A_CODE = re.compile(r"[^A-Za-z0-9.]")


def code_of(error: ClientError) -> str:
    """The store's word for what was wrong, or the status number."""
    said = str(error.response.get("Error", {}).get("Code", ""))
    return _NOT_A_CODE.sub("", said)[:60] or str(_status_of(error))


def says_not_there(error: ClientError) -> bool:
    """Whether nothing lies under the key."""
    return code_of(error) in _NOT_THERE


@contextmanager
def translated() -> Generator[None]:
    """Turn what the client raises into StorageError. Raises NoRoom, StorageError."""
    try:
        yield
    except ClientError as error:
        raise _meaning(error) from None
    except BotoCoreError as error:
        raise StorageError(f"the store cannot be reached ({type(error).__name__})") from None
    except (TransferError, TimeoutError, OSError) as error:
        raise StorageError(f"the transfer broke off ({type(error).__name__})") from None


def _meaning(error: ClientError) -> StorageError:
    code, status = code_of(error), _status_of(error)
    said = str(error.response.get("Error", {}).get("Message", ""))
    if status == HTTPStatus.INSUFFICIENT_STORAGE or code in _FULL or "no space left" in said:
        return NoRoom("the store is full")
    meaning = _REFUSED.get(code)
    if meaning is None and status == HTTPStatus.FORBIDDEN:
        meaning = "the store refuses the access key"
    if meaning is None:
        meaning = f"the store answered {status}" if status else "the store answered"
    return StorageError(f"{meaning} ({code})")


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
