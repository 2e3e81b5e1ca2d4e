"""What RunPod's answers mean; the states themselves are followed in test_runpod_backend_follow."""

import json

import pytest
from pydantic import JsonValue

from gateway.backends.base import RunCancelled, RunFailed, RunLost
from gateway.backends.runpod_api import FINAL, JobTold
from gateway.backends.runpod_states import (
    UNFINISHED,
    ended,
    failure_in,
    progress_in,
    status_in,
    timed_out,
)
from gpu_server.protocol import Failure, RunStatus

RUN = "7a1e7a6c-6f0e-4c0e-9c0e-0123456789ab"


@pytest.mark.parametrize(
    "output",
    [None, "x", 3, [], {}, {"progress": None}, {"progress": {"fraction": 7}}, {"progress": "x"}],
    ids=str,
)
def test_what_is_no_progress_of_ours_is_none(output: JsonValue) -> None:
    assert progress_in(output) is None


def test_progress_is_read_as_the_worker_tells_it() -> None:
    told: JsonValue = {"seq": 3, "run_id": RUN, "progress": {"fraction": 0.4, "step": 4}}
    progress = progress_in(told)
    assert progress is not None
    assert (progress.fraction, progress.step) == (0.4, 4)


def test_a_status_of_another_run_is_not_this_ones() -> None:
    told: JsonValue = {"run_id": RUN, "state": "completed"}
    assert status_in(told, RUN) is not None
    assert status_in(told, "another") is None
    assert status_in({"run_id": RUN, "receipt": True}, RUN) is None


@pytest.mark.parametrize(
    "error",
    [None, {"kind": "fatal"}, "it broke", json.dumps({"error_message": "x"}), "[1]", "{"],
    ids=str,
)
def test_a_foreign_error_is_no_failure_of_ours(error: JsonValue) -> None:
    assert failure_in(error) is None


def test_the_end_of_a_run_is_judged_as_a_gpu_services_is() -> None:
    lost = Failure(kind="transient", code="lost", message="gone")
    with pytest.raises(RunLost) as gone:
        ended(RunStatus(run_id=RUN, state="failed", failure=lost, executed=True), "runpod:x")
    assert gone.value.executed
    with pytest.raises(RunCancelled):
        ended(RunStatus(run_id=RUN, state="cancelled"), "runpod:x")
    with pytest.raises(RunFailed) as failed:
        ended(RunStatus(run_id=RUN, state="failed"), "runpod:x")
    assert failed.value.failure.code == "worker_failed"


@pytest.mark.parametrize(
    ("took_ms", "limit_s", "kind"),
    [
        (60_000, 60, RunFailed),
        (59_500, 60, RunFailed),
        (30_000, 60, RunLost),
        (None, 60, RunLost),
        (60_000, None, RunLost),
    ],
)
def test_a_time_out_is_told_from_a_worker_that_went_away(
    took_ms: float | None, limit_s: float | None, kind: type[Exception]
) -> None:
    told = JobTold.model_validate({"status": "TIMED_OUT", "executionTime": took_ms})
    assert isinstance(timed_out(told, limit_s, executed=False), kind)


def test_one_that_expired_before_a_worker_took_it_was_not_executed() -> None:
    told = JobTold.model_validate({"status": "TIMED_OUT"})
    error = timed_out(told, 60, executed=False)
    assert isinstance(error, RunLost)
    assert not error.executed


def test_every_state_of_the_documents_is_known() -> None:
    ended_so = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
    assert {"IN_QUEUE", "IN_PROGRESS", "RUNNING", *ended_so} == FINAL | UNFINISHED
