"""Uploads and thumbnails: what is old goes, what nothing has goes, and a crash leaves nothing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from ulid import ULID

from gateway.db.records import micros
from gateway.db.tables import thumbnails
from gateway.db.uploads import Upload, Uploads
from gateway.security.signing import SignedFileNames
from tests.support.gateway import gateway
from tests.support.library import bytes_of, form
from tests.support.sweeping import DAY, FOREVER, HOUR, MONTH, Broken, Place

MINUTES = timedelta(minutes=30)


@pytest.fixture
async def place(tmp_path: Path, database_url: str) -> AsyncIterator[Place]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as served:
        yield Place(served)


async def uploaded(
    place: Place, expires: timedelta | None = None, *, status: str = "ready", stored: bool = True
) -> Upload:
    """An upload as it is once it is taken in, with a thumbnail."""
    card, now = ULID(), datetime.now(UTC)
    names = SignedFileNames(place.served.context.signer)
    folder = str(card.to_uuid())
    key = names.key(
        prefix="uploads", day=now.date(), job_id=folder, run_id=folder, slot="file", ext="png"
    )
    upload = Upload(
        id=str(card),
        caller="default",
        kind="media",
        status=status,  # pyright: ignore[reportArgumentType]
        name=None,
        key=key,
        filename=names.filename(key),
        media_type="image/png",
        bytes=1,
        sha256="0" * 64,
        created_at=now,
        expires_at=None if expires is None else now + expires,
    )
    await Uploads(place.db).add(upload)
    if stored:
        await place.leave(key)
        await thumbnail(place, key)
    return upload


async def thumbnail(place: Place, source: str, *, stored: bool = True) -> str:
    """A thumbnail of a file, as one is kept."""
    folder = str(ULID().to_uuid())
    key = f"thumbs/2026/03/09/{folder}/{folder.replace('-', '')}.webp"
    row = {
        "source_key": source,
        "width": 512,
        "key": key,
        "media_type": "image/webp",
        "bytes": 1,
        "sha256": "0" * 64,
        "created_at": micros(datetime.now(UTC)),
    }
    await place.db.write(lambda writing: writing.execute(insert(thumbnails), row))
    return await place.leave(key) if stored else key


async def sources(place: Place) -> set[str]:
    """Files there are rows of thumbnails for."""
    query = select(thumbnails.c.source_key)
    rows = await place.db.read(lambda reading: reading.rows(query))
    return {row["source_key"] for row in rows}


async def there(place: Place, upload: Upload) -> bool:
    return await Uploads(place.db).get("default", upload.id) is not None


async def test_an_upload_goes_when_its_time_is_over_with_its_thumbnails(place: Place) -> None:
    old = [await uploaded(place, 7 * DAY) for _ in range(5)]
    kept = [await uploaded(place, 9 * DAY), await uploaded(place)]
    await place.sweep(FOREVER, 7 * DAY - HOUR)
    assert len(await place.keys()) == 14
    await place.sweep(FOREVER, 7 * DAY + HOUR)
    assert not any([await there(place, upload) for upload in old])
    assert all([await there(place, upload) for upload in kept])
    assert await sources(place) == {upload.key for upload in kept}
    assert len(await place.keys()) == 4


async def test_an_upload_that_was_announced_and_never_came_goes(place: Place) -> None:
    waiting = await uploaded(place, DAY, status="waiting", stored=False)
    await place.sweep(FOREVER, 23 * HOUR)
    assert await there(place, waiting)
    await place.sweep(FOREVER, 25 * HOUR)
    assert not await there(place, waiting)


async def test_what_has_come_of_an_announced_upload_goes_with_it(place: Place) -> None:
    waiting = await uploaded(place, DAY, status="waiting")
    await place.sweep(FOREVER, 23 * HOUR)
    assert waiting.key in await place.keys()
    await place.sweep(FOREVER, 25 * HOUR)
    assert await place.keys() == set()


async def test_the_retention_of_jobs_and_results_is_not_that_of_uploads(place: Place) -> None:
    upload = await uploaded(place)
    await place.sweep(MONTH, 400 * DAY)
    assert await there(place, upload)
    assert len(await place.keys()) == 2


async def test_uploads_and_thumbnails_no_row_names_go_after_an_hour(place: Place) -> None:
    kept = await uploaded(place)
    for prefix in ("uploads", "thumbs"):
        # even one whose last part is that of a file there is
        await place.leave(f"{prefix}/2026/03/09/{ULID().to_uuid()}/{kept.filename}")
    await place.sweep(FOREVER, MINUTES)
    assert len(await place.keys()) == 4
    await place.sweep(FOREVER, 2 * HOUR)
    assert len(await place.keys()) == 2
    assert await there(place, kept)


async def test_a_crash_between_row_and_file_is_made_good(place: Place) -> None:
    upload = await uploaded(place, 7 * DAY)
    broken = Broken(place.storage._root, place.served.context.signer, "http://gateway")
    await place.sweep(FOREVER, 8 * DAY, files=broken, storage=broken)
    # the row is gone, the file lies there still
    assert not await there(place, upload)
    assert await place.keys() == {upload.key}
    await place.sweep(FOREVER, 9 * DAY)
    assert await place.keys() == set()
    assert await sources(place) == set()


async def test_an_upload_that_cannot_be_deleted_keeps_no_other(place: Place) -> None:
    every = [await uploaded(place, 7 * DAY) for _ in range(5)]
    broken = Broken(place.storage._root, place.served.context.signer, "http://gateway")
    await place.sweep(FOREVER, 8 * DAY, files=broken, storage=broken)
    assert not any([await there(place, upload) for upload in every])


async def test_thumbnails_go_with_the_results_they_are_made_of(place: Place) -> None:
    by_caller, by_age = [await place.made() for _ in range(2)]
    for key in await place.keys():
        await thumbnail(place, key)
    assert (await place.http.delete(f"/api/jobs/{by_caller['job_id']}")).status_code == 204
    assert len(await sources(place)) == 1
    await place.sweep(MONTH, 31 * DAY)
    assert await place.status(f"/api/jobs/{by_age['job_id']}") == 404
    assert (await sources(place), await place.keys()) == (set(), set())


async def test_thumbnails_go_with_files_alone_too(place: Place) -> None:
    await place.made()
    for key in await place.keys():
        await thumbnail(place, key)
    await place.sweep(replace(MONTH, jobs=None), 31 * DAY)
    assert (await sources(place), await place.keys()) == (set(), set())


async def test_thumbnails_whose_file_is_gone_are_dropped_and_no_other(place: Place) -> None:
    await place.made()
    texts = {"name": "Mug", "prompt": "TRIGGER_WORD"}
    await form(place.served, "POST", "/api/templates", texts, bytes_of("red"))
    await form(place.served, "PUT", "/api/styles/clay", {}, bytes_of("blue"))
    made = await place.keys()
    for key in made:
        await thumbnail(place, key)
    upload = await uploaded(place)
    for n in range(5):
        await thumbnail(place, f"uploads/2026/03/09/{ULID().to_uuid()}/{n}.png")
    await place.sweep(FOREVER, MINUTES)
    assert len(await sources(place)) == 9
    await place.sweep(FOREVER, 2 * HOUR)
    assert await sources(place) == {*made, upload.key}
    assert len(await place.keys()) == 8
