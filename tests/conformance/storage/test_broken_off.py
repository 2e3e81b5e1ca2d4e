"""Files that do not come whole into a bucket: nothing half there, no upload in parts left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from gateway.storage.base import StorageError, TooManyBytes
from gateway.storage.s3 import S3Storage
from gateway.storage.s3_upload import PART
from tests.conformance.storage.conftest import PROJECT, Place, of_buckets, of_moto
from tests.conformance.storage.test_sizes import MIB, made
from tests.conformance.storage.test_storage import KEY, read

STEPS = ("create_multipart_upload", "upload_part", "complete_multipart_upload", "put_object")


async def held_at(size: int, reached: asyncio.Event) -> AsyncIterator[bytes]:
    """So many bytes, and then nothing more for ever."""
    async for chunk in made(size):
        yield chunk
    reached.set()
    await asyncio.Event().wait()


def patched(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str, instead: Callable[..., Any]
) -> None:
    """Put something in the way of one step of the client's; it is given the step itself."""
    assert isinstance(place.storage, S3Storage)
    client = place.storage._client
    real = getattr(client, step)

    async def call(**arguments: Any) -> Any:
        return await instead(real, **arguments)

    monkeypatch.setattr(client, step, call)


async def nothing_is_left(place: Place) -> None:
    assert await place.storage.stat(KEY) is None
    assert await asyncio.to_thread(place.bucket.unfinished) == []
    assert await asyncio.to_thread(place.bucket.keys) == []


@of_buckets
@pytest.mark.parametrize("size", [MIB, PART + MIB, 4 * PART + MIB])
async def test_a_write_cancelled_while_bytes_come_leaves_nothing(place: Place, size: int) -> None:
    reached = asyncio.Event()
    writing = asyncio.create_task(place.storage.write(KEY, "video/mp4", held_at(size, reached)))
    await reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await nothing_is_left(place)


@of_buckets
@pytest.mark.parametrize("step", STEPS[:3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_write_cancelled_at_a_step_leaves_no_upload(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool
) -> None:
    """Before the store has done it, and after, its answer still under way."""
    reached = asyncio.Event()

    async def held(real: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        answer = await real(**arguments) if after else None
        if not reached.is_set():
            reached.set()
            # a creation is carried through: it may not wait for ever
            await asyncio.sleep(0.05 if step == STEPS[0] else 3600)
        return answer or await real(**arguments)

    patched(place, monkeypatch, step, held)
    writing = asyncio.create_task(place.storage.write(KEY, "video/mp4", made(2 * PART + 1)))
    await reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await asyncio.to_thread(place.bucket.unfinished) == []
    if (step, after) == (STEPS[2], True):
        # it was completed before it was cancelled: whole
        assert len(await read(place, KEY)) == 2 * PART + 1
    else:
        await nothing_is_left(place)


@of_buckets
async def test_cancelled_twice_it_still_aborts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborting = asyncio.Event()

    async def slow(real: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        aborting.set()
        await asyncio.sleep(0.05)
        return await real(**arguments)

    patched(place, monkeypatch, "abort_multipart_upload", slow)
    reached = asyncio.Event()
    size = PART + MIB
    writing = asyncio.create_task(place.storage.write(KEY, "video/mp4", held_at(size, reached)))
    await reached.wait()
    writing.cancel()
    await aborting.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await nothing_is_left(place)


@of_buckets
async def test_a_source_that_fails_in_the_middle_leaves_nothing(place: Place) -> None:
    async def failing() -> AsyncIterator[bytes]:
        async for chunk in made(3 * PART):
            yield chunk
        raise ConnectionResetError("the caller went away")

    with pytest.raises(ConnectionResetError, match="the caller went away"):
        await place.storage.write(KEY, "video/mp4", failing())
    await nothing_is_left(place)


@of_buckets
async def test_more_bytes_than_are_taken_leave_nothing(place: Place) -> None:
    assert isinstance(place.storage, S3Storage)
    place.storage.max_bytes = 2 * PART
    with pytest.raises(TooManyBytes):
        await place.storage.write(KEY, "video/mp4", made(2 * PART + 1))
    await nothing_is_left(place)
    place.storage.max_bytes = 2 * PART + 1
    assert (await place.storage.write(KEY, "video/mp4", made(2 * PART + 1))).bytes == 2 * PART + 1


@of_buckets
@pytest.mark.parametrize("step", STEPS)
async def test_a_step_the_store_refuses_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def refused(real: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        del real, arguments
        raise EndpointConnectionError(endpoint_url="http://the-store/with?a-signature")

    patched(place, monkeypatch, step, refused)
    size = 5 if step == "put_object" else 3 * PART
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        await place.storage.write(KEY, "video/mp4", made(size))
    assert "signature" not in str(caught.value)
    await nothing_is_left(place)


@of_buckets
async def test_when_only_the_answer_to_the_completion_is_lost_the_file_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(real: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        await real(**arguments)
        raise EndpointConnectionError(endpoint_url=place.bucket.endpoint)

    patched(place, monkeypatch, "complete_multipart_upload", lost)
    written = await place.storage.write(KEY, "video/mp4", made(2 * PART + 1))
    assert written.bytes == 2 * PART + 1
    assert len(await read(place, KEY)) == 2 * PART + 1


@of_buckets
async def test_a_store_that_has_something_else_afterwards_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other(real: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        answer = await real(**arguments)
        place.bucket.client().put_object(
            Bucket=place.bucket.bucket, Key=f"{PROJECT}/{KEY}", Body=b"other"
        )
        return answer

    patched(place, monkeypatch, "put_object", other)
    with pytest.raises(StorageError, match="another file"):
        await place.storage.write(KEY, "video/mp4", made(5))


@of_buckets
async def test_two_writers_of_one_key_leave_one_of_them_whole(place: Place) -> None:
    sizes = [2 * PART + 1, 2 * PART + 2]
    results = await asyncio.gather(
        *(place.storage.write(KEY, "video/mp4", made(size)) for size in sizes),
        return_exceptions=True,
    )
    # one may find the other's file when it looks
    for result in results:
        assert not isinstance(result, BaseException) or isinstance(result, StorageError), result
    assert len(await read(place, KEY)) in sizes
    assert await asyncio.to_thread(place.bucket.unfinished) == []


@of_buckets
async def test_tidying_aborts_old_uploads_of_this_project_alone(place: Place) -> None:
    client, bucket = place.bucket.client(), place.bucket.bucket
    ours = [f"{PROJECT}/{KEY}", f"{PROJECT}/{KEY.replace('0a1b2c', 'ffff')}"]
    foreign = [f"another/{KEY}", f"{PROJECT}/backup.tar"]
    for key in (*ours, *foreign):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    hour = timedelta(hours=1)
    # moto says of each that it began then
    await place.storage.tidy(datetime(2010, 1, 1, tzinfo=UTC))
    assert sorted(place.bucket.unfinished()) == sorted([*ours, *foreign])
    await place.storage.tidy(datetime.now(UTC) + hour)
    assert sorted(place.bucket.unfinished()) == sorted(foreign)
    await place.storage.tidy(datetime.now(UTC) + hour)


@of_moto
async def test_an_upload_a_dead_store_could_not_abort_is_tidied_later(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    reached = asyncio.Event()
    size = PART + MIB
    writing = asyncio.create_task(place.storage.write(KEY, "video/mp4", held_at(size, reached)))
    await reached.wait()
    await asyncio.to_thread(place.bucket.stop)
    try:
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    finally:
        await asyncio.to_thread(place.bucket.start)
    assert "could not be aborted" in caplog.text
    assert await asyncio.to_thread(place.bucket.unfinished) == [f"{PROJECT}/{KEY}"]
    await place.storage.tidy(datetime.now(UTC) + timedelta(hours=1))
    await nothing_is_left(place)
