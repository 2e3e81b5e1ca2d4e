"""The workflows of this service and how ready ComfyUI is for each of them."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from gpu_server.comfy import ComfyClient, ComfyUnavailable, RunFailed
from gpu_server.models import installed
from gpu_server.protocol import Missing, RunRequest, Workflows, WorkflowStatus
from gpu_server.workflow import (
    Workflow,
    WorkflowError,
    check,
    digest_of,
    load_workflows,
    make_workflow,
)
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)


class WorkflowMismatch(WorkflowError):
    """A request names a workflow by a digest that is not here."""


@dataclass(slots=True)
class Catalogue:
    """Workflows on disk, those that do not fit, and what ComfyUI lacks for the others."""

    comfy: ComfyClient
    workflows: dict[str, Workflow] = field(default_factory=dict[str, Workflow])
    broken: list[WorkflowStatus] = field(default_factory=list[WorkflowStatus])
    _checked: dict[str, list[Missing]] = field(default_factory=dict[str, list[Missing]])
    _checked_with: ObjectInfo | None = None
    _installed: dict[str, list[str]] | None = None

    @classmethod
    def load(cls, path: Path, comfy: ComfyClient) -> "Catalogue":
        """Read the workflows; one that does not fit is reported, not fatal."""
        catalogue = cls(comfy)

        def report(name: str, digest: str, error: WorkflowError) -> None:
            _log.error("workflow %s", error)
            missing = Missing(kind="invalid", name=error.place, detail=error.detail)
            catalogue.broken.append(
                WorkflowStatus(name=name, digest=digest, readiness="missing", missing=[missing])
            )

        catalogue.workflows = load_workflows(path, on_error=report)
        return catalogue

    def find(self, request: RunRequest) -> Workflow:
        """Return the workflow a request names, or the one it brings.

        Raises WorkflowMismatch when it names one this service has not got in that version, and
        WorkflowError when the one it brings does not fit.
        """
        ref = request.workflow
        known = self.workflows.get(ref.name) if ref is not None else None
        if known is not None and ref is not None and known.digest == ref.digest:
            return known
        if request.graph is None or request.manifest is None:
            name = ref.name if ref is not None else "inline"
            raise WorkflowMismatch(name, "this service has no workflow with this digest")
        # The content's own digest: readiness is remembered under it.
        digest = digest_of(_bytes(request.graph), _bytes(request.manifest))
        return make_workflow(
            ref.name if ref is not None else "inline",
            request.graph,
            request.manifest,
            digest=digest,
        )

    async def refresh(self) -> None:
        """Ask ComfyUI anew and check every workflow; raises ComfyUnavailable."""
        object_info = await self.comfy.object_info(refresh=True)
        self._installed = installed(object_info)
        for workflow in self.workflows.values():
            self._missing(workflow, object_info)

    async def ready(self, workflow: Workflow, *, refresh: bool = False) -> ObjectInfo:
        """Return what ComfyUI offers, knowing that it has all this workflow needs.

        What was missing is looked for once more: it may have been installed since.
        """
        object_info = await self.comfy.object_info(refresh=refresh)
        missing = self._missing(workflow, object_info)
        if missing and not refresh:
            object_info = await self.comfy.object_info(refresh=True)
            missing = self._missing(workflow, object_info)
        if missing:
            raise not_ready(missing)
        return object_info

    async def report(self) -> Workflows:
        """Tell the readiness of each workflow; `unknown` while ComfyUI is away.

        The files it listed last are told all the same: none at all would refuse every choice.
        """
        try:
            object_info = await self.comfy.object_info() if self.comfy.available else None
        except ComfyUnavailable:
            object_info = None
        if object_info is not None:
            self._installed = installed(object_info)
        statuses = [self._status(w, object_info) for w in self.workflows.values()]
        return Workflows(
            engine=self.comfy.engine,
            workflows=sorted([*statuses, *self.broken], key=lambda s: s.name),
            installed=self._installed,
        )

    def _status(self, workflow: Workflow, object_info: ObjectInfo | None) -> WorkflowStatus:
        if object_info is None:
            return WorkflowStatus(name=workflow.name, digest=workflow.digest, readiness="unknown")
        missing = self._missing(workflow, object_info)
        return WorkflowStatus(
            name=workflow.name,
            digest=workflow.digest,
            readiness="missing" if missing else "ready",
            missing=missing,
        )

    def _missing(self, workflow: Workflow, object_info: ObjectInfo) -> list[Missing]:
        """Check a workflow once for each answer of ComfyUI."""
        if self._checked_with is not object_info:
            self._checked_with = object_info
            self._checked.clear()
        if workflow.digest not in self._checked:
            self._checked[workflow.digest] = check(workflow, object_info)
        return self._checked[workflow.digest]


def _bytes(part: dict[str, JsonValue]) -> bytes:
    return json.dumps(part, sort_keys=True).encode()


def not_ready(missing: list[Missing]) -> RunFailed:
    """Say what ComfyUI lacks and where to get it."""
    thing = missing[0]
    if thing.kind == "model":
        where = f" in {thing.directory}" if thing.directory else ""
        source = f", from {thing.url}" if thing.url else ""
        return RunFailed("fatal", "missing_model", f"ComfyUI lacks {thing.name}{where}{source}")
    if thing.kind == "node":
        return RunFailed("fatal", "missing_node", f"ComfyUI lacks the node {thing.name}")
    return RunFailed("fatal", "workflow_invalid", f"{thing.name}: {thing.detail}")
