"""Whether a starting worker can do its endpoint's work: asked before the first job."""

from gpu_server.catalogue import not_ready
from gpu_server.protocol import WorkflowStatus
from gpu_server.serverless.resident import Resident, reached
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.tools import RESCALE
from gpu_server.workflow import Workflow


class Unfit(Exception):
    """Why this worker can't serve, in a sentence for the operator."""


async def check(settings: WorkerSettings) -> None:
    """Raise Unfit, or CallFailed while ComfyUI is away, unless the endpoint's tools can run."""
    if settings.runpod_tool and {*settings.runpod_tool} == {RESCALE}:
        # it does without ComfyUI
        return
    resident = Resident(settings)
    try:
        async with resident.service() as service:
            await reached(service.comfy, settings.comfyui_start_s)
            await service.catalogue.refresh()
            report = (await service.catalogue.report()).workflows
            judge(settings, service.catalogue.workflows, {each.name: each for each in report})
    finally:
        await resident.close()


def judge(
    settings: WorkerSettings,
    workflows: dict[str, Workflow],
    found: dict[str, WorkflowStatus],
) -> None:
    """Raise Unfit for the first thing the endpoint's settings ask for that is not there."""
    for name in settings.runpod_workflows:
        if name not in found:
            raise Unfit(f"RUNPOD_WORKFLOWS: there is no workflow {name}")
        if found[name].readiness != "ready":
            raise Unfit(f"RUNPOD_WORKFLOWS: {name}: {_lacks(found[name])}")
    for tool in (tool for tool in settings.runpod_tool if tool != RESCALE):
        names = [w.name for w in workflows.values() if w.tool == tool]
        if not names:
            raise Unfit(f"RUNPOD_TOOL: there is no workflow of a tool {tool}")
        _one_is_ready(f"RUNPOD_TOOL: {tool}", [found[name] for name in names])
    if not (settings.runpod_workflows or settings.runpod_tool):
        _one_is_ready("no workflow can run", list(found.values()))


def _one_is_ready(what: str, statuses: list[WorkflowStatus]) -> None:
    if not any(status.readiness == "ready" for status in statuses):
        reasons = "; ".join(f"{status.name}: {_lacks(status)}" for status in statuses)
        raise Unfit(f"{what}: {reasons}")


def _lacks(status: WorkflowStatus) -> str:
    if not status.missing:
        return "ComfyUI was not asked"
    return not_ready(status.missing).failure.message
