"""Does a gateway run with these settings, and do the GPU services reach it?"""

from typing import Final, Literal, cast
from urllib.parse import urlsplit

import httpx

from gateway.agreement import Misconfigured, slots_address
from gateway.doctor.exposure import is_loopback
from gateway.doctor.findings import Notes
from gateway.settings import Settings

LIMIT_S = 20.0
_LOOK_S = 5.0
_CUTS_AFTER_100_S: Final = ".proxy.runpod.net"

Answer = Literal["gateway", "other", "nobody"]


async def answering(url: str) -> Answer:
    """Who answers at an address."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_LOOK_S) as http:
            answer = await http.get(f"{url}/livez")
        body: object = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL):
        return "nobody"
    except ValueError:
        return "other"
    alive = isinstance(body, dict) and cast("dict[str, object]", body).get("status") == "alive"
    return "gateway" if alive else "other"


async def check_gateway(settings: Settings, notes: Notes) -> None:
    """Look whether one runs, and whether its address leads to it."""
    url = settings.local_url
    match await answering(url):
        case "gateway":
            await _health(url, notes)
        case "other":
            notes.fail(
                "running",
                f"something else answers at {url}",
                "stop it, or choose another BACKEND_PORT (and INTERNAL_URL, where it is set)",
            )
        case "nobody":
            notes.warn("running", f"none answers at {url}", "start it: ./startup.sh")
    await _reached(settings, notes)


async def _health(url: str, notes: Notes) -> None:
    """Pass on what a running one says of itself."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_LOOK_S) as http:
            ready = await http.get(f"{url}/readyz")
            health = cast("dict[str, object]", (await http.get(f"{url}/health")).json())
    except (httpx.HTTPError, ValueError):
        notes.fail("running", f"it broke off at {url}", "see logs/backend.log")
        return
    if ready.is_success:
        notes.ok("running", f"it answers at {url} and takes work")
    else:
        notes.fail("running", f"it answers at {url} and takes no work now", "see logs/backend.log")
    if health.get("detail"):
        notes.warn("health", str(health["detail"]))


async def _reached(settings: Settings, notes: Notes) -> None:
    """Judge the address GPU services are told to fetch from and to send to."""
    if settings.files is None:
        notes.ok("PUBLIC_URL", "not needed: files travel through the bucket")
        return
    try:
        url = slots_address(settings)
    except Misconfigured:
        # said with the settings
        return
    if url != settings.public_url:
        notes.ok("PUBLIC_URL", f"not needed: GPU services on this machine send files to {url}")
        return
    host = urlsplit(url).hostname or ""
    who = await answering(url)
    if host.endswith(_CUTS_AFTER_100_S):
        notes.warn(
            "PUBLIC_URL",
            f"{host} is a proxy that cuts every transfer at 100 seconds",
            "use a bucket (STORAGE_URL) with GPU services on other machines",
        )
    elif is_loopback(host):
        notes.fail(
            "PUBLIC_URL",
            f"{host} leads a GPU service on another machine to itself",
            "set PUBLIC_URL to the address under which that machine reaches this one",
        )
    elif who == "gateway":
        notes.ok("PUBLIC_URL", f"leads to a gateway; seen from here, GPU services use it: {url}")
    else:
        said = "something else answers at" if who == "other" else "none answers at"
        notes.warn(
            "PUBLIC_URL",
            f"{said} {url} as seen from here",
            "start the gateway, or let PUBLIC_URL lead to it (a port forwarded, a reverse proxy)",
        )
