"""Who can reach this, and whether those who can must show a key."""

import asyncio
import socket
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

import httpx

from gateway.doctor.findings import Notes
from gateway.settings import Settings

LIMIT_S = 20.0
COMFYUI_PORT = 8188
_LOOK_S = 2.0
# addresses of the documentation: nothing is sent, the kernel only chooses where from it would be
_SOMEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


async def check_exposure(settings: Settings, notes: Notes, *, comfyui_url: str | None) -> None:
    """Look at keys, origins, and whether a ComfyUI can be reached from other machines.

    `comfyui_url`: COMFYUI_API_URL, where the GPU service's settings are known here.
    """
    _keys(settings, notes)
    if "*" in settings.cors_origins:
        notes.warn(
            "CORS_ORIGINS",
            "* lets the pages of every site call this API from a browser",
            "name the origins of your own pages in CORS_ORIGINS",
        )
    await _comfyui(settings, comfyui_url, notes)
    if not notes.findings:
        notes.ok("keys", "callers and the gateway show a key where others can reach a port")


def _keys(settings: Settings, notes: Notes) -> None:
    if settings.gateway_api_key is None and not is_loopback(settings.backend_host):
        notes.warn(
            "GATEWAY_API_KEY",
            f"is not set and the gateway listens on {settings.backend_host}: whoever reaches port "
            f"{settings.backend_port} may call it",
            "set GATEWAY_API_KEY (openssl rand -hex 32), or BACKEND_HOST=127.0.0.1",
        )
    if settings.gpu_service_token is None:
        away = [url for url in settings.gpu_service_url if not _leads_here(url)]
        told = notes.fail if away else notes.warn
        told(
            "GPU_SERVICE_TOKEN",
            "is not set: whoever reaches the GPU service may run anything there",
            "set GPU_SERVICE_TOKEN to one value (openssl rand -hex 32) on both sides",
        )


async def _comfyui(settings: Settings, comfyui_url: str | None, notes: Notes) -> None:
    configured = urlsplit(comfyui_url or "")
    ports = {COMFYUI_PORT, configured.port or COMFYUI_PORT}
    hosts = {*own_addresses()}
    hosts |= {urlsplit(u).hostname or "" for u in settings.gpu_service_url if not _leads_here(u)}
    if configured.hostname and not is_loopback(configured.hostname):
        hosts.add(configured.hostname)
    places = sorted((host, port) for host in hosts if host for port in ports)
    async with httpx.AsyncClient(trust_env=False, timeout=_LOOK_S) as http:
        found = await asyncio.gather(*(_is_comfyui(http, *place) for place in places))
    for (host, port), there in zip(places, found, strict=True):
        if there:
            notes.fail(
                "ComfyUI",
                f"answers at {host}:{port} and has no login: whoever reaches it runs code there",
                "start ComfyUI with --listen 127.0.0.1, and let a firewall keep the port",
            )


async def _is_comfyui(http: httpx.AsyncClient, host: str, port: int) -> bool:
    shown = f"[{host}]" if ":" in host else host
    try:
        answer = await http.get(f"http://{shown}:{port}/queue")
        body: object = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(body, dict) and "queue_running" in cast("dict[str, object]", body)


def own_addresses() -> list[str]:
    """The addresses under which other machines would reach this one."""
    found: list[str] = []
    for family, somewhere in _SOMEWHERE:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((somewhere, 9))
            except OSError:
                # no way out by this family
                continue
            found.append(str(probe.getsockname()[0]))
    return [address for address in found if not is_loopback(address)]


def _leads_here(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
