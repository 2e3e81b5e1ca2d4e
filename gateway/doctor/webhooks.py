"""Does a webhook reach its receiver, and does anything reach the internet from here?"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

import httpx

from gateway.doctor.findings import Notes
from gateway.errors import InvalidParameters
from gateway.jobs.receivers import Receivers, Refused
from gateway.jobs.webhooks import signed
from gateway.settings import Settings

LIMIT_S = 40.0
PING = "doctor.ping"
OUTSIDE = "example.com"
"""Reserved for such uses (RFC 2606); its name is looked up, nothing is sent."""
_LOOKUP_S = 5.0


async def check_outside(notes: Notes) -> None:
    """Look a name up: webhooks, callers' addresses and model files need it."""
    try:
        async with asyncio.timeout(_LOOKUP_S):
            await asyncio.get_running_loop().getaddrinfo(OUTSIDE, 443)
    except (OSError, TimeoutError):
        notes.warn(
            "outbound",
            f"names of the internet are not known here ({OUTSIDE} was asked for): webhooks, "
            "callers' addresses and models on the internet cannot be reached",
            "correct the name server (/etc/resolv.conf) or the network; offline this is as it is",
        )
    else:
        notes.ok("outbound", "names of the internet are known here")


async def check_receiver(
    settings: Settings, notes: Notes, *, url: str, secrets: Sequence[str]
) -> None:
    """Send a signed test event to that address, as a job's end would be told."""
    receivers = Receivers(allow_private=settings.webhook_allow_private)
    try:
        await receivers.check(url, "--webhook-url")
        await _send(receivers, notes, url, secrets)
    except InvalidParameters as error:
        [fault] = error.errors
        notes.fail("receiver", fault.message, "give --webhook-url an address webhooks may go to")
    finally:
        await receivers.close()


async def _send(receivers: Receivers, notes: Notes, url: str, secrets: Sequence[str]) -> None:
    now = datetime.now(UTC)
    headers, body = signed(
        event_id=f"doctor_{uuid.uuid4().hex}",
        type_=PING,
        happened=now,
        data={"message": "A test by `python -m gateway doctor`; nothing has happened."},
        secrets=secrets,
        now=now,
    )
    host, began = httpx.URL(url).host, time.perf_counter()
    try:
        status, _ = await receivers.post(url, headers, body)
    except Refused as error:
        notes.fail("receiver", str(error), "use a public address, or set WEBHOOK_ALLOW_PRIVATE=1")
        return
    except (TimeoutError, httpx.TimeoutException):
        notes.fail("receiver", f"{host} did not answer in time", "let it answer within 15 s")
        return
    except httpx.HTTPError as error:
        notes.fail(
            "receiver",
            f"the connection to {host} failed ({_why(error)})",
            "start the receiver, and let its firewall and certificate admit this machine",
        )
        return
    except (OSError, UnicodeError):
        notes.fail("receiver", f"{host} is not known", "correct the name in the address, or DNS")
        return
    _judge(notes, host, status, (time.perf_counter() - began) * 1000)


def _judge(notes: Notes, host: str, status: int, ms: float) -> None:
    said = f"{host} answered {status} after {ms:.0f} ms to a signed {PING}"
    match status // 100:
        case 2:
            notes.ok("receiver", said)
        case 3:
            notes.fail("receiver", f"{said}; redirects are not followed", "use the final address")
        case 4 if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.BAD_REQUEST}:
            notes.fail(
                "receiver",
                said,
                "let the receiver verify with the secret that python -m gateway webhook-secret "
                "shows, and take types it does not know",
            )
        case _:
            notes.fail("receiver", said, "see the receiver's log: it must answer 2xx")


def _why(error: httpx.HTTPError) -> str:
    text = f"{error} {error.__cause__}".lower()
    if "certificate" in text or "ssl" in text:
        return "its certificate is not accepted"
    return (
        "nothing listens there" if isinstance(error, httpx.ConnectError) else type(error).__name__
    )
