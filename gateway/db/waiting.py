"""The rows of runs that wait: a job's first, its next attempt, its next stage."""

from typing import Any

from gateway.db.records import Row, micros
from gateway.job import Call, NewJob, Run, run_id


def first_run(new: NewJob, job: Row, owner: str | None) -> dict[str, Any]:
    """The row of the run a job just submitted begins with; `job` is the job's own row."""
    return waiting_row(
        new.call,
        new.places,
        id=run_id(new.id, 0, 0),
        job_id=new.id,
        stage=0,
        attempt=0,
        caller=new.caller,
        priority=new.priority,
        owner=owner,
        created_at=job["created_at"],
        not_before=job["created_at"],
        deadline_at=job["deadline_at"],
    )


def waiting_row(
    call: Call,
    places: tuple[str, ...] | None,
    **columns: Any,  # noqa: ANN401  # column values
) -> dict[str, Any]:
    """The row of a run that has not begun; what is told apart from the call comes as columns."""
    # left out where there are none: a JSON column would keep the word null, which is a value
    asked = {} if places is None else {"places": list(places)}
    return {
        "state": "waiting",
        "epoch": 0,
        "failures": 0,
        "deaths": 0,
        "workflow": call.workflow,
        "digest": call.digest,
        "models": list(call.models),
        **asked,
        **columns,
    }


def run_after(
    run: Run,
    call: Call,
    *,
    stage: int,
    attempt: int,
    **columns: Any,  # noqa: ANN401  # column values
) -> dict[str, Any]:
    """The row of the run that follows another one of its job: nothing that is the job's changes."""
    return waiting_row(
        call,
        run.places,
        id=run_id(run.job_id, stage, attempt),
        job_id=run.job_id,
        stage=stage,
        attempt=attempt,
        caller=run.caller,
        priority=run.priority,
        owner=run.owner,
        created_at=micros(run.created_at),
        deadline_at=micros(run.deadline_at),
        **columns,
    )
