"""Do the settings fit together, and with the tools there are? Asked at the start, and by doctor."""

import os
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

from gateway.backends.brought import PREFIX
from gateway.backends.runpod import name_of as runpod_name_of
from gateway.backends.sidecar import name_of
from gateway.choices import Choices
from gateway.own_workflows.tool import is_own, workflow_name
from gateway.security.policy import Policy, PolicyUnusable, load_policy
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.bucket import Scheme
from gateway.storage.stores import Stores, StoreUnusable, bucket_of
from gateway.tools import TOOLS
from gpu_server.addresses import FetchError, FetchRules, check_address, literal_of, parse
from gpu_server.workflow import Workflow

_PRIVATE_ENDINGS = frozenset({"corp", "home", "invalid", "svc", "test"})
"""Ends of names that are nobody's on the internet, beside those nothing is ever fetched from."""


class Misconfigured(Exception):
    """The settings cannot work together; the message says which and why."""


def service_addresses(settings: Settings) -> dict[str, str]:
    """GPU services by name; none where no work is meant to go to any. Raises Misconfigured."""
    addresses: dict[str, str] = {}
    for url in _services(settings):
        if addresses.setdefault(name_of(url), url) != url:
            raise Misconfigured(f"GPU_SERVICE_URL names {name_of(url)} twice")
    return addresses


def _services(settings: Settings) -> tuple[str, ...]:
    orders = (settings.backends, *dict(settings.tool_backends).values())
    used = {word for order in orders for word in order}
    return settings.gpu_service_url if used & {"gpu", *_names(settings)} else ()


def _names(settings: Settings) -> list[str]:
    return [name_of(url) for url in settings.gpu_service_url]


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
    remote = [url for url in _services(settings) if not _on_this_host(url)]
    # files go into a bucket without it
    if not remote or settings.files is None:
        return settings.local_url
    if settings.public_url is None:
        raise Misconfigured(
            f"PUBLIC_URL is needed: the GPU service at {remote[0]} is on another machine and must "
            "be told where to send its files"
        )
    return settings.public_url


def endpoints(settings: Settings) -> dict[str, frozenset[str]]:
    """Tools by the serverless endpoint that carries them out. Raises Misconfigured."""
    single = {tool: ids[0] for tool, ids in settings.runpod_endpoints}
    _require_tools("RUNPOD_ENDPOINTS", single)
    default = settings.runpod_endpoint_id
    served = {tool.name: single.get(tool.name, default) for tool in TOOLS}
    found = {
        endpoint: frozenset(tool for tool, its in served.items() if its == endpoint)
        for endpoint in dict.fromkeys(filter(None, [default, *single.values()]))
    }
    if found and settings.runpod_api_key is None:
        raise Misconfigured(
            "RUNPOD_API_KEY is needed: RUNPOD_ENDPOINT_ID or RUNPOD_ENDPOINTS is set"
        )
    # RunPod itself puts a key into every pod
    given = settings.runpod_api_key is not None and "RUNPOD_POD_ID" not in os.environ
    if given and not found:
        raise Misconfigured(
            "RUNPOD_ENDPOINT_ID is needed, or RUNPOD_ENDPOINTS: RUNPOD_API_KEY is set"
        )
    return found


def workflows_served(
    settings: Settings, workflows: Mapping[str, Workflow]
) -> dict[str, dict[str, Workflow]]:
    """Workflows by the serverless endpoint that carries them out; raises Misconfigured.

    Of an endpoint that would never get any work, too.
    """
    tools, named = endpoints(settings), settings.runpod_workflows
    if unknown := set(named) - set(workflows):
        known = ", ".join(sorted(workflows))
        raise Misconfigured(
            f"RUNPOD_WORKFLOWS: no workflow is named {min(unknown)!r}; there is {known}"
        )
    able = {workflow.tool for workflow in workflows.values()}
    if here := {tool for tool, _ in settings.runpod_endpoints} - able:
        raise Misconfigured(
            "RUNPOD_ENDPOINTS: no serverless endpoint has anything to do for "
            f"{min(here)}: leave it out"
        )
    served = {
        endpoint: {
            name: workflow
            for name, workflow in workflows.items()
            if workflow.tool in its and (not named or name in named)
        }
        for endpoint, its in tools.items()
    }
    for endpoint, its in served.items():
        if not its:
            raise Misconfigured(
                "RUNPOD_WORKFLOWS and RUNPOD_ENDPOINTS leave the serverless endpoint "
                f"{endpoint} nothing to do: give it a tool with a workflow, or take it out"
            )
    return served


def worker_address(settings: Settings) -> str | None:
    """Choose how serverless workers and RunPod reach this gateway; None: they do not.

    Raises Misconfigured where a worker could not reach its files.
    """
    if _on_this_host(settings.runpod_api_url):
        # so is the worker
        return settings.local_url
    public = settings.public_url
    if public is not None and not _seen_from_outside(public):
        public = None
    if not endpoints(settings):
        return public
    if settings.files is not None and public is None:
        raise Misconfigured(
            f"PUBLIC_URL {'is private' if settings.public_url else 'is needed'}: files lie on this "
            "machine, and serverless workers must reach it from the internet. Set it to such an "
            "address, or keep files in a bucket (STORAGE_URL)"
        )
    for setting, endpoint in _bucket_endpoints(settings):
        if not _seen_from_outside(endpoint):
            raise Misconfigured(
                f"{setting} names a bucket at {endpoint}, which serverless workers cannot reach: "
                "let it be at an address of the internet, or do without RUNPOD_ENDPOINT_ID"
            )
    return public


def orders_of_backends(settings: Settings) -> None:
    """Check what `BACKENDS` and `TOOL_BACKENDS` name. Raises Misconfigured."""
    serverless = endpoints(settings)
    names = [*_names(settings), *map(runpod_name_of, serverless)]
    known = ["gpu", "runpod", *names]
    by_tool = dict(settings.tool_backends)
    _require_tools("TOOL_BACKENDS", {tool for tool in by_tool if not is_own(tool)})
    named = [("BACKENDS", settings.backends)]
    named += [("TOOL_BACKENDS", words) for words in by_tool.values()]
    for setting, words in named:
        if unknown := set(words) - set(known):
            raise Misconfigured(
                f"{setting}: no backend is named {min(unknown)!r}; there is {', '.join(known)}"
            )
    if not serverless and not _services(settings):
        raise Misconfigured(
            "BACKENDS names no backend there is: add gpu, or set RUNPOD_API_KEY and "
            "RUNPOD_ENDPOINT_ID"
        )


def choices_of(settings: Settings, workflows: Iterable[Workflow]) -> Choices:
    """Where work goes, in which order. Raises Misconfigured."""
    orders_of_backends(settings)
    by_tool = dict(settings.tool_backends)
    own = {f"{PREFIX}{workflow_name(tool)}": tool for tool in by_tool if is_own(tool)}
    return Choices(
        order=settings.backends,
        by_tool=by_tool,
        tools={**{workflow.name: workflow.tool for workflow in workflows}, **own},
    )


def _require_tools(setting: str, names: Iterable[str]) -> None:
    known = [tool.name for tool in TOOLS]
    if unknown := set(names) - set(known):
        raise Misconfigured(
            f"{setting}: no tool is named {min(unknown)!r}; there is {', '.join(known)}"
        )


def _bucket_endpoints(settings: Settings) -> Iterator[tuple[str, str]]:
    """Addresses of the stores whose files workers are sent to, by the setting that names them."""
    named = [("INPUT_BUCKETS", address) for address in settings.input_buckets]
    if settings.files is None and settings.storage_url is not None:
        named.insert(0, ("STORAGE_URL", settings.storage_url))
    if settings.gcs_bucket_name is not None:
        named.append(("GCS_BUCKET_NAME", f"gs://{settings.gcs_bucket_name}"))
    for setting, address in named:
        scheme, _, rest = address.partition("://")
        try:
            # the schemes were checked with the settings
            bucket = bucket_of(settings, cast("Scheme", scheme), rest.partition("/")[0], setting)
        except StoreUnusable as error:
            raise Misconfigured(str(error)) from None
        yield setting, bucket.endpoint


def _seen_from_outside(url: str) -> bool:
    """Tell whether an address can be one of the internet; names are not looked up."""
    try:
        check_address(url, FetchRules(ports=None))
        parsed = parse(url)
    except FetchError:
        return False
    host = parsed.host.lower().rstrip(".")
    # a name of one word is that of a container, or of a machine next door
    public_name = "." in host and host.rpartition(".")[2] not in _PRIVATE_ENDINGS
    return public_name or literal_of(parsed) is not None


def _on_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
