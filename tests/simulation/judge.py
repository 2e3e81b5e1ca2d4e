"""What must hold beyond the rows: executions, files, and what callers were told."""

from typing import TYPE_CHECKING, Any

from gateway.backends.base import Order
from gateway.job import JOB_TERMINAL, RUN_TERMINAL
from tests.simulation.gpu import Execution
from tests.simulation.ledger import JobBook
from tests.simulation.process import PROCESS
from tests.simulation.store import content

if TYPE_CHECKING:
    from tests.simulation.world import World

STOP_WITHIN_S = 25.0
"""An ended job's execution stops within this time once nothing hinders it."""

ASKED_S = 2.0
"""A request that went unanswered began at most so long ago."""


class Judge:
    """The journal of executions and the rules about it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.executions: dict[str, list[Execution]] = {}
        self.stages: dict[str, int] = {}
        """How many stages each job has."""
        self._silent_since: dict[tuple[str, str], float] = {}
        """By gateway and run."""
        self._given_up: set[str] = set()
        self._in_doubt: set[str] = set()
        """Runs whose start went unanswered once: it may take effect at any time."""

    def contact(self, run_id: str) -> None:
        """A service has answered a gateway about a run."""
        self._silent_since.pop((_asker(), run_id), None)

    def no_contact(self, run_id: str) -> None:
        """A gateway's request about a run went unanswered."""
        now = self._world.loop.time()
        since = self._silent_since.setdefault((_asker(), run_id), now - ASKED_S)
        if now - since >= self._patience() - 1:
            self._given_up.add(run_id)

    def _patience(self) -> float:
        return self._world.plan.settings["backend_lost_after_s"]

    def _was_unreachable(self, run_id: str) -> bool:
        now = self._world.loop.time()
        return run_id in self._given_up or any(
            now - since >= self._patience() - 1
            for (_, asked), since in self._silent_since.items()
            if asked == run_id
        )

    def asked_to_start(self, run_id: str, *, again: bool) -> None:
        """A gateway asks a service to begin a run; `again`: it knows of an unanswered start."""
        row = self._world.ledger.runs.get(run_id)
        if row is None:
            if not self._world.ever_deleted:
                self._world.breach(f"run {run_id[:8]} was started without a row")
        elif row["owner"] == self._world.ledger.replicas.get(_asker()):
            # a zombie does not know yet that the run has gone on without it
            if row["state"] == "waiting":
                self._world.breach(f"run {run_id[:8]} was started before it was granted")
            elif run_id in self._in_doubt and not again:
                self._world.breach(f"run {run_id[:8]} was submitted blindly a second time")

    def start_unanswered(self, run_id: str) -> None:
        """Nobody knows whether a start has taken effect, or will."""
        self._in_doubt.add(run_id)

    def forgotten(self, run_id: str) -> None:
        """A service is told that a run's files are safe."""
        row = self._world.ledger.runs.get(run_id)
        if row is not None and row["state"] not in RUN_TERMINAL:
            self._world.breach(f"run {run_id[:8]} was forgotten while {row['state']}")

    def execution_began(self, execution: Execution) -> None:
        """A run begins to execute: the GPU's time is being spent."""
        every = self.executions.setdefault(execution.job_id, [])
        for other in (other for other in every if other.stage == execution.stage):
            excused = (
                other.fate in ("lost", "transient", "spoiled")
                # begun by a start that nobody saw answered, and stopped before the next one
                or (other.fate == "cancelled" and other.run_id in self._in_doubt)
                # what is paid for by the run is waited for, whoever is silent
                or (not other.billed and self._was_unreachable(other.run_id))
                # begun by a request that came too late: its service was given up long ago
                or (
                    other.run_id != execution.run_id
                    and not execution.billed
                    and execution.run_id in self._given_up
                )
            )
            if not excused:
                self._world.breach(
                    f"job {execution.job_id[:8]} executes again as run {execution.run_id[:8]} "
                    f"although run {other.run_id[:8]} is {other.fate}"
                )
        every.append(execution)
        self._world.executions += 1

    def reads(self, execution: Execution, order: Order) -> None:
        """A stage begins: the one before is done, and its file is there as it was made."""
        book = self._world.ledger.jobs[execution.job_id]
        runs = self._world.ledger.runs.values()
        done = {
            run["stage"]: run["id"]
            for run in runs
            if run["job_id"] == execution.job_id and run["state"] == "delivered"
        }
        if book.ended_at is not None or book.deleted or execution.stage in done:
            # a start that comes too late: what it would read may have gone
            return
        name = f"job {execution.job_id[:8]}: stage {execution.stage}"
        if sorted(done) != list(range(execution.stage)):
            self._world.breach(f"{name} executes after {sorted(done)}")
        for files in order.inputs.values():
            made = content(f"{done.get(execution.stage - 1)} image/0")
            found = [self._world.store.at(file.url) for file in files]
            if found != [made] or [file.sha256 for file in files] != [made.sha256]:
                self._world.breach(f"{name} reads {found}, the stage before made {made}")

    def execution_ended(self, execution: Execution) -> None:
        """It ended, in whatever way: an ended job's must have been stopped in time."""
        book = self._world.ledger.jobs.get(execution.job_id)
        if book is not None and book.ended_at is not None:
            self._check_stopped(execution, book.ended_at)

    def _check_stopped(self, execution: Execution, ended_at: float) -> None:
        world = self._world
        until = execution.ended if execution.ended is not None else world.loop.time()
        calm = max(ended_at, execution.began, world.disturbed_at)
        if until - calm > STOP_WITHIN_S:
            world.breach(
                f"run {execution.run_id[:8]} executed {until - calm:.0f} s longer than its job "
                f"{execution.job_id[:8]}"
            )

    def completed(self, job_id: str, book: JobBook, runs: list[dict[str, Any]]) -> None:
        """A job is completed: each stage once, the last one's files whole and in place."""
        name = f"job {job_id[:8]}"
        delivered = sorted((run["stage"], run["id"]) for run in runs if run["state"] == "delivered")
        if [stage for stage, _ in delivered] != list(range(self.stages[job_id])):
            self._world.breach(f"{name} is completed with the delivered runs {delivered}")
            return
        executed = {e.run_id: e for e in self.executions.get(job_id, [])}
        for _, run_id in delivered:
            if run_id not in executed:
                self._world.breach(f"{name} is completed by run {run_id[:8]} that never executed")
                return
        made = executed[delivered[-1][1]]
        told = {f"{file['output']}/{file['n']}": file["sha256"] for file in book.artifacts}
        if told != {slot: data.sha256 for slot, data in made.files.items()}:
            self._world.breach(f"{name} stores other files than its run made: {told}")
        for file in book.artifacts:
            stored = self._world.store.files.get(file["key"])
            if stored is None or (stored.bytes, stored.sha256) != (file["bytes"], file["sha256"]):
                self._world.breach(f"{name} is completed but {file['key']} is {stored}")

    def last_words(self) -> None:
        """Everything has come to rest: nobody is left over."""
        world = self._world
        for job_id, book in world.ledger.jobs.items():
            if book.deleted:
                continue
            if book.row["status"] not in JOB_TERMINAL:
                runs = [run for run in world.ledger.runs.values() if run["job_id"] == job_id]
                world.breach(f"job {job_id[:8]} never ended: {book.row}, {runs}")
            elif len(book.events) != book.row["events"]:
                world.breach(f"job {job_id[:8]} counts {book.row['events']} events: {book.events}")
            if not world.plan.faults and book.row["status"] != "completed":
                world.breach(f"job {job_id[:8]} is {book.row['status']} although nothing failed")
        for executions in self.executions.values():
            for execution in executions:
                if execution.fate == "running":
                    self._running_on(execution)

    def _running_on(self, execution: Execution) -> None:
        book = self._world.ledger.jobs.get(execution.job_id)
        if book is not None and book.ended_at is not None:
            self._check_stopped(execution, book.ended_at)


def _asker() -> str:
    process = PROCESS.get()
    return "" if process is None else process.name
