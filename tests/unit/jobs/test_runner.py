"""One run through every way it can go."""

import asyncio
from dataclasses import replace

import pytest

from gateway.backends.base import (
    BackendFull,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gateway.job import Produced, run_id
from gpu_server.protocol import Failure
from tests.unit.jobs.world import (
    DATA,
    ScriptedBackend,
    World,
    finished,
    log_of,
    new_job,
    sent,
    unreachable,
    until,
)

TRANSIENT = Failure(kind="transient", code="out_of_memory", message="It ran out of GPU memory.")


def failed(
    kind: str = "transient", code: str = "out_of_memory", *, executed: bool = True
) -> RunFailed:
    failure = Failure.model_validate({"kind": kind, "code": code, "message": "It did not work."})
    return RunFailed(failure, executed=executed)


async def test_a_job_is_committed_granted_started_followed_verified_and_completed(
    world: World,
) -> None:
    jobs = await world.gateway()
    new = new_job()
    job, existed = await jobs.submit(new)
    assert (job.status, existed) == ("pending", False)
    assert [row["id"] for row in world.rows("SELECT id FROM jobs")] == [new.id]

    done = await finished(jobs, job.id)

    assert done.status == "completed"
    assert done.progress == 1
    assert done.outcome is not None
    assert (done.outcome.engine, done.outcome.backend) == ("simulator", "gpu")
    assert done.outcome.params == {"seed": 7}
    [file] = done.artifacts
    assert world.storage.files[file.key] == DATA
    assert (file.bytes, file.width, file.n, file.output) == (len(DATA), 8, 0, "images")
    assert await jobs.file(file.filename) == file
    [run] = world.rows("SELECT * FROM runs")
    assert (run["id"], run["state"], run["reference"]) == (job.id, "delivered", f"at gpu: {job.id}")
    await until(lambda: world.gpu.forgotten == [job.id])
    assert [event.type for event in await log_of(jobs, job.id)] == [
        "pending",
        "processing",
        "completed",
    ]


async def test_a_transient_failure_is_tried_again_under_the_next_attempts_id(world: World) -> None:
    world.gpu.follows = [failed()]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "completed"
    assert world.gpu.started == [job.id, run_id(job.id, 0, 1)]
    retrying = (await log_of(jobs, job.id))[2]
    assert (retrying.type, retrying.data["code"], retrying.data["attempt"]) == (
        "retrying",
        "out_of_memory",
        1,
    )
    states = world.rows("SELECT state, error_code FROM runs ORDER BY attempt")
    assert [tuple(row) for row in states] == [("failed", "out_of_memory"), ("delivered", None)]


async def test_transient_failures_end_the_job_at_the_last_attempt(world: World) -> None:
    world.gpu.starts = [failed(code="interrupted") for _ in range(3)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "failed"
    assert done.error is not None
    assert (done.error.code, done.error.kind) == ("interrupted", "transient")
    assert len(world.gpu.started) == 3


async def test_what_runs_out_of_memory_is_tried_once_more_and_not_again(world: World) -> None:
    world.gpu.follows = [failed(code="out_of_memory"), failed(code="out_of_memory")]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "out_of_memory"
    assert world.gpu.started == [job.id, run_id(job.id, 0, 1)]


@pytest.mark.parametrize("kind", ["usage", "fatal"])
async def test_a_failure_that_would_repeat_itself_is_not_tried_again(
    world: World, kind: str
) -> None:
    world.gpu.follows = [failed(kind, "bad_graph")]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "failed"
    assert done.error is not None
    assert (done.error.code, done.error.message) == ("bad_graph", "It did not work.")
    assert done.error.kind == kind
    assert world.gpu.started == [job.id]


async def test_a_lost_run_that_never_executed_is_repeated_without_counting(world: World) -> None:
    world.gpu.follows = [RunLost() for _ in range(5)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "completed"
    assert len(world.gpu.started) == 6
    assert world.rows("SELECT max(deaths) AS d, max(failures) AS f FROM runs")[0]["d"] == 0


async def test_the_third_death_of_an_executing_run_is_poison(world: World) -> None:
    world.gpu.follows = [RunLost(executed=True) for _ in range(3)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "poison"
    assert len(world.gpu.started) == 3


async def test_a_run_seen_executing_and_then_lost_counts_a_death(world: World) -> None:
    world.gpu.follows = [Progressed(fraction=0.4), RunLost()]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await finished(jobs, job.id)
    deaths = [row["deaths"] for row in world.rows("SELECT deaths FROM runs ORDER BY attempt")]
    assert deaths == [0, 1]


async def test_an_unreachable_backend_is_looked_at_again_and_nothing_is_started_twice(
    world: World,
) -> None:
    world.gpu.starts = unreachable(3)
    world.gpu.follows = [*unreachable(2), Progressed(fraction=0.5), *unreachable(2)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "completed"
    assert set(world.gpu.started) == {job.id}
    assert len(world.rows("SELECT id FROM runs")) == 1


async def test_a_backend_lost_for_too_long_loses_its_run_to_another_and_is_told_later(
    world: World,
) -> None:
    other = ScriptedBackend(storage=world.storage, name="other", capacity=0)
    world.backends.append(other)

    def move_away() -> None:
        world.gpu.capacity, other.capacity = 0, 4

    world.gpu.follows = [Progressed(fraction=0.2), move_away, *unreachable(1)]
    # follows that find nothing more in the script would succeed: keep it away for good
    world.gpu.hold = asyncio.Event()
    away = asyncio.Event()
    world.gpu.cancels = [away, *unreachable(2)]
    jobs = await world.gateway(backend_lost_after_s=0)
    job, _ = await jobs.submit(new_job())

    done = await finished(jobs, job.id)

    assert done.status == "completed"
    assert done.outcome is not None
    assert done.outcome.backend == "other"
    assert other.started == [run_id(job.id, 0, 1)]
    [pending] = world.rows("SELECT id FROM runs WHERE cancel_pending")
    assert pending["id"] == job.id
    away.set()
    await until(lambda: world.gpu.cancelled == [job.id])
    await until(lambda: not world.rows("SELECT id FROM runs WHERE cancel_pending"))


async def test_a_full_backend_costs_no_attempt(world: World) -> None:
    world.gpu.starts = [BackendFull("gpu"), BackendFull("gpu")]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started == [job.id] * 3
    [run] = world.rows("SELECT attempt, failures FROM runs")
    assert tuple(run) == (0, 0)


async def test_a_run_cancelled_where_it_runs_ends_its_job(world: World) -> None:
    world.gpu.follows = [RunCancelled()]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    assert (await finished(jobs, job.id)).status == "cancelled"


async def test_a_deadline_cancels_the_run_where_it_is(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(deadline_s=1.0))

    done = await finished(jobs, job.id)

    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "deadline_exceeded")
    await until(lambda: world.gpu.cancelled == [job.id])


async def test_a_deadline_ends_a_job_that_still_waits(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(deadline_s=0.1))
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.code == "deadline_exceeded"
    assert world.gpu.started == []


def wrong_size(sent_files: Produced) -> Produced:
    [file] = sent_files.outputs
    return replace(sent_files, outputs=(file.model_copy(update={"bytes": file.bytes + 1}),))


def wrong_content(sent_files: Produced) -> Produced:
    [file] = sent_files.outputs
    return replace(sent_files, outputs=(file.model_copy(update={"sha256": "0" * 64}),))


def unknown_slot(sent_files: Produced) -> Produced:
    return replace(sent_files, outputs=(*sent_files.outputs, sent("masks/0")))


def same_slot_twice(sent_files: Produced) -> Produced:
    return replace(sent_files, outputs=sent_files.outputs * 2)


def nothing(sent_files: Produced) -> Produced:
    return replace(sent_files, outputs=())


@pytest.mark.parametrize(
    "spoil", [wrong_size, wrong_content, unknown_slot, same_slot_twice, nothing]
)
async def test_a_file_that_is_not_in_storage_as_it_was_sent_fails_the_attempt(
    world: World, spoil: object
) -> None:
    assert callable(spoil)
    job = new_job()

    def hand_over() -> None:
        world.gpu.follows.append(spoil(world.gpu.produce(job.id)))

    world.gpu.follows = [hand_over]
    jobs = await world.gateway()
    await jobs.submit(job)

    done = await finished(jobs, job.id)

    assert done.status == "completed"
    assert world.gpu.started == [job.id, run_id(job.id, 0, 1)]
    [first, _] = world.rows("SELECT error_code FROM runs ORDER BY attempt")
    assert first["error_code"] == "output_missing"


async def test_a_missing_file_fails_the_attempt(world: World) -> None:
    job = new_job()

    def lose_it() -> None:
        produced = world.gpu.produce(job.id)
        world.storage.files.clear()
        world.gpu.follows.append(produced)

    world.gpu.follows = [lose_it]
    jobs = await world.gateway()
    await jobs.submit(job)
    done = await finished(jobs, job.id)
    assert [artifact.key in world.storage.files for artifact in done.artifacts] == [True]
    assert len(world.gpu.started) == 2


async def test_a_storage_that_is_away_costs_no_second_execution(world: World) -> None:
    world.storage.away = 5
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started == [job.id]


async def test_a_backend_that_breaks_its_contract_fails_the_attempt_not_the_engine(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.gpu.starts = [ZeroDivisionError()]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    assert (await finished(jobs, job.id)).status == "completed"
    assert "not foreseen" in caplog.text


async def test_a_backend_that_cannot_forget_changes_nothing(world: World) -> None:
    world.gpu.forgets = [ZeroDivisionError()]
    jobs = await world.gateway()
    first, _ = await jobs.submit(new_job())
    assert (await finished(jobs, first.id)).status == "completed"
    second, _ = await jobs.submit(new_job())
    await finished(jobs, second.id)
    await until(lambda: world.gpu.forgotten == [second.id])


async def test_a_run_on_a_backend_that_is_gone_from_the_configuration_moves(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await world.stop(first)
    other = ScriptedBackend(storage=world.storage, name="other")
    world.backends[:] = [other]

    second = await world.gateway(backend_lost_after_s=0.2)

    assert (await finished(second, job.id)).status == "completed"
    assert other.started == [run_id(job.id, 0, 1)]
