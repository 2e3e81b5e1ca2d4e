"""What RunPod's answers mean for a run; nothing here asks anybody anything."""

from collections.abc import Sequence
from typing import cast

from pydantic import JsonValue, ValidationError

from gateway.backends.base import RunCancelled, RunFailed, RunLost
from gateway.backends.runpod_api import JobTold
from gateway.job import Produced
from gpu_server.protocol import Failure, PreviewChunk, Progress, RunStatus

QUEUED = "IN_QUEUE"
RUNNING = frozenset({"IN_PROGRESS", "RUNNING"})
"""The documents use both words."""
UNFINISHED = frozenset({QUEUED, *RUNNING})

TAKEN_ELSEWHERE = "taken_elsewhere"
"""What a job fails with whose run another job of the endpoint carries out."""
LACKS = frozenset({"missing_model", "missing_node"})
"""Failures that say of an endpoint what it lacks, and nothing of the run."""
_ENGINE_DIED = frozenset({"lost", "comfyui_wedged"})
_CLOSE_S = 1.0
"""By how much RunPod's clock may be off at a time-out."""


def progress_in(output: JsonValue) -> Progress | None:
    """What a worker told of a run under way; None where it told nothing we know."""
    told = _field(output, "progress")
    try:
        return None if told is None else Progress.model_validate(told)
    except ValidationError:
        return None


def newest_preview(chunks: Sequence[JsonValue] | None, run_id: str) -> PreviewChunk | None:
    """The latest preview of that run among the chunks of a stream; None where there is none.

    Of the execution that came last; within it the numbers count, in whatever order they come.
    """
    newest: PreviewChunk | None = None
    for chunk in reversed(chunks or ()):
        try:
            found = PreviewChunk.model_validate(_field(chunk, "output"))
        except ValidationError:
            continue
        if found.run_id != run_id:
            continue
        if newest is None or (found.take == newest.take and found.seq > newest.seq):
            newest = found
    return newest


def status_in(output: JsonValue, run_id: str) -> RunStatus | None:
    """The end of that run as a worker tells it; None where the output is something else."""
    try:
        status = RunStatus.model_validate(output)
    except ValidationError:
        return None
    return status if status.run_id == run_id else None


def failure_in(error: JsonValue) -> Failure | None:
    """The failure that our worker tells as JSON; None where the text is somebody else's."""
    if not isinstance(error, str):
        return None
    try:
        return Failure.model_validate_json(error)
    except ValidationError:
        return None


def ended(status: RunStatus, name: str) -> Produced:
    """What an ended run made. Raises RunFailed, RunLost, RunCancelled."""
    if status.state == "completed":
        return Produced(
            outputs=tuple(status.outputs),
            params=status.params,
            engine=status.engine or "unknown",
            duration_seconds=status.duration_seconds or 0.0,
            texts=status.texts,
        )
    if status.state == "cancelled":
        raise RunCancelled(name)
    if status.failure is None:
        raise worker_failed(executed=status.executed)
    raise failed(status.failure, executed=status.executed)


def failed(failure: Failure, *, executed: bool) -> RunFailed | RunLost:
    """Judge a failure that a worker told."""
    if failure.code in _ENGINE_DIED:
        return RunLost(failure.message, executed=executed)
    return RunFailed(failure, executed=executed)


def worker_failed(*, executed: bool) -> RunFailed:
    """A job ended by a fault of its worker; what RunPod says of it may hold paths and traces."""
    message = "The serverless worker failed before it could say why."
    return RunFailed(
        Failure(kind="transient", code="worker_failed", message=message), executed=executed
    )


def not_taken_up(*, executed: bool = False) -> RunFailed:
    """It waited too long for a worker and was taken back."""
    message = "No serverless worker took the work up in time, so it was taken back."
    return RunFailed(
        Failure(kind="transient", code="not_taken_up", message=message), executed=executed
    )


def result_missing() -> RunFailed:
    """It was carried out, and nobody has what it made."""
    message = "The work was done, but its result is neither at RunPod nor in its receipt."
    return RunFailed(Failure(kind="fatal", code="result_missing", message=message), executed=True)


def timed_out(told: JobTold, limit_s: float | None, *, executed: bool) -> RunFailed | RunLost:
    """Tell a run that took longer than `limit_s` from one whose worker went away with it."""
    took_s = None if told.execution_ms is None else told.execution_ms / 1000
    if None not in {took_s, limit_s} and cast("float", took_s) >= cast("float", limit_s) - _CLOSE_S:
        message = "The execution took longer than it may."
        return RunFailed(Failure(kind="fatal", code="timeout", message=message), executed=True)
    return RunLost("its worker is gone", executed=executed or took_s is not None)


def _field(output: JsonValue, name: str) -> JsonValue:
    return output.get(name) if isinstance(output, dict) else None
