"""What a job, its runs and its files are, and the moves their states may make.

Values only: no I/O, no SQL. The tables live in `gateway.db`, the rules in `gateway.jobs`.
"""

import os
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from gpu_server.protocol import FailureKind, FileOptions, OutputFile

JobStatus = Literal["pending", "processing", "completed", "failed", "cancelled"]
JOB_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    "pending": frozenset({"processing", "completed", "failed", "cancelled"}),
    "processing": frozenset({"completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
JOB_TERMINAL: frozenset[JobStatus] = frozenset({"completed", "failed", "cancelled"})

RunState = Literal["waiting", "granted", "started", "produced", "delivered", "failed", "cancelled"]
RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    "waiting": frozenset({"granted", "failed", "cancelled"}),
    # a granted run goes back to waiting when its backend refuses it for lack of room
    "granted": frozenset({"waiting", "started", "failed", "cancelled"}),
    # straight to delivered where storage answers at once; produced is kept while it does not
    "started": frozenset({"produced", "delivered", "failed", "cancelled"}),
    "produced": frozenset({"delivered", "failed", "cancelled"}),
    "delivered": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
RUN_TERMINAL: frozenset[RunState] = frozenset({"delivered", "failed", "cancelled"})


def new_job_id() -> str:
    """A time-ordered UUID, version 7 (RFC 9562 §5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (7 << 76)
    value = (value & ~(0x3 << 62)) | (2 << 62)
    return str(uuid.UUID(int=value))


def run_id(job_id: str, stage: int, attempt: int) -> str:
    """The one id a run carries through every hop, down to ComfyUI's `prompt_id`."""
    if stage == 0 and attempt == 0:
        return job_id
    return str(uuid.uuid5(uuid.UUID(job_id), f"{stage}:{attempt}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed, in the vocabulary of `/docs/errors`."""

    code: str
    message: str
    kind: FailureKind = "fatal"


INPUTS_PREFIX = "inputs"
"""Key prefix of files that came inside a call."""
UPLOADS_PREFIX = "uploads"
"""Key prefix of files that callers uploaded."""
THUMBNAILS_PREFIX = "thumbs"
"""Key prefix of what is made of files to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file a job reads: one in our storage (`key`), or at an address of the caller's (`url`).

    One that the stage before makes (`slot`) has a key once that stage is done.
    """

    media_type: str
    """Of a foreign file only what its name and its parameter suggest."""
    url: str | None = None
    key: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    size: tuple[int, int] | None = None
    """Width and height of a picture, where they are known."""
    stored: bool = False
    """It came with the call itself and lies in storage for this job alone."""
    slot: str | None = None
    """The slot of the stage before that it comes from."""

    @property
    def in_bucket(self) -> bool:
        """Whether `url` is the address of a file in a bucket, which each run gets a link to."""
        return self.url is not None and self.url.startswith(("r2:", "s3:", "gs:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a tool asks a backend to do, complete: every default filled, the seed drawn."""

    workflow: str
    digest: str
    params: dict[str, JsonValue]
    outputs: tuple[str, ...]
    """Slot names, `<output>/<n>`, as many as the workflow may fill."""
    prefix: str
    """Key prefix of the files it makes (`generated`, `masks`, …)."""
    models: tuple[str, ...] = ()
    """Model files it loads, for placement by what is loaded already."""
    extensions: dict[str, str] = field(default_factory=dict[str, str])
    """File name extension by output, without the dot; `png` where an output is not named."""
    timeout_s: float = 3600
    inputs: dict[str, tuple[Source, ...]] = field(default_factory=dict[str, tuple[Source, ...]])
    """Files it reads, by parameter; absent from rows of former versions."""
    files: FileOptions = field(default_factory=FileOptions)
    """How the files it makes are handed over; absent from rows of former versions."""
    sent_as: dict[str, str] = field(default_factory=dict[str, str])
    """What the caller calls a parameter of `inputs` that has another name here."""
    ends_at: float = 1.0
    """How far its job is, 0..1, once this stage is done."""
    then: "Call | None" = None
    """The next stage of its job; absent from rows of former versions."""

    @property
    def stages(self) -> "tuple[Call, ...]":
        """This call and those that follow it."""
        found: list[Call] = [self]
        while (following := found[-1].then) is not None:
            found.append(following)
        return tuple(found)

    @property
    def made_inputs(self) -> dict[str, tuple[Source, ...]]:
        """Of the files it reads, those that the stage before makes."""
        return {
            param: sources
            for param, sources in self.inputs.items()
            if any(source.slot is not None for source in sources)
        }

    def as_sent(self, place: str) -> str:
        """Name a parameter of `inputs`, `<name>` or `<name>.<n>`, as the caller does."""
        param, dot, number = place.partition(".")
        return self.sent_as.get(param, param) + dot + number


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job about to be written."""

    id: str
    tool: str
    variant: str
    caller: str
    params: dict[str, JsonValue]
    """What the caller sent, as validated: shown again in the result."""
    call: Call
    deadline_s: float
    priority: int = 0
    places: tuple[str, ...] | None = None
    """Kinds or names of backends it may go to, in order; None: as the settings say."""
    size: float | None = None
    """How much work it is, in its tool's own units."""
    eta_seconds: float | None = None
    """When it should be done, as told to the caller."""
    webhook_url: str | None = None
    batch_id: str | None = None
    batch_n: int | None = None
    """Its place in its batch, from 0."""
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file a job produced, in storage, verified."""

    job_id: str
    output: str
    n: int
    key: str
    filename: str
    media_type: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    faces: int | None = None
    removed_at: datetime | None = None
    """When it was given up; it may lie there for a moment still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A run is over on its backend and its files lie in their slots."""

    outputs: tuple[OutputFile, ...]
    params: dict[str, JsonValue]
    engine: str
    duration_seconds: float
    texts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a completed job, or what is done of it so far, is described by, beside its files."""

    params: dict[str, JsonValue]
    engine: str
    backend: str
    duration_seconds: float
    texts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def after(self, before: "Outcome | None") -> "Outcome":
        """What the stages have come to together.

        Engine and place are those of the first stage, the others only work on what it made; but a
        simulator in any of them is told.
        """
        if before is None:
            return self
        simulated = "simulator" in {before.engine, self.engine}
        return Outcome(
            params={**before.params, **self.params},
            engine="simulator" if simulated else before.engine,
            backend=before.backend,
            duration_seconds=round(before.duration_seconds + self.duration_seconds, 3),
            texts={**before.texts, **self.texts},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One durable call of one tool, as the API shows it."""

    id: str
    tool: str
    variant: str
    caller: str
    status: JobStatus
    progress: float
    params: dict[str, JsonValue]
    call: Call
    outcome: Outcome | None
    """While it is processing, that of the stages done so far."""
    error: JobError | None
    artifacts: tuple[Artifact, ...]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    priority: int = 0
    size: float | None = None
    eta_seconds: float | None = None
    webhook_url: str | None = None
    batch_id: str | None = None
    batch_n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a job on a backend, and how far it got."""

    id: str
    job_id: str
    stage: int
    attempt: int
    state: RunState
    caller: str
    priority: int
    call: Call
    """That of its stage, with the files the stage before made."""
    backend: str | None
    reference: str | None
    produced: Produced | None
    """What the backend handed over; set from `produced` on."""
    owner: str | None
    epoch: int
    """Raised with each change of owner: a write under an older one matches no row."""
    failures: int
    """Transient failures of the stage so far; `max_attempts` of them end the job."""
    deaths: int
    """Unclean deaths of a process that was working on the job; `max_deaths` of them end it."""
    executed: bool
    """It was seen executing on its backend."""
    created_at: datetime
    not_before: datetime
    deadline_at: datetime
    handed_over: bool = False
    """It changed owner while `granted`: the former one may have asked its backend to start it."""
    begins_at: float = 0.0
    """How far its job is, 0..1, when its stage begins."""
    before: Outcome | None = None
    """What the stages before came to."""
    places: tuple[str, ...] | None = None
    """Kinds or names of backends its call asked for."""
    choice: str | None = None
    """Why it was given the place it has."""

    def progress(self, fraction: float) -> float:
        """How far its job is when this run is that far."""
        return self.begins_at + (self.call.ends_at - self.begins_at) * fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One entry of a job's log: a state change or a decision, in order of `n`."""

    job_id: str
    n: int
    type: str
    data: dict[str, JsonValue]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs a list asks for, newest first; what is None does not narrow it."""

    caller: str | None = None
    tool: str | None = None
    status: JobStatus | None = None
    since: datetime | None = None
    """Created at this time or later."""
    cursor: str | None = None
    """`next_cursor` of the page before."""
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a list of jobs."""

    items: tuple[Job, ...]
    next_cursor: str | None
    """None on the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCounts:
    """How much work this gateway has open."""

    waiting: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A LoRA in the registry: what `model_id` stands for."""

    id: int
    name: str
    lora: str
    """File name as ComfyUI lists it under `loras`."""
    trigger_word: str | None
    base_model: str
    """The variant it fits (`flux1-dev`, `z-image-turbo`, `checkpoint:<file>`)."""
    created_at: datetime
