"""Whether the serverless endpoints answer, and have workers to answer for."""

import httpx

from gateway.agreement import Misconfigured, endpoints, worker_address
from gateway.backends.base import BackendError
from gateway.backends.runpod import name_of
from gateway.backends.runpod_api import Counts, RunpodApi
from gateway.doctor.findings import Notes
from gateway.settings import Settings

LIMIT_S = 20.0

_ABLE = ("idle", "ready", "running", "initializing")


async def check_serverless(settings: Settings, notes: Notes) -> None:
    """Ask each endpoint how it is; nothing is submitted, so nothing costs anything."""
    try:
        tools, address = endpoints(settings), worker_address(settings)
    except Misconfigured:
        # said with the settings
        return
    key = settings.runpod_api_key
    if key is None:
        return
    async with httpx.AsyncClient(trust_env=False) as http:
        for endpoint, served in tools.items():
            name, troubles = name_of(endpoint), list[str]()
            url = f"{settings.runpod_api_url}/{endpoint}"
            api = RunpodApi(name, url, key.get_secret_value(), http, on_trouble=troubles.append)
            try:
                counts = await api.health()
            except BackendError as error:
                notes.fail(name, str(error), "see RunPod's console: key, endpoint, balance")
                continue
            notes.ok(
                name, f"answers and takes our key; for {', '.join(sorted(served)) or 'no tool'}"
            )
            _counts(name, counts, notes)
    if address is None:
        notes.warn(
            "webhooks",
            "RunPod cannot tell this gateway that a job is done: it is asked every few seconds",
            "set PUBLIC_URL to an address of the internet, if it has one",
        )


def _counts(name: str, counts: Counts, notes: Notes) -> None:
    workers = {state: count for state, count in counts.workers.items() if count}
    said = ", ".join(f"{count} {state}" for state, count in workers.items()) or "none now"
    if workers.get("unhealthy"):
        fix = "see the workers' logs at RunPod: ComfyUI or its models may be missing there"
        notes.warn(name, f"workers: {said}", fix)
    elif counts.unfinished and not any(workers.get(state) for state in _ABLE):
        said = f"{counts.unfinished} jobs are there, and workers: {said}"
        notes.warn(name, said, "raise the endpoint's max workers, or let it use other GPUs, too")
    else:
        unfinished = "unknown" if counts.unfinished is None else counts.unfinished
        notes.ok(name, f"workers: {said}; jobs unfinished: {unfinished}")
