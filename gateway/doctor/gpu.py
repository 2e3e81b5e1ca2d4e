"""Each GPU service: reached, of one mind about token and contract, and what its ComfyUI lacks."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, cast

import httpx

from gateway.agreement import Misconfigured, service_addresses
from gateway.backends.sidecar import Sidecar
from gateway.catalogue import Catalogue, Variant
from gateway.doctor.findings import Notes
from gateway.settings import Settings
from gateway.tool import AnyTool
from gateway.tools import TOOLS
from gpu_server import __version__
from gpu_server.protocol import Health, Missing
from gpu_server.workflow import Workflow, load_workflows

LIMIT_S = 45.0
LOOK_S = 5.0
PARTS: Final[Mapping[str, str]] = {
    "previews": "no previews while a job runs",
    "files": "no other formats, and no tool that changes files",
    "check": "no workflows of callers' own",
    "sized": "no files into a bucket",
}
"""Optional parts of the contract, and what is not to be had of a service without them."""
PULL: Final = "python -m gpu_server models pull"
_START: Final = "start it (./startup.sh, or python -m gpu_server there), or correct GPU_SERVICE_URL"
_LOOK_THERE: Final = "see its log, logs/gpu_server.log beside it"


async def check_gpu_services(settings: Settings, notes: Notes) -> None:
    """Look at every service, then at what the tools' default variants lack on all of them."""
    try:
        addresses = service_addresses(settings)
    except Misconfigured:
        # said with the settings
        return
    workflows = load_workflows(settings.workflows, on_error=_left_out)
    token = settings.gpu_service_token
    secret = token.get_secret_value() if token else None
    seen: list[Sidecar] = []
    async with httpx.AsyncClient(trust_env=False, timeout=LOOK_S) as http:
        for name, url in addresses.items():
            if not await _answers(http, name, url, secret, notes):
                continue
            service = Sidecar(name, url, secret, http, workflows)
            await service.look()
            if service.health is None:
                said = service.trouble or "does not say how it is"
                notes.fail(name, said, _LOOK_THERE)
                continue
            _version(name, service.health, notes)
            _comfyui(name, service, service.health, notes)
            seen.append(service)
    if any(service.capacity for service in seen):
        _tools(Catalogue(tools=TOOLS, workflows=workflows, backends=seen), notes)


async def _answers(
    http: httpx.AsyncClient, name: str, url: str, token: str | None, notes: Notes
) -> bool:
    """Whether a GPU service is there and takes our token."""
    try:
        answer = await http.get(f"{url}/health")
    except httpx.RequestError as error:
        notes.fail(name, f"does not answer ({_why(error)})", _START)
        return False
    if _service(answer) != "gpu_server":
        said = f"something else answers there (HTTP {answer.status_code})"
        notes.fail(name, said, "correct GPU_SERVICE_URL: it must lead to python -m gpu_server")
        return False
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.get(f"{url}/workflows", headers=headers)
    except httpx.RequestError as error:
        notes.fail(name, f"broke off ({_why(error)})", _LOOK_THERE)
        return False
    if answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said = "refuses our token" if token else "asks for a token, and none is set here"
        notes.fail(
            name, said, "set GPU_SERVICE_TOKEN to the same value on both sides, restart both"
        )
        return False
    if answer.status_code != HTTPStatus.OK:
        notes.fail(name, f"answers {answer.status_code} instead of its workflows", _LOOK_THERE)
        return False
    notes.ok(name, "answers and takes our token" if token else "answers; no token is set")
    return True


def _left_out(name: str, digest: str, error: Exception) -> None:
    """Said with the settings."""
    del name, digest, error


def _service(answer: httpx.Response) -> object:
    try:
        body: object = answer.json()
    except ValueError:
        return None
    return cast("dict[str, object]", body).get("service") if isinstance(body, dict) else None


def _why(error: httpx.RequestError) -> str:
    """Say what went wrong, without the address: it may hold a login."""
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    if isinstance(error, httpx.ConnectError):
        return "nothing listens there, or the name is not known"
    return type(error).__name__


def _version(name: str, health: Health, notes: Notes) -> None:
    lacking = [part for part in PARTS if part not in health.protocol]
    if lacking:
        means = "; ".join(f"{part}: {PARTS[part]}" for part in lacking)
        notes.warn(
            name,
            f"version {health.version} lacks parts of the contract ({means})",
            f"update it to {__version__}: git pull && ./startup.sh restart there",
        )
    elif health.version != __version__:
        said = f"is version {health.version}, this is {__version__}; they understand each other"
        notes.warn(name, said, "update both to one version when convenient")
    else:
        notes.ok(name, f"version {health.version}, the same as here")


def _comfyui(name: str, service: Sidecar, health: Health, notes: Notes) -> None:
    if not health.comfyui_available:
        notes.fail(
            name,
            f"ComfyUI is not connected: {health.detail or 'it does not answer'}",
            "start ComfyUI there, or correct COMFYUI_API_URL of the GPU service",
        )
        return
    version = f" {health.comfyui_version}" if health.comfyui_version else ""
    if service.engine == "simulator":
        notes.warn(
            name,
            "the SIMULATOR stands in for ComfyUI: pictures are drawn, not generated",
            "set COMFYUI_API_URL to a ComfyUI for real ones",
        )
    else:
        notes.ok(name, f"ComfyUI{version} is connected and takes {health.capacity} at once")
    if health.detail:
        notes.warn(name, health.detail, "set what is named, in the GPU service's environment")


def _tools(catalogue: Catalogue, notes: Notes) -> None:
    """Look at the default variant of each tool that needs a GPU."""
    lacking: list[tuple[AnyTool, Workflow, Sequence[Missing]]] = []
    ready: list[str] = []
    for tool in catalogue.tools:
        variant = _default(catalogue, tool)
        if variant is None:
            continue
        state = catalogue.readiness(variant)
        if state.readiness == "missing":
            lacking.append((tool, variant.workflow, state.missing))
        elif state.readiness == "ready":
            ready.append(tool.name)
        else:
            notes.warn(tool.name, f"{variant.name}: not known yet whether it can run", _LOOK_THERE)
    if ready:
        notes.ok("tools", f"ready with their default variant: {', '.join(ready)}")
    for tool, workflow, missing in lacking:
        what = "; ".join(map(_described, missing))
        said = f"{workflow.variant or workflow.name} lacks {what}"
        fix = _fix(workflow, missing)
        # a tool nobody uses need not run; one that nothing else makes up for does
        (notes.warn if ready else notes.fail)(tool.name, said, *fix)


def _default(catalogue: Catalogue, tool: AnyTool) -> Variant | None:
    """Find the default variant; None where the gateway does the work by itself."""
    if tool.workflow is not None:
        return None
    found = (v for v in catalogue.families(tool) if v.name == tool.default_variant)
    return next(found, None)


def _described(item: Missing) -> str:
    if item.kind == "node":
        return f"the node {item.name}"
    if item.kind == "invalid":
        return f"a graph that fits ({item.name}: {item.detail})"
    facts = [f"{item.bytes / 1e9:.2f} GB" if item.bytes else None, item.license, item.detail]
    known = ", ".join(fact for fact in facts if fact)
    place = f"{item.directory}/{item.name}" if item.directory else item.name
    return f"{place} ({known})" if known else place


def _fix(workflow: Workflow, missing: Sequence[Missing]) -> list[str]:
    """Say how each thing is got: models by our own command, nodes by their pack."""
    known = {model.name for model in workflow.models}
    lines: list[str] = []
    if any(item.kind == "model" and item.name in known for item in missing):
        lines.append(f"on the GPU machine: {PULL} {workflow.name}")
    for item in missing:
        if item.kind == "model" and item.url:
            lines.append(f"{item.name} is from {item.url}")
        elif item.kind == "node":
            where = " ".join(fact for fact in (item.detail, item.url) if fact)
            lines.append(f"install {where} in ComfyUI, then restart it (for {item.name})")
        elif item.kind == "invalid":
            lines.append(f"correct workflows/{workflow.name}.json, or update ComfyUI")
    return lines or ["put the file into that models folder of ComfyUI"]
