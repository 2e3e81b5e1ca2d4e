"""Do the settings fit together, and with the tools there are? Asked at the start, and by doctor."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.backends.sidecar import name_of
from gateway.own_workflows.tool import is_own
from gateway.security.policy import Policy, PolicyUnusable, load_policy
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.stores import Stores, StoreUnusable
from gateway.tools import TOOLS


class Misconfigured(Exception):
    """The settings cannot work together; the message says which and why."""


def service_addresses(settings: Settings) -> dict[str, str]:
    """GPU services by name. Raises Misconfigured."""
    addresses: dict[str, str] = {}
    for url in settings.gpu_service_url:
        if addresses.setdefault(name_of(url), url) != url:
            raise Misconfigured(f"GPU_SERVICE_URL names {name_of(url)} twice")
    return addresses


def tool_timeouts(settings: Settings) -> dict[str, float]:
    """Seconds an execution may take, by tool. Raises Misconfigured."""
    timeouts = dict(settings.tool_timeouts)
    unknown = {name for name in timeouts if not is_own(name)} - {tool.name for tool in TOOLS}
    if unknown:
        known = ", ".join(tool.name for tool in TOOLS)
        raise Misconfigured(f"TOOL_TIMEOUTS: no tool is named {min(unknown)!r}; there is {known}")
    return timeouts


def policy_of(settings: Settings) -> Policy:
    """What calls must pass. Raises Misconfigured."""
    try:
        return load_policy(settings)
    except PolicyUnusable as error:
        raise Misconfigured(str(error)) from None


def stores_of(settings: Settings, signer: Signer) -> Stores:
    """Where files lie. Raises Misconfigured."""
    try:
        return Stores.of(settings, signer, slots_address(settings))
    except StoreUnusable as error:
        raise Misconfigured(str(error)) from None


def slots_address(settings: Settings) -> str:
    """Choose how the GPU services reach this gateway; raises Misconfigured."""
    remote = [url for url in settings.gpu_service_url if not _on_this_host(url)]
    # files go into a bucket without it
    if not remote or settings.files is None:
        return settings.local_url
    if settings.public_url is None:
        raise Misconfigured(
            f"PUBLIC_URL is needed: the GPU service at {remote[0]} is on another machine and must "
            "be told where to send its files"
        )
    return settings.public_url


def _on_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
