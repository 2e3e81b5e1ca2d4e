"""Files that runs read: addresses made at each start, and whose fault it is when one fails."""

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from gateway.backends.base import RunFailed
from gateway.db.jobs import JobRows
from gateway.job import Artifact, Job, Source, run_id
from gateway.jobs.fetches import blamed
from gpu_server.protocol import Failure, InputFile
from tests.unit.jobs.test_renewal import followed_and_left
from tests.unit.jobs.world import World, finished, new_job

OWN = Source(key="generated/mug.png", media_type="image/png", sha256="a" * 64, bytes=5)
FOREIGN = Source(url="https://example.com/a.png?x=1", media_type="image/jpeg")
BROUGHT = Source(key="inputs/face.png", media_type="image/png", sha256="b" * 64, stored=True)
INPUTS = {"image_url": (OWN,), "faces": (FOREIGN, BROUGHT)}


def failed(code: str, message: str, kind: Any = "usage") -> RunFailed:
    return RunFailed(Failure(kind=kind, code=code, message=message), executed=False)


async def ended(world: World, *failures: RunFailed, **changes: Any) -> Job:
    """A job with these inputs whose runs fail so, one after the other."""
    world.gpu.follows = list(failures)
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(inputs=changes.pop("inputs", INPUTS), **changes))
    return await finished(jobs, job.id)


async def test_a_run_is_given_an_address_for_each_file_it_reads(world: World) -> None:
    done = await ended(world)
    assert done.status == "completed"
    assert done.call.inputs == INPUTS
    assert world.gpu.orders[done.id].inputs == {
        "image_url": (
            InputFile(
                url="memory://generated/mug.png?1",
                media_type="image/png",
                sha256=OWN.sha256,
                ours=True,
            ),
        ),
        "faces": (
            InputFile(url="https://example.com/a.png?x=1", media_type="image/jpeg", ours=False),
            InputFile(
                url="memory://inputs/face.png?2",
                media_type="image/png",
                sha256=BROUGHT.sha256,
                ours=True,
            ),
        ),
    }


async def test_the_next_attempt_has_addresses_of_its_own(world: World) -> None:
    done = await ended(world, failed("comfyui_unavailable", "away", "transient"))
    assert done.status == "completed"
    first, second = (world.gpu.orders[run_id(done.id, 0, n)].inputs for n in (0, 1))
    assert first["image_url"][0].url.endswith("?1")
    assert second["image_url"][0].url.endswith("?3")
    assert first["faces"][0] == second["faces"][0]


async def test_who_starts_a_granted_run_again_makes_its_addresses_anew(world: World) -> None:
    asked, held = asyncio.Event(), asyncio.Event()

    async def unanswered() -> None:
        asked.set()
        await held.wait()

    world.gpu.starts = [unanswered]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(inputs=INPUTS))
    await asked.wait()
    await world.crash(jobs)

    second = await world.gateway()

    assert (await finished(second, job.id)).status == "completed"
    assert world.gpu.started == [job.id, job.id]
    assert world.gpu.orders[job.id].inputs["image_url"][0].url.endswith("?3")


async def test_jobs_written_before_there_were_inputs_go_on(world: World) -> None:
    job_id = await followed_and_left(world, clean=False)
    (row,) = world.rows(f"SELECT call FROM jobs WHERE id = '{job_id}'")
    call = row["call"] if isinstance(row["call"], dict) else json.loads(row["call"])
    assert call.pop("inputs") == {}
    await world.write(f"UPDATE jobs SET call = '{json.dumps(call)}' WHERE id = '{job_id}'")

    second = await world.gateway()

    done = await finished(second, job_id)
    assert (done.status, done.call.inputs) == ("completed", {})


async def test_a_job_takes_along_what_came_inside_its_call_and_nothing_else(world: World) -> None:
    keys = (OWN.key or "", BROUGHT.key or "")
    world.storage.files.update(dict.fromkeys(keys, b"x"))
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(inputs=INPUTS))
    await finished(jobs, job.id)
    assert set(keys) <= world.storage.files.keys()
    assert await jobs.delete(job.id)
    assert set(world.storage.files) == {OWN.key}


async def test_a_file_is_found_for_its_own_caller_alone(world: World) -> None:
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job("alice"))
    made = (await finished(jobs, job.id)).artifacts[0]
    rows = JobRows(world._running[0][0])
    found = await rows.file_of("alice", made.filename)
    assert isinstance(found, Artifact)
    assert found == made
    assert await rows.file_of("bob", made.filename) is None
    assert await rows.file_of("alice", "another\0name") is None


async def test_a_file_of_ours_that_is_gone_ends_the_job_as_the_callers_fault(
    world: World,
) -> None:
    done = await ended(world, failed("file_not_found", "image_url: 127.0.0.1 answered 404"))
    assert (done.status, done.error and done.error.kind) == ("failed", "usage")
    assert done.error is not None
    assert done.error.code == "input_gone"
    assert done.error.message == "image_url: the file was deleted after the job was taken"
    assert world.gpu.started == [done.id]


async def test_a_foreign_host_that_stays_away_is_the_callers_fault_in_the_end(
    world: World,
) -> None:
    away = failed("fetch_failed", "faces.0: example.com can't be resolved", "transient")
    done = await ended(world, away, away, away)
    assert done.error is not None
    assert (done.error.code, done.error.kind) == ("fetch_failed", "usage")
    assert done.error.message == "faces.0: example.com can't be resolved"
    assert len(world.gpu.started) == 3


async def test_a_foreign_host_that_comes_back_costs_nothing_but_time(world: World) -> None:
    away = failed("fetch_timeout", "faces.0: not done within 600 s", "transient")
    assert (await ended(world, away, away)).status == "completed"


BLAME = {
    "ours, gone": ("image_url: 10.0.0.1 answered 404", "file_not_found", "usage", "input_gone"),
    "ours, of several": ("faces.1: x answered 404", "file_not_found", "usage", "input_gone"),
    "foreign, gone": ("faces.0: x answered 404", "file_not_found", "usage", "file_not_found"),
    "foreign, private": ("faces.0: x is not public", "url_refused", "usage", "url_refused"),
    "foreign, too large": ("faces.0: too large", "file_too_large", "usage", "file_too_large"),
    "no fetch": ("image_url: takes one file", "invalid_param", "usage", "invalid_param"),
    "no such place": ("faces.9: x answered 404", "file_not_found", "usage", "file_not_found"),
    "no such param": ("other: x answered 404", "file_not_found", "usage", "file_not_found"),
}


@pytest.mark.parametrize(("message", "code", "kind", "becomes"), BLAME.values(), ids=BLAME)
def test_whose_fault_it_is(message: str, code: str, kind: Any, becomes: str) -> None:
    call = new_job(inputs=INPUTS).call
    failure = Failure(kind=kind, code=code, message=message)
    told = blamed(call, failure, last=False)
    assert (told.code, told.kind) == (becomes, "usage")
    if becomes == code:
        assert told == failure


def test_a_file_is_named_as_the_caller_named_it() -> None:
    sent_as = {"image_url": "input_image_url", "faces": "heads"}
    call = dataclasses.replace(new_job(inputs=INPUTS).call, sent_as=sent_as)
    for code, message, said in (
        ("unreadable_image", "image_url: is cut off", "input_image_url: is cut off"),
        ("fetch_failed", "faces.0: can't be resolved", "heads.0: can't be resolved"),
        ("file_not_found", "faces.1: x answered 404", "heads.1: the file was deleted"),
        ("fetch_failed", "image_url: x answered 503", "input_image_url: the file could not"),
        ("out_of_memory", "image_url is none of it", "image_url is none of it"),
    ):
        told = blamed(call, Failure(kind="usage", code=code, message=message), last=False)
        assert told.message.startswith(said)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("code", ["fetch_failed", "fetch_timeout"])
def test_what_our_own_storage_does_is_never_the_callers_fault(code: str, *, last: bool) -> None:
    call = new_job(inputs=INPUTS).call
    for kind, becomes in (("transient", "transient"), ("usage", "fatal")):
        failure = Failure.model_validate(
            {"kind": kind, "code": code, "message": "image_url: 127.0.0.1 answered 503"}
        )
        told = blamed(call, failure, last=last)
        assert (told.kind, told.code) == (becomes, code)
        # where our files lie is nobody's business
        assert told.message == "image_url: the file could not be read from storage"
