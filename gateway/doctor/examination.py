"""All checks, beside one another, each with its time."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from gateway.doctor import database, exposure, gateway, gpu, ground, serverless, store, webhooks
from gateway.doctor.findings import Notes, Report, report, secrets_of
from gateway.security.signing import UnusableSecret, load_secret, webhook_secret
from gateway.settings import Settings

Check = Callable[[Notes], Awaitable[None]]


async def examine(
    read: Callable[[], Settings] = Settings, *, webhook_url: str | None = None
) -> Report:
    """Check everything that the settings name, and change nothing.

    `webhook_url`: a receiver that is sent a signed test event.
    """
    try:
        settings = read()
    except ValidationError as error:
        return report(ground.unreadable_settings(error).findings)
    secrets = secrets_of(settings)
    groups = [
        _within("settings", ground.LIMIT_S, _aside(ground.check_settings_together, settings)),
        _within("folders", ground.LIMIT_S, _aside(ground.check_ground, settings)),
        _within("database", database.LIMIT_S, lambda n: database.check_database(settings, n)),
        _within("storage", store.LIMIT_S, lambda n: store.check_store(settings, n)),
        _within("gateway", gateway.LIMIT_S, lambda n: gateway.check_gateway(settings, n)),
        _within("GPU", gpu.LIMIT_S, lambda n: gpu.check_gpu_services(settings, n)),
        _within("RunPod", serverless.LIMIT_S, lambda n: serverless.check_serverless(settings, n)),
        _within("exposure", exposure.LIMIT_S, lambda n: _exposure(settings, n)),
        _within("internet", webhooks.LIMIT_S, webhooks.check_outside),
    ]
    if webhook_url is not None:
        groups.append(
            _within("webhooks", webhooks.LIMIT_S, lambda n: _receiver(settings, webhook_url, n))
        )
    found = await asyncio.gather(*groups)
    return report([one for notes in found for one in notes.findings], secrets)


async def _within(group: str, limit_s: float, check: Check) -> Notes:
    """Carry a check out; whatever becomes of it, what it has found is kept."""
    notes = Notes(group)
    try:
        async with asyncio.timeout(limit_s):
            await check(notes)
    except TimeoutError:
        notes.fail("time", f"was not done after {limit_s:g} s", "see whether what it asks hangs")
    except Exception as error:  # noqa: BLE001  # one check that breaks must not take the others along
        # the type alone: foreign texts hold addresses and keys
        notes.fail("check", f"broke off ({type(error).__name__})", "report it: a bug of doctor's")
    return notes


def _aside(check: Callable[[Settings, Notes], None], settings: Settings) -> Check:
    """Let a check that reads disks run in a thread."""

    async def run(notes: Notes) -> None:
        await asyncio.to_thread(check, settings, notes)

    return run


async def _exposure(settings: Settings, notes: Notes) -> None:
    # the GPU service's own setting, known here where both read one environment
    url = os.environ.get("COMFYUI_API_URL")
    await exposure.check_exposure(settings, notes, comfyui_url=url)


async def _receiver(settings: Settings, url: str, notes: Notes) -> None:
    secrets = _signing(settings.webhook_secrets, settings.data / "secret")
    if not secrets:
        notes.fail(
            "receiver",
            "nothing to sign with yet: the signing secret is made at the first start",
            "start the gateway once, or set WEBHOOK_SECRET",
        )
        return
    await webhooks.check_receiver(settings, notes, url=url, secrets=secrets)


def _signing(configured: Sequence[str], path: Path) -> Sequence[str]:
    if configured or not path.exists():
        return configured
    try:
        return [webhook_secret(load_secret(path))]
    except (UnusableSecret, OSError):
        # said where the secret itself is looked at
        return []
