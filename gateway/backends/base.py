"""The seam between jobs and the places where runs are carried out.

Contract, for every implementation:
* `start` is idempotent on `order.run_id`: a second call adopts what the first one began, and its
  files go to the slots of the newest call. `renew` does the same and never begins a run.
* `follow` may be called again after a crash, by another process; it yields the present state at
  once, then progress that never goes back, and ends with exactly one `Produced`.
* Only the errors below leave a backend; everything foreign is translated inside it.
* `cancel` of a finished or unknown run is no error; `forget` likewise.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from gateway.job import Call, Produced
from gpu_server.protocol import Failure, InputFile, Missing, Preview, Slot


class BackendError(Exception):
    """Base of what a backend may raise."""


class BackendUnreachable(BackendError):
    """No answer: the run may well go on there, so look again before doing anything else."""


class BackendFull(BackendError):
    """It takes no more runs now; `start` had no effect."""


class RunLost(BackendError):
    """The backend answers and does not know the run: it never had it or lost it.

    Also what it is when the engine behind the backend died with the run: `executed` says that it
    had begun to execute there, which counts as a death of the run (three of them end the job).
    """

    def __init__(self, message: str = "", *, executed: bool = False) -> None:
        super().__init__(message)
        self.executed = executed


class RunFailed(BackendError):
    """The run ended in failure there."""

    def __init__(self, failure: Failure, *, executed: bool) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.executed = executed
        """It had begun to execute: what it cost is spent."""


class RunCancelled(BackendError):
    """The run was cancelled there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run, ready to be carried out."""

    run_id: str
    call: Call
    slots: tuple[Slot, ...]
    inputs: dict[str, tuple[InputFile, ...]] = field(
        default_factory=dict[str, tuple[InputFile, ...]]
    )
    """Addresses of the files it reads, by parameter, made for this start."""
    again: bool = False
    """An earlier start of it went unanswered, here or in a process that is gone: it may have taken
    effect, or may yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far it got, 0..1."""

    fraction: float
    node: str | None = None
    step: int | None = None
    steps: int | None = None
    waits_for: Literal["storage"] | None = None
    """The work is done, and what is left is that storage takes the files."""


Kind = Literal["gpu", "runpod", "cpu"]
Readiness = Literal["ready", "missing", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowReadiness:
    """Whether a backend can carry out one workflow, and what it lacks if not."""

    readiness: Readiness
    missing: tuple[Missing, ...] = ()


class Backend(Protocol):
    """A place where runs are carried out."""

    @property
    def name(self) -> str:
        """Stable name, stored with each run it is granted."""
        ...

    @property
    def kind(self) -> Kind:
        """What settings and callers choose it by, as well as by its name."""
        ...

    @property
    def billed(self) -> bool:
        """Each run is paid for, whoever looks at it.

        Silence does not make such a run lost: only its deadline ends the waiting for an answer.
        """
        ...

    @property
    def capacity(self) -> int:
        """Runs it takes at once; 0 while it is unreachable or not seen yet."""
        ...

    @property
    def engine(self) -> str | None:
        """`comfyui`, `simulator`, `cpu`, or None while not known."""
        ...

    @property
    def installed(self) -> Mapping[str, frozenset[str]] | None:
        """Model files by folder (`loras`, `checkpoints`); None while not known."""
        ...

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:
        """Whether it can carry out that workflow, as last seen; None: such work is not its own."""
        ...

    async def start(self, order: Order) -> str:
        """Begin or adopt the run; its reference there.

        Raises BackendUnreachable, BackendFull, RunFailed.
        """
        ...

    async def renew(self, order: Order) -> None:
        """Let a started run send its files to the slots of this order; one that is over stays so.

        Raises BackendUnreachable, RunLost.
        """
        ...

    def follow(self, run_id: str, reference: str) -> AsyncGenerator[Progressed | Produced, None]:
        """What happens to it. Raises BackendUnreachable, RunLost, RunFailed, RunCancelled."""
        ...

    async def cancel(self, run_id: str, reference: str | None) -> None:
        """Stop it wherever it is. Raises BackendUnreachable."""
        ...

    async def forget(self, run_id: str, reference: str) -> None:
        """Its files are safe with us: it may be removed there. Raises BackendUnreachable."""
        ...


@runtime_checkable
class ShowsPreviews(Protocol):
    """A backend that can show what runs look like so far."""

    def previews(self, run_id: str, reference: str) -> AsyncGenerator[Preview, None]:
        """Show previews of it until it ends; none come where its engine makes none.

        Raises BackendUnreachable, RunLost.
        """
        ...
