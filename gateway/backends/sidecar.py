"""A GPU service as a backend: ComfyUI's neighbour, on this host or another."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import cast
from urllib.parse import urlsplit

import httpx
from pydantic import JsonValue

from gateway.backends.base import (
    BackendError,
    BackendFull,
    BackendUnreachable,
    Kind,
    Order,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
    WorkflowReadiness,
)
from gateway.backends.brought import PART, PREFIX, Brought, Lookup, nobody
from gateway.backends.gpu_service import GpuService, WorkflowMismatch
from gateway.job import Produced
from gpu_server.protocol import (
    VERSION,
    Failure,
    FileOptions,
    Health,
    InputFile,
    Preview,
    RunRequest,
    RunStatus,
    Slot,
    WorkflowRef,
    Workflows,
    WorkflowStatus,
)
from gpu_server.workflow import Workflow
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 10.0
_LOOK_WHILE_AWAY_S = 2.0
# failures that say nothing about the run itself: ComfyUI went away with it
_ENGINE_DIED = frozenset({"lost", "comfyui_wedged"})
# streams in a row that end early and without news, before it is called unreachable
_BARREN_STREAMS = 3
_EARLY_S = 5.0


def name_of(url: str) -> str:
    """Name of the GPU service at an address, `host:port` and its path.

    Runs keep it: it must not depend on the place in a list, and it must not hold a login.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


class Sidecar:
    """One GPU service."""

    def __init__(
        self,
        name: str,
        url: str,
        token: str | None,
        http: httpx.AsyncClient,
        workflows: Mapping[str, Workflow],
        *,
        on_change: Callable[[], None] | None = None,
        brought: Lookup = nobody,
    ) -> None:
        self.on_change = on_change
        """Called when capacity, models or readiness are not what they were."""
        self._name = name
        self._workflows = workflows
        self._look_now = asyncio.Event()
        self._service = GpuService(name, url, token, http, on_away=self._look_now.set)
        self._brought = Brought(self._service, brought, self._look_now.set)
        self._health: Health | None = None
        self._seen: Workflows | None = None
        self._statuses: dict[str, WorkflowStatus] = {}
        self._installed: dict[str, frozenset[str]] | None = None
        self._trouble: str | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Stable name, stored with each run it is granted."""
        return self._name

    @property
    def kind(self) -> Kind:
        """A GPU service."""
        return "gpu"

    @property
    def billed(self) -> bool:
        """Its machine is paid for by the hour, whatever it does."""
        return False

    @property
    def capacity(self) -> int:
        """Runs it takes at once; 0 while it, or its ComfyUI, does not answer."""
        return self._health.capacity if self._health and self._health.comfyui_available else 0

    @property
    def engine(self) -> str | None:
        """`comfyui`, `simulator`, or None while not known."""
        return self._seen.engine if self._seen else None

    @property
    def installed(self) -> Mapping[str, frozenset[str]] | None:
        """Model files by folder, as last seen; None while not known."""
        return self._installed

    @property
    def health(self) -> Health | None:
        """What it says of itself; None while it does not answer."""
        return self._health

    @property
    def trouble(self) -> str | None:
        """Why it is not reached, in one sentence; None while it is."""
        return self._trouble

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        """Whether it can carry out that workflow, as last seen.

        Another digest there is no obstacle: graph and manifest are then sent along.
        """
        if workflow.startswith(PREFIX):
            return self._brought.readiness(digest)
        known = self._statuses.get(workflow)
        if known is None:
            return WorkflowReadiness(readiness="unknown")
        return WorkflowReadiness(readiness=known.readiness, missing=tuple(known.missing))

    async def start(self, order: Order) -> str:
        """Begin or adopt the run; its reference is its id."""
        request = await self._request(order)
        try:
            await self._service.put(order.run_id, request)
        except WorkflowMismatch:
            try:
                await self._service.put(order.run_id, await self._inline(request, order))
            except WorkflowMismatch as error:
                raise self._service.foreign() from error
        return order.run_id

    async def renew(self, order: Order) -> None:
        """Let a run it has send its files to the slots of this order."""
        try:
            await self._service.put(order.run_id, await self._request(order), begin=False)
        except (BackendFull, WorkflowMismatch) as error:
            # one that does not heed If-Match says so of a run it would have to begin
            raise RunLost(f"{self._name} does not know this run") from error

    async def follow(
        self, run_id: str, reference: str
    ) -> AsyncGenerator[Progressed | Produced, None]:
        """What happens to it; a dropped stream is opened again at once."""
        del reference
        last, barren, waits_for = -1.0, 0, None
        clock = asyncio.get_running_loop().time
        while barren < _BARREN_STREAMS:
            barren += 1
            opened = clock()
            async with aclosing(self._service.events(run_id)) as events:
                async for event in events:
                    if event.status is not None:
                        yield self._ended(event.status)
                        return
                    # a new stream begins with the present state: no news by itself
                    if (progress := event.progress) is None:
                        continue
                    if progress.fraction <= last and progress.waits_for == waits_for:
                        continue
                    barren, waits_for = 0, progress.waits_for
                    last = max(last, progress.fraction)
                    yield Progressed(**progress.model_dump(exclude={"fraction"}), fraction=last)
            if clock() - opened > _EARLY_S:
                barren = 0
        self._look_now.set()
        raise BackendUnreachable(f"{self._name}: its event streams break off")

    async def previews(self, run_id: str, reference: str) -> AsyncGenerator[Preview, None]:
        """Show what it looks like so far, from a stream of its own."""
        del reference
        if not self._knows("previews"):
            return
        async with aclosing(self._service.events(run_id, previews=True)) as events:
            async for event in events:
                if event.preview is not None:
                    yield event.preview

    async def cancel(self, run_id: str, reference: str | None) -> None:
        """Stop it wherever it is."""
        del reference
        await self._service.remove(run_id)

    async def forget(self, run_id: str, reference: str) -> None:
        """Its files are safe with us: it may be removed there."""
        del reference
        await self._service.remove(run_id)

    async def nodes(self, classes: Sequence[str]) -> ObjectInfo | None:
        """Ask what its ComfyUI says of node classes now; None where it does not answer."""
        return await self._brought.nodes(classes) if await self._can_check() else None

    async def check(self, workflow: Workflow, *, refresh: bool = False) -> None:
        """Find out how ready it is for a workflow that somebody brought."""
        if await self._can_check():
            await self._brought.check(workflow, refresh=refresh)

    async def _can_check(self) -> bool:
        if self._health is None and self._trouble is None:
            # asked for before the first look
            await self.look()
        return self._knows(PART)

    async def start_watching(self) -> None:
        """Look at the service now, then every 10 s (2 s while it takes nothing)."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name=f"watch {self._name}")

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    async def look(self) -> None:
        """Ask once for health, workflows and models."""
        before, changed = (self.capacity, self._seen), False
        try:
            # a wrong token shows here; `/health` is open and only says less without it
            seen = await self._service.workflows()
            health = await self._service.health()
        except BackendError as error:
            self._health = None
            self._note(str(error))
        else:
            self._health = health
            self._note(None)
            if seen != self._seen:
                self._remember(seen)
            changed = self._knows(PART) and await self._brought.look()
        changed = changed or before != (self.capacity, self._seen)
        if changed and self.on_change is not None:
            self.on_change()

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a dead watcher would freeze the last capacity
                _log.exception("looking at GPU service %s", self._name)
            # only now: the look's own failure calls for another look, too
            self._look_now.clear()
            if self._brought.has_new and self._knows(PART):
                continue
            pause = _LOOK_EVERY_S if self.capacity else _LOOK_WHILE_AWAY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), pause)

    def _remember(self, seen: Workflows) -> None:
        self._seen = seen
        self._statuses = {status.name: status for status in seen.workflows}
        self._installed = (
            None
            if seen.installed is None
            else {folder: frozenset(files) for folder, files in seen.installed.items()}
        )

    def _note(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            _log.info("GPU service %s answers", self._name)
        else:
            _log.warning("GPU service %s", trouble)

    def _knows(self, part: str) -> bool:
        """Tell whether it understands an optional part of the contract, as last seen."""
        return self._health is not None and part in self._health.protocol

    async def _request(self, order: Order) -> RunRequest:
        """Make the request, with what the service knows of the contract."""
        if self._health is None:
            # a run may be adopted before the first look
            await self.look()
        files, sized = self._knows("files"), self._knows("sized")
        if not sized and any(slot.sized for slot in order.slots):
            raise self._former("it cannot deliver into a bucket. Update it")
        if not files and any(slot.format for slot in order.slots):
            raise self._former("it makes no other formats")
        return _request(order, files=files, sized=sized, ours=self._knows("ours"))

    def _former(self, lacks: str) -> BackendError:
        """Say what it does not know how to do, if it is known at all."""
        if self._health is None:
            return BackendUnreachable(self._trouble or f"{self._name} does not answer")
        message = f"The GPU service is of a former version: {lacks}."
        failure = Failure(kind="fatal", code="unsupported", message=message)
        return RunFailed(failure, executed=False)

    async def _inline(self, request: RunRequest, order: Order) -> RunRequest:
        """Send the workflow itself along."""
        workflow = self._workflows.get(order.call.workflow)
        if order.call.workflow.startswith(PREFIX):
            workflow = await self._brought.lookup(order.call.digest)
        if workflow is None or workflow.digest != order.call.digest:
            raise RunFailed(
                Failure(
                    kind="fatal",
                    code="workflow_changed",
                    message="The workflow changed after this job was accepted; submit it again.",
                ),
                executed=False,
            )
        manifest = workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
        graph = cast("dict[str, JsonValue]", workflow.graph)
        return request.model_copy(update={"graph": graph, "manifest": manifest})

    def _ended(self, status: RunStatus) -> Produced:
        if status.state == "completed":
            return Produced(
                outputs=tuple(status.outputs),
                params=status.params,
                engine=status.engine or self.engine or "unknown",
                duration_seconds=status.duration_seconds or 0.0,
                texts=status.texts,
            )
        if status.state == "cancelled":
            raise RunCancelled(self._name)
        if status.state == "failed" and status.failure is not None:
            if status.failure.code in _ENGINE_DIED:
                raise RunLost(status.failure.message, executed=status.executed)
            raise RunFailed(status.failure, executed=status.executed)
        raise self._service.foreign()


def _request(order: Order, *, files: bool, sized: bool, ours: bool) -> RunRequest:
    """Make the request, of the parts of the contract that the service knows."""
    call = order.call
    known = {"name", "url"}
    known |= set(FileOptions.model_fields) if files else set[str]()
    known |= {"sized", "content_md5"} if sized else set[str]()
    slots = [s.model_dump(include=known, exclude_unset=True) for s in order.slots]
    request = RunRequest(
        version=VERSION,
        workflow=WorkflowRef(name=call.workflow, digest=call.digest),
        params=call.params,
        outputs=[Slot.model_validate(slot) for slot in slots],
        timeout_s=call.timeout_s,
    )
    more: dict[str, object] = {"details": True} if files else {}
    more |= {"patient": True} if sized else {}
    if order.inputs:
        told = set(InputFile.model_fields) - (set[str]() if ours else {"ours"})
        more["inputs"] = {
            param: [
                InputFile.model_validate(file.model_dump(include=told, exclude_unset=True))
                for file in found
            ]
            for param, found in order.inputs.items()
        }
    return request.model_copy(update=more)
