"""Workflows that callers brought, at one GPU service: how ready it is, and what its nodes take.

They are known by digest. Whatever digest is asked for is looked at from then on, until nobody has
asked for a while: those of removed workflows, too, whose jobs may still wait.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway.backends.base import BackendError, WorkflowReadiness
from gateway.backends.gpu_service import GpuService
from gpu_server.protocol import CheckedWorkflow, CheckRequest, NodesRequest, WorkflowToCheck
from gpu_server.workflow import Workflow
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

PREFIX = "own."
"""Begins the names of callers' own workflows."""
PART = "check"
"""What `/health` lists under `protocol` when a service can look at them."""
_FORGOTTEN_AFTER_S = 600.0
_AT_ONCE = 100
_UNKNOWN = WorkflowReadiness(readiness="unknown")

Lookup = Callable[[str], Awaitable[Workflow | None]]
"""Finds a workflow by its digest."""


async def nobody(digest: str) -> Workflow | None:
    """Look up nothing: where callers bring no workflows."""
    del digest


def to_check(workflow: Workflow) -> WorkflowToCheck:
    """Send a workflow along whole."""
    manifest = workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return WorkflowToCheck.model_validate(
        {"digest": workflow.digest, "graph": workflow.graph, "manifest": manifest}
    )


class Brought:
    """How ready one GPU service is for each workflow that was asked for."""

    def __init__(self, service: GpuService, lookup: Lookup, look_now: Callable[[], None]) -> None:
        self.lookup = lookup
        self._service = service
        self._look_now = look_now
        self._asked: dict[str, float] = {}
        self._states: dict[str, WorkflowReadiness] = {}
        self._new: set[str] = set()

    @property
    def has_new(self) -> bool:
        """One was asked for that was never looked at."""
        return bool(self._new)

    def readiness(self, digest: str) -> WorkflowReadiness:
        """How ready it was when last looked at; one not asked for before is looked at soon."""
        if digest not in self._asked:
            self._new.add(digest)
            self._look_now()
        self._asked[digest] = time.monotonic()
        return self._states.get(digest, _UNKNOWN)

    async def look(self) -> bool:
        """Look at all that were asked for lately; True when one is not what it was."""
        since = time.monotonic() - _FORGOTTEN_AFTER_S
        self._asked = {digest: at for digest, at in self._asked.items() if at > since}
        before = self._states
        self._states = {d: state for d, state in before.items() if d in self._asked}
        wanted = list(self._asked)
        self._new.clear()
        for start in range(0, len(wanted), _AT_ONCE):
            asked = [WorkflowToCheck(digest=d) for d in wanted[start : start + _AT_ONCE]]
            try:
                for checked in await self._service.check(CheckRequest(workflows=asked)):
                    await self._note(checked)
            except BackendError as error:
                _log.info("workflows could not be looked at: %s", error)
        return self._states != before

    async def check(self, workflow: Workflow, *, refresh: bool) -> None:
        """Look at one now; does nothing where the service does not answer."""
        self._asked[workflow.digest] = time.monotonic()
        self._new.discard(workflow.digest)
        request = CheckRequest(workflows=[to_check(workflow)], refresh=refresh)
        try:
            for checked in await self._service.check(request):
                self._states[checked.digest] = _state(checked)
        except BackendError as error:
            _log.info("a workflow could not be checked: %s", error)

    async def nodes(self, classes: Sequence[str]) -> ObjectInfo | None:
        """Ask what its node classes take; None where it does not say."""
        try:
            answer = await self._service.nodes(NodesRequest(classes=list(classes)))
        except BackendError as error:
            _log.info("node classes could not be asked for: %s", error)
            return None
        return answer.nodes

    async def _note(self, checked: CheckedWorkflow) -> None:
        if not checked.known:
            workflow = await self.lookup(checked.digest)
            if workflow is None:
                return
            # one by one: each may be megabytes
            request = CheckRequest(workflows=[to_check(workflow)])
            answer = await self._service.check(request)
            if len(answer) != 1:
                raise BackendError(f"{len(answer)} answers about one workflow")
            checked = answer[0]
        self._states[checked.digest] = _state(checked)


def _state(checked: CheckedWorkflow) -> WorkflowReadiness:
    return WorkflowReadiness(readiness=checked.readiness, missing=tuple(checked.missing))
