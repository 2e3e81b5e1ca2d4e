"""Rows to values and back: the one place that knows how each value is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import RowMapping

from gateway.backends.base import Produced
from gateway.job import Artifact, Call, Job, JobError, JobEvent, NewJob, Outcome, Run, Source

Row = RowMapping | Mapping[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CALL = TypeAdapter(Call)
_INPUTS = TypeAdapter(dict[str, tuple[Source, ...]])
_OUTCOME = TypeAdapter(Outcome)
_PRODUCED = TypeAdapter(Produced)


def storable(text: str, longest: int | None = None) -> str:
    """A foreign text as a row can hold it: PostgreSQL takes no NUL, and no more than fits."""
    clean = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return clean if longest is None else clean[:longest]


def micros(at: datetime) -> int:
    """A time as it is stored."""
    return (at - _EPOCH) // _MICROSECOND


def moment(stored: int) -> datetime:
    """A stored time."""
    return _EPOCH + stored * _MICROSECOND


def _maybe(stored: int | None) -> datetime | None:
    return None if stored is None else moment(stored)


def call_json(call: Call) -> Any:  # noqa: ANN401  # JSON
    """A call as it is stored."""
    return _CALL.dump_python(call, mode="json")


def inputs_json(inputs: Mapping[str, tuple[Source, ...]]) -> Any:  # noqa: ANN401  # JSON
    """Files a stage reads, as they are stored."""
    return _INPUTS.dump_python(dict(inputs), mode="json")


def outcome_json(outcome: Outcome) -> Any:  # noqa: ANN401  # JSON
    """An outcome as it is stored."""
    return _OUTCOME.dump_python(outcome, mode="json")


def produced_json(produced: Produced) -> Any:  # noqa: ANN401  # JSON
    """What a run produced, as it is stored."""
    return _PRODUCED.dump_python(produced, mode="json")


def job_row(new: NewJob, now: datetime) -> dict[str, Any]:
    """The row of a job just submitted."""
    return {
        "id": new.id,
        "tool": new.tool,
        "variant": new.variant,
        "caller": new.caller,
        "status": "pending",
        "params": new.params,
        "call": call_json(new.call),
        "events": 1,
        "created_at": micros(now),
        "deadline_at": micros(now + timedelta(seconds=new.deadline_s)),
        "priority": new.priority,
        "size": new.size,
        "eta_seconds": new.eta_seconds,
        "webhook_url": new.webhook_url,
        "batch_id": new.batch_id,
        "batch_n": new.batch_n,
    }


def to_job(row: Row, artifacts: Sequence[Artifact] = ()) -> Job:
    """A job from its row."""
    outcome, code = row["outcome"], row["error_code"]
    return Job(
        id=row["id"],
        tool=row["tool"],
        variant=row["variant"],
        caller=row["caller"],
        status=row["status"],
        progress=row["progress"],
        params=row["params"],
        call=_CALL.validate_python(row["call"]),
        outcome=None if outcome is None else _OUTCOME.validate_python(outcome),
        error=None
        if code is None
        else JobError(code=code, message=row["error_message"], kind=row["error_kind"]),
        artifacts=tuple(artifacts),
        created_at=moment(row["created_at"]),
        started_at=_maybe(row["started_at"]),
        finished_at=_maybe(row["finished_at"]),
        deadline_at=moment(row["deadline_at"]),
        priority=row["priority"],
        size=row["size"],
        eta_seconds=row["eta_seconds"],
        webhook_url=row["webhook_url"],
        batch_id=row["batch_id"],
        batch_n=row["batch_n"],
    )


def to_run(row: Row) -> Run:
    """A run from its row joined with its job's call and outcome."""
    produced, before = row["produced"], row["outcome"]
    stage: int = row["stage"]
    stages = _CALL.validate_python(row["call"]).stages
    call = stages[stage]
    if row["inputs"] is not None:
        made = _INPUTS.validate_python(row["inputs"])
        call = replace(call, inputs={**call.inputs, **made})
    return Run(
        id=row["id"],
        job_id=row["job_id"],
        stage=stage,
        attempt=row["attempt"],
        state=row["state"],
        caller=row["caller"],
        priority=row["priority"],
        call=call,
        backend=row["backend"],
        reference=row["reference"],
        produced=None if produced is None else _PRODUCED.validate_python(produced),
        owner=row["owner"],
        epoch=row["epoch"],
        failures=row["failures"],
        deaths=row["deaths"],
        executed=bool(row["executed"]),
        created_at=moment(row["created_at"]),
        not_before=moment(row["not_before"]),
        deadline_at=moment(row["deadline_at"]),
        handed_over=row["state"] == "granted" and row["granted_at"] is None,
        begins_at=stages[stage - 1].ends_at if stage else 0.0,
        before=None if before is None else _OUTCOME.validate_python(before),
        places=to_places(row["places"]),
        choice=row["choice"],
    )


def to_places(stored: Sequence[str] | None) -> tuple[str, ...] | None:
    """Where a run may go, from its row; None: as the settings say."""
    return None if stored is None else tuple(stored)


def to_artifact(row: Row) -> Artifact:
    """A file from its row."""
    columns: dict[str, Any] = {name: row[name] for name in Artifact.__dataclass_fields__}
    columns["removed_at"] = _maybe(row["removed_at"])
    return Artifact(**columns)


def to_event(row: Row) -> JobEvent:
    """A log entry from its row."""
    return JobEvent(
        job_id=row["job_id"],
        n=row["n"],
        type=row["type"],
        data=row["data"],
        at=moment(row["at"]),
    )
