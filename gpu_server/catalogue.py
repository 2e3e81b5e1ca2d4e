"""The workflows of this service and how ready ComfyUI is for each of them."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from gpu_server.comfy import ComfyClient, ComfyUnavailable, RunFailed
from gpu_server.lru import Lru
from gpu_server.models import installed
from gpu_server.protocol import (
    CheckedWorkflow,
    Missing,
    RunRequest,
    Workflows,
    WorkflowStatus,
    WorkflowToCheck,
)
from gpu_server.workflow import (
    Workflow,
    WorkflowError,
    check,
    content_digest,
    load_workflows,
    make_workflow,
)
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

_MOST_KEPT = 512
"""Workflows without files that are remembered, those asked for last."""
_MOST_CHECKED = 20_000
"""What was found of a workflow is small: more than all gateways can ask about."""


class WorkflowMismatch(WorkflowError):
    """A request names a workflow by a digest that is not here."""


@dataclass(slots=True)
class Catalogue:
    """Workflows on disk, those that do not fit, and what ComfyUI lacks for the others."""

    comfy: ComfyClient
    workflows: dict[str, Workflow] = field(default_factory=dict[str, Workflow])
    broken: list[WorkflowStatus] = field(default_factory=list[WorkflowStatus])
    _kept: Lru[str, Workflow] = field(default_factory=lambda: Lru(_MOST_KEPT))
    """Workflows that are in no files here, by the digest of their content."""
    _checked: Lru[str, list[Missing]] = field(default_factory=lambda: Lru(_MOST_CHECKED))
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
            kept = self._kept.get(ref.digest) if ref is not None else None
            if kept is not None:
                return kept
            name = ref.name if ref is not None else "inline"
            raise WorkflowMismatch(name, "this service has no workflow with this digest")
        return _of_content(request.graph, request.manifest, ref.name if ref else "inline")

    async def check(
        self, asked: list[WorkflowToCheck], *, refresh: bool = False
    ) -> list[CheckedWorkflow]:
        """Tell how ready ComfyUI is for workflows that are in no files here.

        One that came with its graph once is known by its digest, until ComfyUI says something new.
        """
        object_info = await self._known(refresh=refresh)
        return [await self._check(one, object_info) for one in asked]

    async def _known(self, *, refresh: bool = False) -> ObjectInfo | None:
        """What ComfyUI says of its nodes; None while it is away."""
        try:
            return await self.comfy.object_info(refresh=refresh) if self.comfy.available else None
        except ComfyUnavailable:
            return None

    async def _check(self, one: WorkflowToCheck, object_info: ObjectInfo | None) -> CheckedWorkflow:
        workflow = self._kept.get(one.digest)
        try:
            if workflow is None and one.graph is not None and one.manifest is not None:
                # up to a third of a second for the largest, which runs should not wait for
                workflow = await asyncio.to_thread(_of_content, one.graph, one.manifest, "own")
        except WorkflowError as error:
            unfit = Missing(kind="invalid", name=error.place, detail=error.detail)
            return CheckedWorkflow(
                digest=one.digest, known=True, readiness="missing", missing=[unfit]
            )
        if workflow is None or workflow.digest != one.digest:
            return self._recalled(one.digest, object_info)
        self._kept.keep(one.digest, workflow)
        if object_info is None:
            return CheckedWorkflow(digest=one.digest, known=True)
        return self._answer(one.digest, await self._missing(workflow, object_info))

    def _recalled(self, digest: str, object_info: ObjectInfo | None) -> CheckedWorkflow:
        """Answer from what was found before: of many workflows not every graph is kept."""
        if object_info is None:
            # without ComfyUI its graph would tell nothing
            return CheckedWorkflow(digest=digest, known=True)
        self._renew(object_info)
        found = self._checked.get(digest)
        if found is None:
            return CheckedWorkflow(digest=digest, known=False)
        return self._answer(digest, found)

    def _answer(self, digest: str, missing: list[Missing]) -> CheckedWorkflow:
        return CheckedWorkflow(
            digest=digest,
            known=True,
            readiness="missing" if missing else "ready",
            missing=[self._with_source(thing) for thing in missing],
        )

    def _with_source(self, thing: Missing) -> Missing:
        """Add the address of a file that some bundled workflow needs, too."""
        if thing.kind != "model" or thing.url is not None:
            return thing
        known = (m for w in self.workflows.values() for m in w.models if m.name == thing.name)
        model = next(known, None)
        if model is None:
            return thing
        found = {"directory": model.directory, "url": model.url, "bytes": model.bytes}
        return thing.model_copy(update={**found, "license": model.license})

    async def refresh(self) -> None:
        """Ask ComfyUI anew and check every workflow; raises ComfyUnavailable."""
        object_info = await self.comfy.object_info(refresh=True)
        self._installed = installed(object_info)
        for workflow in self.workflows.values():
            await self._missing(workflow, object_info)

    async def ready(self, workflow: Workflow, *, refresh: bool = False) -> ObjectInfo:
        """Return what ComfyUI offers, knowing that it has all this workflow needs.

        What was missing is looked for once more: it may have been installed since.
        """
        object_info = await self.comfy.object_info(refresh=refresh)
        missing = await self._missing(workflow, object_info)
        if missing and not refresh:
            object_info = await self.comfy.object_info(refresh=True)
            missing = await self._missing(workflow, object_info)
        if missing:
            raise not_ready(missing)
        return object_info

    async def report(self) -> Workflows:
        """Tell the readiness of each workflow; `unknown` while ComfyUI is away.

        The files it listed last are told all the same: none at all would refuse every choice.
        """
        object_info = await self._known()
        if object_info is not None:
            self._installed = installed(object_info)
        statuses = [await self._status(w, object_info) for w in self.workflows.values()]
        return Workflows(
            engine=self.comfy.engine,
            workflows=sorted([*statuses, *self.broken], key=lambda s: s.name),
            installed=self._installed,
        )

    async def _status(self, workflow: Workflow, object_info: ObjectInfo | None) -> WorkflowStatus:
        if object_info is None:
            return WorkflowStatus(name=workflow.name, digest=workflow.digest, readiness="unknown")
        missing = await self._missing(workflow, object_info)
        return WorkflowStatus(
            name=workflow.name,
            digest=workflow.digest,
            readiness="missing" if missing else "ready",
            missing=missing,
        )

    async def _missing(self, workflow: Workflow, object_info: ObjectInfo) -> list[Missing]:
        """Check a workflow once for each answer of ComfyUI."""
        self._renew(object_info)
        known = self._checked.get(workflow.digest)
        if known is not None:
            return known
        found = await asyncio.to_thread(check, workflow, object_info)
        if self._checked_with is object_info:
            # else ComfyUI has said something new meanwhile
            self._checked.keep(workflow.digest, found)
        return found

    def _renew(self, object_info: ObjectInfo) -> None:
        """Forget what was found with another answer of ComfyUI."""
        if self._checked_with is not object_info:
            # ComfyUI is asked every few seconds and mostly says the same
            if self._checked_with != object_info:
                self._checked.clear()
            self._checked_with = object_info


def _of_content(graph: dict[str, JsonValue], manifest: dict[str, JsonValue], name: str) -> Workflow:
    # The content's own digest: readiness is remembered under it.
    return make_workflow(name, graph, manifest, digest=content_digest(graph, manifest))


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
