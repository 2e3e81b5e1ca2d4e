"""One run as this service tells it to the world: its state, and everybody who follows it."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from gpu_server.comfy import ComfyFile
from gpu_server.comfy.preview import PictureType
from gpu_server.protocol import (
    TERMINAL,
    Engine,
    Event,
    Failure,
    OutputFile,
    Preview,
    Progress,
    RunRequest,
    RunState,
    RunStatus,
    Slot,
)
from gpu_server.workflow import Workflow
from gpu_server.workflow.manifest import OutputKind

PREVIEW_EVERY_S = 0.5
"""Least time between two previews to one follower."""


class PlannedOutput(BaseModel):
    """Which node's files a run delivers under one name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    kind: OutputKind
    key: str | None
    min: int
    blank_is_nothing: bool = False


class Plan(BaseModel):
    """What is left to do once parameters and files are in the graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: dict[str, dict[str, Any]]
    params: dict[str, JsonValue]
    outputs: dict[str, PlannedOutput]


class Story:
    """What there is to tell of one run, and everybody who follows it; all that stays at its end."""

    def __init__(self, status: RunStatus, *, finished_at: float | None = None) -> None:
        self.finished_at = finished_at
        """By `time.monotonic`; None while it is not over."""
        self._status = status
        self._changed = asyncio.Event()
        self._preview: Preview | None = None
        self._viewers = 0
        """Followers who want previews."""

    @property
    def run_id(self) -> str:
        """The run's id, ComfyUI's `prompt_id`."""
        return self._status.run_id

    @property
    def status(self) -> RunStatus:
        """The run as of now."""
        return self._status

    @property
    def over(self) -> bool:
        """It has come to its end."""
        return self._status.state in TERMINAL

    async def wait(self) -> RunStatus:
        """Return once the run is over."""
        while not self.over:
            await self._changed.wait()
        return self._status

    async def events(
        self, *, heartbeat_s: float, previews: bool = False
    ) -> AsyncGenerator[Event | None]:
        """Tell the present state, then every change, then the end; None after each silence.

        Nothing is queued for a follower: a slow one is told the newest progress, and each output.
        """
        self._viewers += previews
        try:
            async with aclosing(self._told(heartbeat_s, _Pace() if previews else None)) as events:
                async for event in events:
                    yield event
        finally:
            self._viewers -= previews
            if not self._viewers:
                self._preview = None

    async def _told(self, heartbeat_s: float, pace: "_Pace | None") -> AsyncGenerator[Event | None]:
        told: set[str] = set()
        progress: Progress | None = None
        while True:
            # Taken before the state is read: a change in between wakes the wait below.
            changed, status = self._changed, self._status
            for output in status.outputs:
                if output.slot not in told:
                    told.add(output.slot)
                    yield Event(type="output", output=output)
            if status.state in TERMINAL:
                yield _last(status)
                return
            if status.progress != progress:
                progress = status.progress
                yield Event(type="progress", progress=progress)
            due_s = None
            if pace is not None:
                due_s = pace.due_in(self._preview)
                if due_s == 0:
                    yield Event(type="preview", preview=self._preview)
                    continue
            try:
                async with asyncio.timeout(heartbeat_s if due_s is None else due_s):
                    await changed.wait()
            except TimeoutError:
                if due_s is None:
                    yield None

    def pictured(self, media_type: PictureType, data: bytes) -> None:
        """Show what it looks like so far to those who want to see it."""
        if self._viewers:
            encoded = base64.b64encode(data).decode("ascii")
            self._preview = Preview(media_type=media_type, data=encoded)
            self._wake()

    def _tell(self, status: RunStatus) -> None:
        self._status = status
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Slots:
    """Where a run's files go, by slot name; the addresses may be replaced while it runs."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._slots = {slot.name: slot for slot in slots}
        self._renewed = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def __getitem__(self, name: str) -> Slot:
        return self._slots[name]

    @property
    def renewed(self) -> asyncio.Event:
        """Set at the next renewal; to be taken before a slot is read, so that none is missed."""
        return self._renewed

    def renew(self, slots: Iterable[Slot]) -> None:
        """Take new addresses for slots of the same names, and wake who waits for them."""
        self._slots |= {slot.name: slot for slot in slots if slot.name in self._slots}
        renewed, self._renewed = self._renewed, asyncio.Event()
        renewed.set()


class Run(Story):
    """One run that is carried out here; changed by its executor only."""

    def __init__(
        self,
        run_id: str,
        request: RunRequest,
        *,
        workflow: Workflow | None,
        plan: Plan | None = None,
        deliver: bool = True,
    ) -> None:
        super().__init__(RunStatus(run_id=run_id, state="queued"))
        self.request = request
        self.slots = Slots(request.outputs)
        self.workflow = workflow
        """Where the plan comes from; None for a resumed run, which has its plan."""
        self.plan = plan
        self.deliver = deliver
        """False for a plain call, which reads the produced files itself."""
        self.produced: list[ComfyFile] = []
        self.cancel_asked = False
        self.in_comfyui = False
        self.decided = False
        """How it ends is being written down: a cancel comes too late."""
        self.task: asyncio.Task[None] | None = None
        self._began: float | None = None
        self._at_storage: set[str] = set()

    def renew(self, slots: Iterable[Slot]) -> bool:
        """Send files to these addresses from now on; False when they are the known ones."""
        fresh = {slot.name: slot for slot in slots}
        outputs = [fresh.get(slot.name, slot) for slot in self.request.outputs]
        if outputs == self.request.outputs:
            return False
        self.request = self.request.model_copy(update={"outputs": outputs})
        self.slots.renew(outputs)
        return True

    def planned(self, plan: Plan) -> None:
        """Note the values really used."""
        self.plan = plan
        self._change(params=plan.params)

    def started(self, engine: Engine | None) -> None:
        """ComfyUI executes it."""
        if self._began is None:
            self._began = time.monotonic()
        self._change(state="running", executed=True, engine=engine)

    def stepped(self, progress: Progress) -> None:
        """It got further."""
        self._change(progress=self._waiting(progress))

    def left_comfyui(self) -> None:
        """ComfyUI is done with it."""
        self.in_comfyui = False
        self._look_at_storage()

    def at_storage(self, slot: str, waits: bool) -> None:  # noqa: FBT001 - a callback's argument
        """Whether a file is made and only its slot has yet to take it."""
        (self._at_storage.add if waits else self._at_storage.discard)(slot)
        self._look_at_storage()

    def _look_at_storage(self) -> None:
        progress = self._waiting(self._status.progress)
        if progress != self._status.progress and not self.over:
            self._change(progress=progress)

    def _waiting(self, progress: Progress) -> Progress:
        waits = self.request.patient and not self.in_comfyui and bool(self._at_storage)
        return progress.model_copy(update={"waits_for": "storage" if waits else None})

    def delivered(self, output: OutputFile) -> None:
        """A file lies in its slot."""
        self._change(outputs=[*self._status.outputs, output])

    def said(self, output: str, texts: Iterable[str]) -> None:
        """A node gave text."""
        known = self._status.texts
        self._change(texts={**known, output: [*known.get(output, ()), *texts]})

    def decide(
        self, state: RunState, *, failure: Failure | None = None, engine: Engine | None = None
    ) -> RunStatus:
        """Settle how the run ends and return what `end` will tell."""
        self.decided = True
        changes: dict[str, Any] = {"state": state, "failure": failure}
        if engine is not None:
            changes["engine"] = engine
        if self._began is not None:
            changes["duration_seconds"] = round(time.monotonic() - self._began, 3)
        if state == "completed":
            changes["progress"] = Progress(fraction=1)
            order = {slot.name: n for n, slot in enumerate(self.request.outputs)}
            changes["outputs"] = sorted(self._status.outputs, key=lambda o: order[o.slot])
        return self._status.model_copy(update=changes)

    def end(self, status: RunStatus) -> None:
        """Tell the end; the first one counts."""
        if not self.over:
            self.finished_at = time.monotonic()
            self._tell(status)

    def _change(self, **changes: Any) -> None:  # noqa: ANN401 - fields of RunStatus
        self._tell(self._status.model_copy(update=changes))


class _Pace:
    """Keeps previews to one follower apart; only the latest one counts."""

    def __init__(self) -> None:
        self._shown: Preview | None = None
        self._next = 0.0

    def due_in(self, preview: Preview | None) -> float | None:
        """Seconds until that preview may be sent; 0 = now, and it is; None = it was."""
        if preview is None or preview is self._shown:
            return None
        now = time.monotonic()
        if now < self._next:
            return self._next - now
        self._shown, self._next = preview, now + PREVIEW_EVERY_S
        return 0


def _last(status: RunStatus) -> Event:
    match status.state:
        case "completed":
            return Event(type="completed", status=status)
        case "cancelled":
            return Event(type="cancelled", status=status)
        case _:
            return Event(type="failed", status=status)


def plan_outputs(workflow: Workflow) -> Mapping[str, PlannedOutput]:
    """Read off a workflow what its runs deliver."""
    return {
        name: PlannedOutput(
            node=o.node, kind=o.kind, key=o.key, min=o.min, blank_is_nothing=o.blank_is_nothing
        )
        for name, o in workflow.outputs.items()
    }
