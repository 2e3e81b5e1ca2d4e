"""One attempt to bring a file into its slot, and what the answer to it means.

The gateway's own processes send their files in the same way.
"""

import base64
import re
from collections.abc import AsyncIterator
from http import HTTPStatus

import httpx

from gpu_server.protocol import Failure, Slot

FIRST_DELAY_S = 0.2
"""Wait before the second attempt; it doubles up to the longest."""
LONGEST_DELAY_S = 5.0

_LIMITS = httpx.Timeout(60, connect=5)
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_TOO_LARGE = "EntityTooLarge"
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,60})</Code>")
_MOST_READ = 4096


class NotNow(Exception):
    """The slot did not take the file; a later attempt may do better."""


class Refused(Exception):
    """The slot takes no such file, however often it is sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


async def send(
    http: httpx.AsyncClient,
    slot: Slot,
    pieces: AsyncIterator[bytes],
    *,
    media_type: str,
    length: int | None,
    md5: str | None = None,
) -> None:
    """Send a file once; `md5` in hexadecimal. Raises NotNow, Refused.

    What a bucket refuses may pass, whatever it says: keys are exchanged, clocks set, buckets made
    again. What was made for it is worth more than the attempts.
    """
    headers = {"content-type": media_type}
    if length is not None:
        headers["content-length"] = str(length)
    if slot.content_md5 and md5 is not None:
        headers["content-md5"] = base64.b64encode(bytes.fromhex(md5)).decode()
    try:
        async with http.stream(
            "PUT", slot.url, content=pieces, headers=headers, timeout=_LIMITS
        ) as answer:
            # to its end, as far as it is short: the connection is kept only then
            code = _CODE.search(await _beginning(answer))
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise _refused(f"The slot {slot.name} has no usable address.") from None
    except httpx.TransportError as error:
        raise NotNow(f"the transfer broke off ({type(error).__name__})") from None
    _judge(slot, answer.status_code, code[1].decode() if code else None)


def _judge(slot: Slot, status: int, code: str | None) -> None:
    if HTTPStatus(200) <= status < HTTPStatus(300):
        return
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or code == _TOO_LARGE:
        message = f"The file for {slot.name} is larger than storage takes."
        raise Refused(Failure(kind="fatal", code="output_too_large", message=message))
    if slot.sized or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _AGAIN:
        raise NotNow(f"the slot answered {status}{f' ({code})' if code else ''}")
    raise _refused(f"The slot {slot.name} refused the file ({status}).")


def _refused(message: str) -> Refused:
    return Refused(Failure(kind="transient", code="delivery_failed", message=message))


async def _beginning(answer: httpx.Response) -> bytes:
    read = bytearray()
    async for piece in answer.aiter_bytes():
        read += piece[: _MOST_READ - len(read)]
        if len(read) >= _MOST_READ:
            break
    return bytes(read)
