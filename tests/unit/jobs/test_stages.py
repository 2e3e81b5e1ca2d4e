"""Jobs of several stages: what one makes the next one reads, and the job is shown as one."""

import asyncio
import dataclasses
from typing import Any

import pytest

from gateway.backends.base import Progressed, RunCancelled, RunFailed, RunLost
from gateway.job import Call, JobEvent, NewJob, Outcome, Source, run_id
from gpu_server.protocol import Failure
from tests.unit.jobs.world import DATA, World, finished, log_of, new_job, unreachable, until

BROUGHT = Source(key="inputs/mug.png", media_type="image/png", sha256="b" * 64, stored=True)


def stage(workflow: str, then: Call | None = None, **changes: Any) -> Call:
    return dataclasses.replace(
        new_job(workflow=workflow, digest=f"{workflow:0>64}").call,
        then=then,
        outputs=("models/0",),
        extensions={"models": "glb"},
        **changes,
    )


def made(workflow: str, then: Call | None = None, **changes: Any) -> Call:
    """A stage that reads the file of the one before."""
    source = Source(slot="models/0", media_type="model/gltf-binary")
    return stage(workflow, then, inputs={"model": (source,)}, **changes)


def two_stages() -> NewJob:
    return new_job(call=stage("trellis", made("clean"), ends_at=0.9))


def three_stages() -> NewJob:
    first = stage(
        "redraw",
        made("trellis", made("clean"), ends_at=0.9),
        ends_at=0.3,
        inputs={"picture": (BROUGHT,)},
    )
    return new_job(call=first)


def failed(kind: Any) -> RunFailed:
    return RunFailed(Failure(kind=kind, code="execution_failed", message="no"), executed=True)


def runs(world: World) -> list[tuple[Any, ...]]:
    columns = "stage, attempt, state, failures, deaths"
    return [tuple(row) for row in world.rows(f"SELECT {columns} FROM runs ORDER BY stage, attempt")]


async def test_the_next_stage_reads_what_the_one_before_made_and_only_the_last_is_shown(
    world: World,
) -> None:
    jobs = await world.gateway()
    job, _ = await jobs.submit(two_stages())
    done = await finished(jobs, job.id)

    assert done.status == "completed"
    second = run_id(job.id, 1, 0)
    assert world.gpu.started == [job.id, second]
    (read,) = world.gpu.orders[second].inputs["model"]
    (slot,) = world.gpu.orders[job.id].slots
    assert read.url.startswith(f"memory://{slot.url}?")
    assert read.media_type == "image/png"
    (shown,) = done.artifacts
    assert shown.key == world.gpu.orders[second].slots[0].url
    assert shown.key.endswith(".glb")
    assert runs(world) == [(0, 0, "delivered", 0, 0), (1, 0, "delivered", 0, 0)]
    assert [event.type for event in await log_of(jobs, job.id)] == [
        "pending",
        "processing",
        "stage",
        "processing",
        "completed",
    ]
    # what was made in between is nobody's any more
    await until(lambda: list(world.storage.files) == [shown.key])


async def test_three_stages_keep_what_the_call_brought_until_the_job_goes(world: World) -> None:
    world.storage.files["inputs/mug.png"] = DATA
    jobs = await world.gateway()
    job, _ = await jobs.submit(three_stages())
    done = await finished(jobs, job.id)
    assert done.status == "completed"
    await until(
        lambda: set(world.storage.files) == {"inputs/mug.png", done.artifacts[0].key},
    )
    assert await jobs.delete(job.id)
    assert world.storage.files == {}


async def test_progress_is_one_number_over_all_stages_and_never_goes_back(world: World) -> None:
    held = asyncio.Event()
    world.gpu.follows = [Progressed(fraction=0.5)]
    jobs = await world.gateway()
    new = two_stages()
    job, _ = await jobs.submit(new)
    seen: list[JobEvent] = []
    async for event in jobs.watch(job.id):
        seen.append(event)
        if event.type == "progress" and event.data["fraction"] == pytest.approx(0.45):
            held.set()
    told = [event.data["fraction"] for event in seen if event.type == "progress"]
    assert told == sorted(told)
    assert [event.type for event in seen if event.type != "progress"][2] == "stage"


async def test_a_job_between_two_stages_is_under_way_and_shows_how_far_it_is(world: World) -> None:
    world.gpu.states = {"clean": "unknown"}
    jobs = await world.gateway()
    job, _ = await jobs.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    now = await jobs.get(job.id)
    assert now is not None
    assert (now.status, now.progress, now.artifacts) == ("processing", 0.9, ())
    assert now.outcome is not None
    assert now.outcome.engine == "simulator"
    assert runs(world)[1][:3] == (1, 0, "waiting")
    world.gpu.states = {}
    assert (await finished(jobs, job.id)).status == "completed"


async def test_a_failed_attempt_repeats_its_stage_alone_with_the_same_files(world: World) -> None:
    jobs = await world.gateway()
    world.gpu.states = {"clean": "unknown"}
    job, _ = await jobs.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    world.gpu.follows = [Progressed(fraction=0.5), failed("transient")]
    world.gpu.states = {}
    done = await finished(jobs, job.id)

    assert done.status == "completed"
    assert runs(world) == [
        (0, 0, "delivered", 0, 0),
        (1, 0, "failed", 0, 0),
        (1, 1, "delivered", 1, 0),
    ]
    first, again = (world.gpu.orders[run_id(job.id, 1, n)].inputs["model"][0] for n in (0, 1))
    assert first.sha256 == again.sha256
    assert first.url.partition("?")[0] == again.url.partition("?")[0]


async def test_failures_are_counted_by_stage_and_deaths_by_job(world: World) -> None:
    jobs = await world.gateway()
    world.gpu.follows = [failed("transient"), RunLost(executed=True), failed("transient")]
    world.gpu.states = {"clean": "unknown"}
    job, _ = await jobs.submit(two_stages())
    await until(lambda: len(runs(world)) == 5)
    assert runs(world)[3:] == [(0, 3, "delivered", 2, 1), (1, 0, "waiting", 0, 1)]
    world.gpu.follows = [RunLost(executed=True), RunLost(executed=True)]
    world.gpu.states = {}
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.code == "poison"


async def test_a_stage_that_fails_fails_the_job_and_no_result_is_shown(world: World) -> None:
    jobs = await world.gateway()
    world.gpu.states = {"clean": "unknown"}
    job, _ = await jobs.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    world.gpu.follows = [failed("usage")]
    world.gpu.states = {}
    done = await finished(jobs, job.id)
    assert (done.status, done.artifacts) == ("failed", ())
    assert runs(world)[0][2] == "delivered"


@pytest.mark.parametrize("at", ["waiting", "followed"])
async def test_a_job_can_be_cancelled_in_any_stage(world: World, at: str) -> None:
    jobs = await world.gateway()
    world.gpu.states = {"clean": "unknown"}
    job, _ = await jobs.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    second = run_id(job.id, 1, 0)
    if at == "followed":
        world.gpu.hold = asyncio.Event()
        world.gpu.states = {}
        await until(lambda: second in world.gpu.followed)
    cancelled = await jobs.cancel(job.id)
    assert cancelled is not None
    assert cancelled.status == "cancelled"
    assert [run[2] for run in runs(world)] == ["delivered", "cancelled"]
    if at == "followed":
        await until(lambda: world.gpu.cancelled == [second])


async def test_a_stage_that_is_cancelled_where_it_runs_ends_its_job(world: World) -> None:
    jobs = await world.gateway()
    world.gpu.follows = [lambda: None, RunCancelled()]
    job, _ = await jobs.submit(two_stages())
    assert (await finished(jobs, job.id)).status == "cancelled"


async def test_the_deadline_of_the_job_ends_a_stage_that_waits(world: World) -> None:
    jobs = await world.gateway()
    world.gpu.states = {"clean": "unknown"}
    job, _ = await jobs.submit(dataclasses.replace(two_stages(), deadline_s=1.5))
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.code == "deadline_exceeded"
    assert [run[0] for run in runs(world)] == [0, 1]


async def test_the_next_gateway_goes_on_with_the_stage_that_was_reached(world: World) -> None:
    first = await world.gateway()
    world.gpu.states = {"clean": "unknown"}
    job, _ = await first.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    world.gpu.hold = asyncio.Event()
    world.gpu.states = {}
    second = run_id(job.id, 1, 0)
    await until(lambda: second in world.gpu.followed)
    await world.crash(first)
    jobs = await world.gateway()
    await until(lambda: world.gpu.followed.count(second) == 2)
    world.gpu.hold.set()

    assert (await finished(jobs, job.id)).status == "completed"
    # no stage was begun twice
    assert world.gpu.started == [job.id, second]
    assert world.gpu.renewed == [second]


async def test_a_gateway_that_dies_before_it_delivers_a_stage_leaves_that_to_the_next(
    world: World,
) -> None:
    world.storage.away = 10_000
    first = await world.gateway()
    job, _ = await first.submit(two_stages())
    await until(lambda: [run[2] for run in runs(world)] == ["produced"])
    await world.crash(first)
    world.storage.away = 0
    jobs = await world.gateway()
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started == [job.id, run_id(job.id, 1, 0)]


async def test_a_file_the_next_stage_needs_and_that_was_not_made_is_a_failed_attempt(
    world: World,
) -> None:
    jobs = await world.gateway()
    reads = Source(slot="images/1", media_type="image/png")
    call = stage("trellis", stage("clean", inputs={"model": (reads,)}))
    job, _ = await jobs.submit(new_job(call=call))
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.code == "output_missing"
    assert {run[0] for run in runs(world)} == {0}


async def test_a_job_written_before_there_were_stages_still_runs(world: World) -> None:
    world.gpu.starts = unreachable(1)
    world.gpu.state = "unknown"
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    (row,) = world.rows("SELECT call FROM jobs")
    assert "then" in row["call"]
    await world.stop(first)
    if world.url.startswith("postgresql"):
        await world.write("UPDATE jobs SET call = (call::jsonb - 'then' - 'ends_at')::json")
    else:
        await world.write("UPDATE jobs SET call = json_remove(call, '$.then', '$.ends_at')")
    world.gpu.state = "ready"
    jobs = await world.gateway()
    assert (await finished(jobs, job.id)).status == "completed"


def test_stages_are_told_as_one_and_a_simulator_in_any_of_them_is_named() -> None:
    def outcome(engine: str, **params: Any) -> Outcome:
        return Outcome(
            params=params, engine=engine, backend=f"at {engine}", duration_seconds=1.5, texts={}
        )

    together = outcome("cpu", faces=2).after(outcome("comfyui", seed=7, faces=1))
    assert together == Outcome(
        params={"seed": 7, "faces": 2},
        engine="comfyui",
        backend="at comfyui",
        duration_seconds=3.0,
    )
    assert outcome("simulator").after(outcome("comfyui")).engine == "simulator"
    assert outcome("cpu").after(None) == outcome("cpu")
