"""How an attempt ends that delivers nothing: another one follows, or the job fails with it."""

import logging
from datetime import timedelta

from gateway.backends.base import BackendFull, RunCancelled, RunFailed, RunLost
from gateway.job import JobError, Run
from gateway.jobs.fetches import blamed
from gateway.jobs.files import NotDelivered
from gateway.jobs.patience import backoff
from gateway.jobs.shared import Engine

_log = logging.getLogger(__name__)

_NOT_BEGUN = frozenset({"not_taken_up"})
"""Failures that use no attempt up where nothing was executed: it waits on, until its deadline."""


class BackendLost(Exception):
    """It has not answered for too long, or is not configured any more."""


class Ending:
    """The end of one attempt; its methods raise OwnershipLost.

    `executed`: it was seen executing on its backend.
    """

    def __init__(self, engine: Engine, run: Run, *, executed: bool) -> None:
        self._engine = engine
        self._run = run
        self._executed = executed

    async def stopped_by(self, error: Exception) -> None:
        """Write down what an error means; foreign ones are logged."""
        engine, run = self._engine, self._run
        match error:
            case BackendFull():
                await self._put_back()
            case RunLost():
                await self._lost(executed=error.executed)
            case RunFailed():
                await self._failed(error)
            case RunCancelled():
                await engine.rows.cancelled(run, engine.clock.now())
            case BackendLost():
                await self._again("backend_unreachable", str(error), tell_backend=True)
            case NotDelivered():
                _log.warning("run %s: %s", run.id, error)
                message = "A result file did not reach storage as it was sent."
                await self._again("output_missing", message, failed=True)
            case _:
                _log.error("run %s: not foreseen by the contracts", run.id, exc_info=error)
                message = "Something went wrong on our side."
                await self._again("internal_error", message, failed=True, tell_backend=True)

    async def _put_back(self) -> None:
        engine, run = self._engine, self._run
        pause = timedelta(seconds=engine.settings.backend_full_pause_s)
        await engine.rows.put_back(run, not_before=engine.clock.now() + pause)
        engine.placement.pause(run.backend or "")

    async def _failed(self, error: RunFailed) -> None:
        last = self._run.failures + 1 >= self._engine.settings.max_attempts
        failure = blamed(self._run.call, error.failure, last=last)
        self._executed = self._executed or error.executed
        # refused now, but an earlier start of it may still come and be taken
        tell = self._run.state == "granted" and self._run.id in self._engine.doubtful
        if failure.kind != "transient" or self._no_better(failure.code):
            job_error = JobError(code=failure.code, message=failure.message, kind=failure.kind)
            await self._end(job_error, tell_backend=tell)
        else:
            counts = failure.code not in _NOT_BEGUN or self._executed
            await self._again(failure.code, failure.message, failed=counts, tell_backend=tell)

    def _no_better(self, code: str) -> bool:
        """Memory was freed after the first time: what fails so again is too large."""
        return code == "out_of_memory" and self._run.failures > 0

    async def _lost(self, *, executed: bool) -> None:
        """It is known to be gone there: only now may it be done again."""
        self._executed = self._executed or executed
        if self._executed and self._run.deaths + 1 >= self._engine.settings.max_deaths:
            await self.poisoned()
            return
        message = "The run was lost where it ran."
        # the service may have lost it while ComfyUI still has it
        await self._again("run_lost", message, died=self._executed, tell_backend=True)

    async def poisoned(self) -> None:
        """Too many processes died of it."""
        message = (
            f"The process working on this job died {self._engine.settings.max_deaths} times, so it "
            "is not tried again."
        )
        await self._end(JobError(code="poison", message=message), tell_backend=True)

    async def overdue(self, *, at_storage: bool) -> None:
        """Its deadline has passed; `at_storage`: with only its files to be kept."""
        error = _storage_unavailable() if at_storage else deadline_exceeded()
        await self._end(error, tell_backend=True)

    async def _end(self, error: JobError, *, tell_backend: bool = False) -> None:
        engine = self._engine
        await engine.rows.failed(self._run, error, engine.clock.now(), tell_backend=tell_backend)
        if tell_backend:
            engine.tell_backends()

    async def _again(
        self,
        code: str,
        message: str,
        *,
        failed: bool = False,
        died: bool = False,
        tell_backend: bool = False,
    ) -> None:
        """Let the next attempt wait, or end the job when this was its last."""
        engine, run, settings = self._engine, self._run, self._engine.settings
        error = JobError(code=code, message=message, kind="transient")
        failures = run.failures + failed
        if failures >= settings.max_attempts:
            await self._end(error, tell_backend=tell_backend)
            return
        first_s, longest_s = settings.retry_backoff_s, settings.retry_backoff_max_s
        wait_s = backoff(run.attempt, first_s, longest_s, engine.rng)
        now = engine.clock.now()
        await engine.rows.next_attempt(
            run,
            error,
            failures=failures,
            deaths=run.deaths + died,
            not_before=now + timedelta(seconds=wait_s),
            now=now,
            tell_backend=tell_backend,
        )
        engine.placement.wake_in(wait_s)
        if tell_backend:
            engine.tell_backends()


def _storage_unavailable() -> JobError:
    return JobError(
        code="storage_unavailable",
        message="The work was done, but storage did not take the files before the job's deadline.",
        kind="transient",
    )


def deadline_exceeded() -> JobError:
    """Why a job ends that took longer than it may."""
    return JobError(code="deadline_exceeded", message="The job was not done before its deadline.")
