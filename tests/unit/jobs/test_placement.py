"""Placement over the rows: capacity, readiness, fairness, and saying why a job waits."""

import asyncio

from tests.unit.jobs.world import ScriptedBackend, World, finished, log_of, new_job, until


async def test_capacity_is_never_exceeded(world: World) -> None:
    world.gpu.capacity = 2
    jobs = await world.gateway()
    submitted = [(await jobs.submit(new_job()))[0] for _ in range(12)]
    for job in submitted:
        assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.most_at_once <= 2


async def test_a_backend_that_appears_is_used_at_once(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway(sweep_s=3600)
    job, _ = await jobs.submit(new_job())
    await asyncio.sleep(0.1)
    world.gpu.capacity = 1
    assert (await finished(jobs, job.id)).status == "completed"


async def test_one_callers_backlog_does_not_hold_up_anothers_job(world: World) -> None:
    world.gpu.capacity = 2
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    backlog = [(await jobs.submit(new_job("alice")))[0] for _ in range(40)]
    await until(lambda: len(world.gpu.followed) == 2)
    other, _ = await jobs.submit(new_job("bob"))
    world.gpu.hold.set()
    await finished(jobs, other.id)
    # two places come free at once: it gets one of them, whichever starts first
    assert world.gpu.started.index(other.id) <= 3
    await finished(jobs, backlog[-1].id)


async def test_a_caller_runs_no_more_than_it_may_and_its_other_jobs_say_why(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway(max_running_per_caller=2)
    mine = [(await jobs.submit(new_job("alice")))[0] for _ in range(4)]
    other, _ = await jobs.submit(new_job("bob"))
    await until(lambda: len(world.gpu.followed) == 3)
    assert set(world.gpu.followed) == {mine[0].id, mine[1].id, other.id}
    told = "SELECT job_id FROM job_events WHERE type = 'waiting' ORDER BY job_id"
    await until(lambda: [row["job_id"] for row in world.rows(told)] == [mine[2].id, mine[3].id])

    world.gpu.hold.set()

    for job in (*mine, other):
        assert (await finished(jobs, job.id)).status == "completed"
    waited = (await log_of(jobs, mine[2].id))[1]
    assert waited.data == {
        "workflow": "flux",
        "why": "its caller has 2 running, as many as may at once",
    }


async def test_a_missing_workflow_waits_says_why_once_and_hides_no_other(world: World) -> None:
    world.gpu.states = {"wan": "missing"}
    jobs = await world.gateway()
    # more than placement looks at of one caller
    stuck = [(await jobs.submit(new_job(workflow="wan", digest="w" * 64)))[0] for _ in range(20)]
    fine, _ = await jobs.submit(new_job())
    assert (await finished(jobs, fine.id)).status == "completed"
    count = "SELECT count(*) AS n FROM job_events WHERE type = 'waiting'"
    await until(lambda: world.rows(count)[0]["n"] == 20)
    await asyncio.sleep(0.5)
    assert world.rows(count)[0]["n"] == 20

    world.gpu.states = {}

    assert (await finished(jobs, stuck[0].id)).status == "completed"
    log = await log_of(jobs, stuck[0].id)
    assert [event.type for event in log] == ["pending", "waiting", "processing", "completed"]
    assert log[1].data == {
        "workflow": "wan",
        "why": "missing on every GPU service: flux.safetensors",
    }


async def test_a_workflow_not_known_yet_waits_for_the_first_look(world: World) -> None:
    world.gpu.state = "unknown"
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await asyncio.sleep(0.1)
    assert world.gpu.started == []
    world.gpu.state = "ready"
    assert (await finished(jobs, job.id)).status == "completed"


async def test_a_run_goes_to_the_backend_that_can_carry_it_out(world: World) -> None:
    world.gpu.states = {"wan": "missing"}
    other = ScriptedBackend(storage=world.storage, name="other", states={"flux": "missing"})
    world.backends.append(other)
    jobs = await world.gateway()
    wan, _ = await jobs.submit(new_job(workflow="wan", digest="w" * 64))
    flux, _ = await jobs.submit(new_job())
    for job in (wan, flux):
        await finished(jobs, job.id)
    assert (world.gpu.started, other.started) == ([flux.id], [wan.id])


async def test_a_run_goes_where_its_models_were_loaded_last(world: World) -> None:
    other = ScriptedBackend(storage=world.storage, name="other")
    world.backends.append(other)
    world.gpu.states, other.states = {"sdxl": "missing"}, {"flux": "missing"}
    jobs = await world.gateway()
    for workflow in ("flux", "sdxl"):
        job, _ = await jobs.submit(
            new_job(workflow=workflow, digest=workflow, models=(f"checkpoints/{workflow}",))
        )
        await finished(jobs, job.id)
    world.gpu.states, other.states = {}, {}
    for _ in range(3):
        job, _ = await jobs.submit(
            new_job(workflow="sdxl", digest="sdxl", models=("checkpoints/sdxl",))
        )
        await finished(jobs, job.id)
    assert len(other.started) == 4


async def test_wakes_that_come_all_the_time_do_not_keep_placement_from_looking(
    world: World,
) -> None:
    jobs = await world.gateway(sweep_s=0.2)
    world.gpu.capacity = 1
    world.gpu.hold = asyncio.Event()
    first, _ = await jobs.submit(new_job())
    second, _ = await jobs.submit(new_job())
    await until(lambda: jobs._placement._full)
    # as when the commit that made room went through and its answer was lost
    await world.write(
        f"UPDATE runs SET state = 'delivered', backend = NULL WHERE job_id = '{first.id}'"
    )
    while second.id not in world.gpu.started:
        jobs._placement.wake(queued=True)
        await asyncio.sleep(0.02)
    world.gpu.hold.set()
    assert (await finished(jobs, second.id)).status == "completed"
