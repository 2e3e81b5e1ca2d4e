"""Which workflow carries out a plain call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from gpu_server.mesh.calls import ENGINE
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.workflow import Workflow

CONCEPT = "concept"
MODEL3D = "model3d"
RESCALE = "rescale"
"""The one tool without workflows: it needs no ComfyUI."""
DEFAULT_VARIANTS: Mapping[str, str] = {
    "background-removal": "birefnet",
    "caption": "qwen3-vl",
    CONCEPT: "flux2-klein-4b",
    "control": "z-image-turbo",
    "generate": "flux1-dev",
    "inpaint": "flux2-klein-9b",
    "mask": "sam3",
    MODEL3D: "trellis2",
    "portrait": "flux2-klein-9b-multiref",
    "upscale": "realesrgan",
    "video": "wan2.1-480p",
}
"""The gateway's own, which a test compares."""

OPERATIONS: Mapping[str, str] = {
    "generate_concepts": CONCEPT,
    "generate_model": MODEL3D,
    "rescale_model": RESCALE,
}
"""Names of older clients to tools."""
CHOOSING = ("operation", "tool", "workflow", "variant")
"""Keys of a plain call that are no parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What this endpoint serves."""

    workflows: Mapping[str, Workflow]
    settings: WorkerSettings
    ready: Callable[[Workflow], bool]
    """ComfyUI has all it needs."""

    def rescales(self, call: Mapping[str, JsonValue]) -> bool:
        """Whether a plain call means the rescaling of a mesh; raises CallFailed."""
        if _text(call, "workflow") is not None or self._asked(call) != RESCALE:
            return False
        variant = _text(call, "variant")
        if variant not in (None, ENGINE):
            raise _unknown("variant", variant, [ENGINE])
        return True

    def chosen(self, call: Mapping[str, JsonValue]) -> Workflow:
        """Return the workflow a plain call means; raises CallFailed naming what there is."""
        named = _text(call, "workflow")
        if named is not None:
            return self._served(self._named(named))
        tool = self._asked(call)
        wanted = _text(call, "variant")
        found = self._of(tool)
        if wanted is not None:
            match = next((w for w in found if wanted in (w.variant, w.name)), None)
            if match is None:
                raise _unknown("variant", wanted, [w.variant or w.name for w in found])
            return match
        able = [workflow for workflow in found if self.ready(workflow)]
        # what nothing is ready for fails with what is missing, which tells more than a refusal
        return (able or found)[0]

    def _asked(self, call: Mapping[str, JsonValue]) -> str:
        return self._tool(_text(call, "operation") or _text(call, "tool"))

    def _named(self, name: str) -> Workflow:
        workflow = self.workflows.get(name)
        if workflow is None:
            raise _unknown("workflow", name, sorted(self.workflows))
        return workflow

    def _served(self, workflow: Workflow) -> Workflow:
        tools, names = self.settings.runpod_tool, self.settings.runpod_workflows
        if tools and workflow.tool not in tools:
            raise _unknown("workflow", workflow.name, [w.name for t in tools for w in self._of(t)])
        if names and workflow.name not in names:
            raise _unknown("workflow", workflow.name, list(names))
        return workflow

    def _tool(self, asked: str | None) -> str:
        served = self.settings.runpod_tool or self._tools()
        if asked is None:
            if len(served) == 1:
                return served[0]
            raise CallFailed(
                "usage",
                "invalid_request",
                f"name one in `operation`: this endpoint serves {', '.join(served)}",
            )
        tool = OPERATIONS.get(asked, asked)
        if tool not in served:
            raise _unknown("operation", asked, served)
        return tool

    def _tools(self) -> list[str]:
        names = self.settings.runpod_workflows
        if names:
            return sorted({self._named(name).tool for name in names})
        return sorted({RESCALE, *(workflow.tool for workflow in self.workflows.values())})

    def _of(self, tool: str) -> list[Workflow]:
        """Workflows of a tool, the default one first."""
        names = self.settings.runpod_workflows
        if names:
            return [w for w in map(self._named, names) if w.tool == tool]
        default = DEFAULT_VARIANTS.get(tool)
        found = [w for w in self.workflows.values() if w.tool == tool]
        return sorted(found, key=lambda w: (default not in (w.variant, w.name), w.name))


def _text(call: Mapping[str, JsonValue], key: str) -> str | None:
    value = call.get(key)
    if value is not None and not isinstance(value, str):
        raise CallFailed("usage", "invalid_request", f"{key} must be a string")
    return value


def _unknown(key: str, asked: str, known: Sequence[str]) -> CallFailed:
    message = f"{key}: there is no {asked[:80]!r} here; there are {', '.join(known) or 'none'}"
    return CallFailed("usage", "invalid_request", message)
