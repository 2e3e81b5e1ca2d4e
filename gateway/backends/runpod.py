"""A serverless endpoint of RunPod as a backend; docs/runpod.md tells what it does when.

The reference of a run is the id of its job there.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

import httpx

from gateway.backends.base import (
    BackendError,
    BackendUnreachable,
    Kind,
    Order,
    Progressed,
    WorkflowReadiness,
)
from gateway.backends.runpod_api import Counts, RunpodApi
from gateway.backends.runpod_follow import GONE_S, Follower, Receipts, Rows, Watch, withheld
from gateway.backends.runpod_previews import Looks
from gateway.backends.runpod_submit import SETTLING_S, Addresses, Submits
from gateway.clock import Clock
from gateway.job import Produced, Run
from gateway.storage.base import StorageError
from gpu_server.protocol import Failure, Missing, Preview
from gpu_server.workflow import Workflow

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 10.0
_LOOK_WHILE_AWAY_S = 3.0
_LACKS_S = 600.0
"""How long an endpoint is believed to lack what a worker there has not found."""


def name_of(endpoint: str) -> str:
    """Name of the backend of an endpoint; runs keep it."""
    return f"runpod:{endpoint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One serverless endpoint and what it is for."""

    id: str
    url: str
    """Of RunPod's API, with the endpoint's id."""
    key: str
    workflows: Mapping[str, Workflow]
    """What it carries out, by name."""
    max_jobs: int
    queue_s: float
    previews: bool = True
    """Its workers are asked for previews."""

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"Endpoint({self.id})"


class Runpod:
    """One serverless endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        http: httpx.AsyncClient,
        *,
        receipts: Receipts,
        rows: Rows,
        addresses: Addresses,
        clock: Clock,
        settling_s: float = SETTLING_S,
        gone_s: float = GONE_S,
    ) -> None:
        self.on_change: Callable[[], None] | None = None
        """Called when capacity or readiness are not what they were."""
        self._endpoint = endpoint
        self._name = name_of(endpoint.id)
        self._receipts = receipts
        self._rows = rows
        self._gone_s = gone_s
        self._watch = Watch()
        self._look_now = asyncio.Event()
        self._api = RunpodApi(
            self._name, endpoint.url, endpoint.key, http, on_trouble=self._in_trouble
        )
        self._submits = Submits(
            self._api,
            receipts=receipts,
            rows=rows,
            addresses=addresses,
            workflows=endpoint.workflows,
            clock=clock,
            previews=endpoint.previews,
            settling_s=settling_s,
        )
        self._looks = Looks(self._api)
        self._followers: dict[str, Follower] = {}
        self._counts: Counts | None = None
        self._trouble: str | None = None
        self._engine: str | None = None
        self._lacking: dict[str, tuple[float, Missing]] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Stable name, stored with each run it is granted."""
        return self._name

    @property
    def kind(self) -> Kind:
        """Serverless, at RunPod."""
        return "runpod"

    @property
    def billed(self) -> bool:
        """Each second of each run."""
        return True

    @property
    def capacity(self) -> int:
        """Jobs it holds at once; 0 while it does not answer, or refuses us."""
        return self._endpoint.max_jobs if self._counts is not None else 0

    @property
    def engine(self) -> str | None:
        """What the last run that ended there was carried out by; None before."""
        return self._engine

    @property
    def installed(self) -> None:
        """Nobody knows what its workers have before one of them runs."""
        return

    @property
    def counts(self) -> Counts | None:
        """Its jobs and workers, as last seen; None while it does not answer."""
        return self._counts

    @property
    def trouble(self) -> str | None:
        """Why it takes nothing, in one sentence; None while it does."""
        return self._trouble

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:
        """Whether it can carry out that workflow; None: it is not for it.

        What its workers have shows when one of them lacks it. Another digest is no obstacle:
        graph and manifest are sent along.
        """
        del digest
        if workflow not in self._endpoint.workflows:
            return None
        lacks_until, missing = self._lacking.get(workflow, (0.0, None))
        if missing is not None and asyncio.get_running_loop().time() < lacks_until:
            return WorkflowReadiness(readiness="missing", missing=(missing,))
        return WorkflowReadiness(readiness="ready" if self._counts is not None else "unknown")

    async def start(self, order: Order) -> str:
        """Submit it, or find the job that an earlier submit has made of it."""
        return await self._submits.start(order)

    async def renew(self, order: Order) -> None:
        """Do nothing: the addresses of its start work until its deadline."""

    async def follow(
        self, run_id: str, reference: str
    ) -> AsyncGenerator[Progressed | Produced, None]:
        """What happens to it, looked at every few seconds, or at once after a webhook."""
        self._watch.follow(run_id)
        follower = Follower(
            run_id,
            reference,
            api=self._api,
            receipts=self._receipts,
            rows=self._rows,
            watch=self._watch,
            queue_s=self._endpoint.queue_s,
            gone_s=self._gone_s,
            lacks=self._lacks,
        )
        self._followers[run_id] = follower
        try:
            async with aclosing(follower.events()) as events:
                async for event in events:
                    if isinstance(event, Produced):
                        self._engine = event.engine
                        self._watch.forget(run_id)
                    yield event
        except BackendUnreachable:
            raise
        except BackendError:
            self._over(run_id)
            raise
        finally:
            self._watch.leave(run_id)
            self._followers.pop(run_id, None)

    async def previews(self, run_id: str, reference: str) -> AsyncGenerator[Preview, None]:
        """Show what it looks like so far, as its worker tells it."""
        if not self._endpoint.previews:
            return

        def job() -> str:
            # of two jobs of a run its follower knows which one has it
            follower = self._followers.get(run_id)
            return reference if follower is None else follower.job

        async with aclosing(self._looks.previews(run_id, job)) as previews:
            async for preview in previews:
                yield preview

    async def cancel(self, run_id: str, reference: str | None) -> None:
        """Stop it wherever it is: its job, the one its receipt names, or one yet to be taken."""
        unheard: BackendUnreachable | None = None
        if reference is not None:
            try:
                await self._api.cancel(reference)
            except BackendUnreachable as error:
                # whatever RunPod answers, a job that has not begun must not begin
                unheard = error
        note = await withheld(self._receipts, run_id)
        if note.job is not None and note.job != reference:
            await self._api.cancel(note.job)
        if unheard is not None:
            raise unheard
        self._over(run_id)

    async def forget(self, run_id: str, reference: str) -> None:
        """Remove its receipt, unless another job may still come upon it."""
        del reference
        self._watch.forget(run_id)
        if self._submits.only_once(run_id):
            try:
                await self._receipts.remove(run_id)
            except StorageError as error:
                raise BackendUnreachable(f"a receipt cannot be removed: {error}") from error

    def look_now(self, run_id: str) -> bool:
        """Let whoever follows that run look at once; False where nobody does here."""
        return self._watch.look_now(run_id)

    async def start_watching(self) -> None:
        """Look at the endpoint now, then every 10 s (3 s while it takes nothing)."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._keep_looking(), name=f"watch {self._name}")

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    async def look(self) -> None:
        """Ask once for its counts."""
        before = self.capacity
        try:
            self._counts = await self._api.health()
        except BackendError as error:
            self._counts = None
            self._note(str(error))
        else:
            self._note(None)
        if before != self.capacity and self.on_change is not None:
            self.on_change()

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a dead watcher would freeze the last capacity
                _log.exception("looking at %s", self._name)
            self._look_now.clear()
            pause = _LOOK_EVERY_S if self.capacity else _LOOK_WHILE_AWAY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), pause)

    def _in_trouble(self, why: str) -> None:
        """Take nothing more until it answers a look again."""
        changed = self._counts is not None
        self._counts = None
        self._note(why)
        self._look_now.set()
        if changed and self.on_change is not None:
            self.on_change()

    def _note(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            _log.info("%s answers", self._name)
        else:
            _log.warning("%s", trouble)

    def _over(self, run_id: str) -> None:
        self._submits.forget(run_id)
        self._watch.forget(run_id)

    def _lacks(self, run: Run, failure: Failure) -> None:
        name = run.call.workflow
        workflow = self._endpoint.workflows.get(name)
        if workflow is None:
            return
        until = asyncio.get_running_loop().time() + _LACKS_S
        self._lacking[name] = (until, _missing(workflow, failure))
        _log.warning("%s cannot carry out %s: %s", self._name, name, failure.message)
        if self.on_change is not None:
            self.on_change()


def _missing(workflow: Workflow, failure: Failure) -> Missing:
    """What a worker's failure says is not there."""
    for model in workflow.models:
        if model.name in failure.message:
            return Missing(
                kind="model",
                name=model.name,
                directory=model.directory,
                url=model.url,
                bytes=model.bytes,
                license=model.license,
            )
    kind = "node" if failure.code == "missing_node" else "model"
    return Missing(kind=kind, name=failure.message.removeprefix("ComfyUI lacks "))
