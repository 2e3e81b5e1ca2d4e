"""The wire contract between gateway, GPU service and serverless worker.

Every message is closed (unknown fields are refused) and frozen. A field added later is optional
and is sent only to a service whose `/health` lists it under `protocol`, so that old and new
versions talk to each other during a deploy.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

VERSION = 1
"""Version of this contract; a service refuses a request of another one."""

MAX_SLOTS = 64
"""Most output slots one run can carry."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

ParamName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Wire(BaseModel):
    """Base of every message: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkflowRef(Wire):
    """A workflow both sides have on disk, named together with what it must contain."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")
    digest: Sha256
    """SHA-256 over the graph file, a zero byte and the manifest file."""


class InputFile(Wire):
    """A file the run reads, fetched by the GPU side."""

    url: str
    media_type: str
    sha256: Sha256 | None = None
    ours: bool | None = None
    """The gateway made this address, it is fetched wherever it leads; False: a caller's, which is
    checked. For a service whose `/health` lists `ours`; None: a former gateway."""


class ModelFile(Wire):
    """A model the run needs and the GPU side may lack."""

    directory: str
    name: str
    url: str
    sha256: Sha256
    bytes: int = Field(ge=0)


PictureFormat = Literal["png", "webp", "jpeg"]


class FileOptions(Wire):
    """How a file is handed over; only for a service whose `/health` lists `files`."""

    format: PictureFormat | None = None
    """What a picture is turned into; None: it stays what ComfyUI made. Other files stay anyway."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """Of WebP and JPEG; None: the service's own."""
    keep_metadata: bool = False
    """Leave prompt and workflow in the file, where ComfyUI writes them."""


class Slot(FileOptions):
    """Where one output file goes: `<output>/<n>` and the address that takes its bytes by PUT."""

    name: str = Field(pattern=r"^[a-z0-9_]+/[0-9]+$")
    url: str
    sized: bool = False
    """It takes only bodies that state their length, and is a store whose refusals may pass; for a
    service whose `/health` lists `sized`, like `content_md5`."""
    content_md5: bool = False
    """It compares the body with its `Content-MD5`; the answer then tells `md5`."""


class Receipt(Wire):
    """Where a serverless worker writes down that it has taken a run, and how it ended.

    The file is a `ReceiptNote` as JSON: nobody else could tell a caller that heard no answer to its
    submit whether there is a job, or what a job made that its provider has forgotten.
    """

    get: str
    """Address of the file by GET; 404 while there is none."""
    put: str
    """Address that takes its bytes by PUT, several times."""


class ReceiptNote(Wire):
    """What stands in a receipt."""

    job: str | None = None
    """The provider's id of the job that took the run."""
    cancelled: bool = False
    """The gateway's word to a job that has not begun: it must not."""
    status: "RunStatus | None" = None
    """How the run ended; None: it may be executing."""


class RunRequest(Wire):
    """Everything one execution needs; `PUT /runs/{run_id}`."""

    version: Literal[1] = VERSION
    workflow: WorkflowRef | None = None
    graph: dict[str, JsonValue] | None = None
    manifest: dict[str, JsonValue] | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[ParamName, list[InputFile]] = Field(default_factory=dict)
    models: list[ModelFile] = Field(default_factory=list[ModelFile])
    outputs: list[Slot] = Field(default_factory=list[Slot], max_length=MAX_SLOTS)
    timeout_s: float = Field(default=3600, gt=0, le=86_400)
    traceparent: str | None = None
    details: bool = False
    """Tell `duration_s` and `faces` of files too (`/health` lists `files`): a former gateway
    refuses an answer that has them."""
    patient: bool = False
    """Keep trying to deliver for as long as storage is away: whoever asked ends the run in time,
    and is told of it by `waits_for` (`/health` lists `sized`)."""
    receipt: Receipt | None = None
    """For the serverless worker, which reads it before it begins."""
    previews: bool = False
    """For the serverless worker: put `PreviewChunk`s into the job's stream while it runs."""

    @model_validator(mode="after")
    def _one_source(self) -> "RunRequest":
        inline = self.graph is not None and self.manifest is not None
        if (self.graph is None) != (self.manifest is None):
            raise ValueError("graph and manifest go together")
        if self.workflow is None and not inline:
            raise ValueError("name a workflow or send graph and manifest inline")
        return self


FailureKind = Literal["usage", "transient", "fatal"]
"""usage: the caller's fault, not retried · transient: next attempt · fatal: ours, not retried."""


class Failure(Wire):
    """Why a run failed, in words fit for a caller: never ComfyUI's own text."""

    kind: FailureKind
    code: str
    message: str
    node: str | None = None
    """`<node id> <class_type>` where one node is to blame."""


RunState = Literal["queued", "running", "completed", "failed", "cancelled"]
TERMINAL: frozenset[RunState] = frozenset({"completed", "failed", "cancelled"})
Engine = Literal["comfyui", "simulator"]


class Progress(Wire):
    """How far a run got; `fraction` never goes back."""

    fraction: float = Field(ge=0, le=1)
    node: str | None = None
    step: int | None = None
    steps: int | None = None
    waits_for: Literal["storage"] | None = None
    """ComfyUI is done, and what is left is that storage takes the files; told to the `patient`."""


class OutputFile(Wire):
    """A file that now lies in its slot: the sender's own count and hash of the bytes it sent."""

    slot: str
    media_type: str
    bytes: int = Field(ge=0)
    sha256: Sha256
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    faces: int | None = None
    """Triangles of a mesh."""
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    """Told where the slot asked for it."""


class RunStatus(Wire):
    """What `GET /runs/{run_id}` and every `PUT` answer."""

    run_id: str
    state: RunState
    engine: Engine | None = None
    progress: Progress = Progress(fraction=0)
    outputs: list[OutputFile] = Field(default_factory=list[OutputFile])
    texts: dict[str, list[str]] = Field(default_factory=dict)
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """Every value really used, the seed included."""
    failure: Failure | None = None
    executed: bool = False
    """ComfyUI has begun to execute it (a lost run that never began counts no execution)."""
    duration_seconds: float | None = None


# it names a message that is described further down
ReceiptNote.model_rebuild()

Readiness = Literal["ready", "missing", "unknown"]


class Missing(Wire):
    """One thing a workflow lacks on this GPU service, and how to get it."""

    kind: Literal["model", "node", "invalid"]
    name: str
    """Model file, class_type, or the place in the graph that does not fit."""
    directory: str | None = None
    url: str | None = None
    bytes: int | None = None
    license: str | None = None
    detail: str | None = None


class WorkflowStatus(Wire):
    """Readiness of one workflow."""

    name: str
    digest: Sha256
    readiness: Readiness
    missing: list[Missing] = Field(default_factory=list[Missing])


class Workflows(Wire):
    """What `GET /workflows` answers."""

    engine: Engine | None
    workflows: list[WorkflowStatus]
    installed: dict[str, list[str]] | None
    """Model files ComfyUI lists, by folder: `checkpoints`, `loras`; while it is away those it
    listed last, None before it was ever asked."""


class WorkflowToCheck(Wire):
    """A workflow that is in no files here, by the digest of its content."""

    digest: Sha256
    """`content_digest` of graph and manifest."""
    graph: dict[str, JsonValue] | None = None
    manifest: dict[str, JsonValue] | None = None
    """Both absent: only asked for, it may be known from an earlier check."""


class CheckRequest(Wire):
    """`POST /workflows/check`, for a service whose `/health` lists `check`."""

    workflows: list[WorkflowToCheck] = Field(max_length=100)
    refresh: bool = False
    """Ask ComfyUI anew instead of going by what it answered last."""


class CheckedWorkflow(Wire):
    """How ready ComfyUI is for one of them."""

    digest: Sha256
    known: bool
    """False: send graph and manifest along."""
    readiness: Readiness = "unknown"
    missing: list[Missing] = Field(default_factory=list[Missing])


class CheckAnswer(Wire):
    """What `POST /workflows/check` answers, in the order asked."""

    workflows: list[CheckedWorkflow]


class NodesRequest(Wire):
    """`POST /nodes`, for a service whose `/health` lists `check`."""

    classes: list[Annotated[str, Field(max_length=200)]] = Field(max_length=4000)


class NodesAnswer(Wire):
    """What ComfyUI says of node classes now; those it does not have are left out."""

    nodes: dict[str, JsonValue]


class Health(Wire):
    """What `GET /health` answers; HTTP 503 only when unhealthy."""

    status: Literal["healthy", "degraded", "unhealthy"]
    comfyui_available: bool
    service: Literal["gpu_server"] = "gpu_server"
    version: str
    protocol: list[str]
    """Optional parts of this contract the service understands, plus `v1`."""
    engine: Engine | None = None
    comfyui_version: str | None = None
    capacity: int = Field(ge=0)
    """Runs this service keeps in ComfyUI at once (`QUEUE_AHEAD`); more is 429."""
    detail: str | None = None
    """Why it is degraded, and what is not cleaned, in one sentence each."""


class Preview(Wire):
    """What a run's picture looks like so far."""

    media_type: Literal["image/jpeg", "image/png"]
    data: str = Field(max_length=98_000)
    """The file in base64."""


class PreviewChunk(Wire):
    """What the serverless worker puts into its job's stream, far below the 1 MB of a chunk.

    Whether a chunk is handed out once or with every answer is its provider's affair.
    """

    run_id: str
    take: str
    """Which execution it is of: a job may be handed out again, to another worker."""
    seq: int = Field(ge=1)
    """Grows with each preview of one execution."""
    preview: Preview


class Event(Wire):
    """One server-sent event of `GET /runs/{run_id}/events`; SSE `event:` is `type`, `data:` this.

    The stream begins with the present state and ends after a `completed`, `failed` or `cancelled`.
    With `?previews=1` (`/health` lists `previews` under `protocol`) it also tells the latest
    preview, at most two a second, if ComfyUI makes any.
    """

    type: Literal["progress", "preview", "output", "completed", "failed", "cancelled"]
    progress: Progress | None = None
    preview: Preview | None = None
    output: OutputFile | None = None
    status: RunStatus | None = None
    """The whole run, on the last event."""
