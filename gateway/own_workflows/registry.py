"""The workflows callers brought: made, looked up, and kept known to the GPU services."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from gateway.backends.base import BackendUnreachable, WorkflowReadiness
from gateway.backends.brought import PREFIX
from gateway.db import DatabaseUnavailable
from gateway.db.own_workflows import Head, OwnWorkflowRows, Record
from gateway.errors import InvalidParameters, NotEnabled, NotFound
from gateway.own_workflows.making import Made, make, stored
from gateway.own_workflows.reading import read_graph
from gateway.own_workflows.texts import seen_by_policy
from gateway.own_workflows.tool import own_tool, tool_name, version_name
from gateway.security.policy import Policy, PolicyCall, enforce
from gateway.tool import AnyTool, ToolParams, body_of
from gpu_server.lru import Lru
from gpu_server.workflow import Workflow
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

REFRESH_S = 5.0
LEAST_KEPT = 500
"""Versions that are remembered, or as many as a caller may have workflows."""


@runtime_checkable
class ChecksWorkflows(Protocol):
    """A backend that can look at a workflow it does not have."""

    def readiness(self, workflow: str, digest: str, /) -> WorkflowReadiness | None:
        """Whether it can carry out that workflow, as last seen; it is looked at from now on."""
        ...

    async def nodes(self, classes: Sequence[str], /) -> ObjectInfo | None:
        """Ask what its ComfyUI says of node classes now; None where it does not answer."""
        ...

    async def check(self, workflow: Workflow, /, *, refresh: bool = False) -> None:
        """Find out how ready it is, so that `readiness` knows; with `refresh` as of now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnWorkflow:
    """One version, ready to be run."""

    head: Head
    workflow: Workflow
    tool: AnyTool
    body: type[ToolParams]
    """What a call's body may hold."""


class StoredWorkflows:
    """Own workflows by their digest, as GPU services that lack one are sent it."""

    def __init__(self, rows: OwnWorkflowRows) -> None:
        self.rows = rows
        self._kept: Lru[str, Workflow] = Lru(LEAST_KEPT)

    async def by_digest(self, digest: str) -> Workflow | None:
        """Find a workflow, removed ones included: jobs of theirs may still wait."""
        known = self._kept.get(digest)
        if known is None:
            record = await self.rows.by_digest(digest)
            known = None if record is None else await _workflow(record)
            if known is not None:
                self.keep(known)
        return known

    async def for_backends(self, digest: str) -> Workflow | None:
        """Find a workflow; raises BackendUnreachable while the database does not answer."""
        try:
            return await self.by_digest(digest)
        except DatabaseUnavailable as error:
            raise BackendUnreachable("the database does not answer") from error

    def keep(self, workflow: Workflow) -> None:
        """Remember one."""
        self._kept.keep(workflow.digest, workflow)


class OwnWorkflows:
    """What the routes, batches and the documentation ask."""

    def __init__(
        self,
        *,
        brought: StoredWorkflows,
        checkers: Sequence[ChecksWorkflows],
        policy: Policy,
        enabled: bool,
        most: int,
    ) -> None:
        self.rows = brought.rows
        self._brought = brought
        self._checkers = checkers
        self._policy = policy
        self._enabled = enabled
        self._most = most
        # a list of all of a caller's must find them all again
        self._known: Lru[tuple[str, int], OwnWorkflow] = Lru(max(LEAST_KEPT, most))

    async def add(
        self, caller: str, name: str, graph: JsonValue, manifest: dict[str, JsonValue] | None
    ) -> tuple[OwnWorkflow, bool]:
        """Take a workflow; True when it is a new version.

        Raises NotEnabled, InvalidParameters, PolicyViolation and Conflict.

        What its node classes take is asked of a GPU service; where none answers, it is read off
        the graph.
        """
        self._require_enabled()
        parsed = await asyncio.to_thread(read_graph, graph)
        info = await self._nodes(sorted({str(node["class_type"]) for node in parsed.values()}))
        # seconds for the largest graphs, which nobody else should wait for
        made = await asyncio.to_thread(make, name, parsed, manifest, info)
        await self._allow(caller, name, made)
        head, new = await self.rows.add(
            name=name,
            caller=caller,
            digest=made.workflow.digest,
            graph=made.graph,
            manifest=made.manifest,
            most=self._most,
        )
        self._brought.keep(made.workflow)
        own = self._remember(head, made.workflow)
        for checker in self._checkers:
            await checker.check(own.workflow, refresh=True)
        return own, new

    async def find(self, caller: str, name: str, version: int | None = None) -> OwnWorkflow:
        """Find a caller's workflow, its newest version unless one is named; raises NotFound."""
        head = await self.rows.head(name)
        if head is None or head.caller != caller:
            raise NotFound("There is no such workflow; GET /api/workflows lists yours.")
        wanted = head
        if version is not None and version != head.version:
            # what is remembered may have been removed since, by another gateway, too
            wanted = await self.rows.version(name, version)
        own = None if wanted is None else await self._version(wanted)
        if own is None:
            raise NotFound(f"The workflow {name} has no such version; its newest: {head.version}.")
        return own

    async def runnable(self, caller: str, name: str, version: int | None = None) -> OwnWorkflow:
        """Find a workflow that is to be run; raises NotEnabled, NotFound."""
        self._require_enabled()
        return await self.find(caller, name, version)

    async def current(self) -> tuple[OwnWorkflow, ...]:
        """List the newest version of every workflow there is, by name."""
        return await self.made(await self.rows.heads())

    async def made(self, heads: Sequence[Head]) -> tuple[OwnWorkflow, ...]:
        """Make what these rows are about; one that was removed in between is left out."""
        found = [await self._version(one) for one in heads]
        return tuple(own for own in found if own is not None)

    async def keep_known(self) -> None:
        """Learn what other gateways took, so that GPU services are asked about it; for ever.

        Nothing is made of it before somebody calls it.
        """
        while self._enabled:
            try:
                for head in await self.rows.heads():
                    for checker in self._checkers:
                        # what nobody asks for is not looked at any more
                        checker.readiness(f"{PREFIX}{head.name}", head.digest)
            except DatabaseUnavailable:
                _log.info("own workflows: the database does not answer")
            except Exception:  # noqa: BLE001 - one bad round must not end the learning
                _log.exception("own workflows: looking for new ones failed")
            await asyncio.sleep(REFRESH_S)

    def _require_enabled(self) -> None:
        if not self._enabled:
            raise NotEnabled(
                "Workflows of your own are switched off here: OWN_WORKFLOWS=true switches them on."
            )

    async def _version(self, head: Head) -> OwnWorkflow | None:
        known = self._known.get((head.name, head.version))
        if known is not None:
            return known
        record = await self.rows.record(head.name, head.version)
        workflow = None if record is None else await _workflow(record)
        if record is None or workflow is None:
            return None
        own = self._remember(record, workflow)
        for checker in self._checkers:
            state = checker.readiness(workflow.name, workflow.digest)
            if state is None or state.readiness == "unknown":
                await checker.check(workflow)
        return own

    def _remember(self, head: Head, workflow: Workflow) -> OwnWorkflow:
        tool = own_tool(head.name, head.version, workflow)
        own = OwnWorkflow(head=head, workflow=workflow, tool=tool, body=body_of(tool))
        self._known.keep((head.name, head.version), own)
        return own

    async def _nodes(self, classes: Sequence[str]) -> ObjectInfo | None:
        for checker in self._checkers:
            info = await checker.nodes(classes)
            if info is not None:
                return info
        return None

    async def _allow(self, caller: str, name: str, made: Made) -> None:
        """Ask the policy about the graph's own texts; raises PolicyViolation."""
        params = made.workflow.manifest.params
        asked = PolicyCall(
            tool=tool_name(name),
            variant=version_name(1),
            caller=caller,
            params=seen_by_policy(made.workflow, {}),
            files=frozenset(key for key, param in params.items() if param.upload is not None),
        )
        await enforce(self._policy, asked)


async def _workflow(record: Record) -> Workflow | None:
    """Make the workflow of a row; None for one that this version of the code cannot read."""
    try:
        return await asyncio.to_thread(stored, record.name, record.graph, record.manifest)
    except InvalidParameters as error:
        _log.error("own workflow %s, version %s: %s", record.name, record.version, error)
        return None
