"""How files are wanted is told to a GPU service that knows of it, and to no other."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from gateway.backends.base import BackendUnreachable, Order, Progressed, RunFailed
from gateway.backends.sidecar import Sidecar
from gpu_server.protocol import Event, InputFile, Progress, RunRequest, Slot
from tests.support.asgi import serving
from tests.support.gpu_double import (
    RUN,
    TOKEN,
    WORKFLOWS,
    Double,
    ended,
    new_http,
    order,
    progress,
)
from tests.support.stack import free_port

ADDRESS = "http://127.0.0.1:8000/api/slots/x"
NEW_FIELDS = {"format", "quality", "keep_metadata"}
FORMER = ["v1", "previews"]
TODAYS = ["v1", "previews", "files"]
BUCKETS = [*TODAYS, "sized"]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with new_http() as client:
        yield client


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
async def backend(double: Double, http: httpx.AsyncClient) -> AsyncIterator[Sidecar]:
    async with serving(double.app()) as url:
        yield Sidecar("gpu-0", url, TOKEN, http, WORKFLOWS)


def as_webp() -> Order:
    slot = Slot(name="images/0", url=ADDRESS, format="webp", quality=80, keep_metadata=True)
    return order(slots=(slot,))


def kept() -> Order:
    return order(slots=(Slot(name="images/0", url=ADDRESS, keep_metadata=True),))


def asked(request: RunRequest) -> set[str]:
    """Which of the newer fields were on the wire."""
    (slot,) = request.outputs
    return (slot.model_fields_set & NEW_FIELDS) | (request.model_fields_set & {"details"})


async def test_a_service_that_knows_of_it_is_told_how_files_are_wanted(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = TODAYS
    await backend.start(as_webp())
    await backend.renew(as_webp())
    for request in double.puts:
        (slot,) = request.outputs
        assert (slot.format, slot.quality, slot.keep_metadata) == ("webp", 80, True)
        assert request.details is True


async def test_what_nobody_asked_for_is_not_on_the_wire(backend: Sidecar, double: Double) -> None:
    double.protocol = TODAYS
    await backend.start(order())
    assert asked(double.puts[0]) == {"details"}


async def test_a_former_service_is_sent_no_field_it_would_refuse(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = FORMER
    await backend.start(order())
    await backend.start(kept())
    await backend.renew(kept())
    assert [asked(request) for request in double.puts] == [set[str]()] * 3


async def test_a_former_service_is_not_asked_for_what_it_cannot_make(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = FORMER
    with pytest.raises(RunFailed) as caught:
        await backend.start(as_webp())
    assert (caught.value.failure.kind, caught.value.failure.code) == ("fatal", "unsupported")
    assert caught.value.executed is False
    assert double.puts == []


async def test_a_service_that_is_away_is_unreachable_and_not_of_a_former_version(
    http: httpx.AsyncClient,
) -> None:
    away = Sidecar("gpu-0", f"http://127.0.0.1:{free_port()}", TOKEN, http, WORKFLOWS)
    with pytest.raises(BackendUnreachable):
        await away.start(as_webp())


def into_a_bucket() -> Order:
    slot = Slot(name="images/0", url=ADDRESS, sized=True, content_md5=True)
    return order(slots=(slot,))


async def test_a_service_that_knows_of_buckets_is_told_what_they_want_and_to_be_patient(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = BUCKETS
    await backend.start(into_a_bucket())
    (request,) = double.puts
    (slot,) = request.outputs
    assert (slot.sized, slot.content_md5, request.patient) == (True, True, True)


async def test_a_former_service_is_not_asked_to_deliver_into_a_bucket(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = TODAYS
    with pytest.raises(RunFailed) as caught:
        await backend.start(into_a_bucket())
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("fatal", "unsupported")
    assert "former version" in failure.message
    assert "bucket" in failure.message
    assert caught.value.executed is False
    assert double.puts == []


async def test_a_former_service_beside_local_storage_is_not_asked_to_be_patient(
    backend: Sidecar, double: Double
) -> None:
    double.protocol = TODAYS
    await backend.start(order())
    assert "patient" not in double.puts[0].model_fields_set


async def test_that_only_storage_is_waited_for_is_news_without_progress(
    backend: Sidecar, double: Double
) -> None:
    waits = Event(type="progress", progress=Progress(fraction=0.5, waits_for="storage"))
    double.scripts = [[progress(0.5), waits, waits, progress(0.5), ended("completed")]]
    told = [event async for event in backend.follow(RUN, RUN)]
    assert [e.waits_for for e in told if isinstance(e, Progressed)] == [None, "storage", None]


async def test_whose_an_address_is_is_told_to_a_service_that_knows_of_it(
    backend: Sidecar, double: Double
) -> None:
    files = (
        InputFile(url=ADDRESS, media_type="image/png", sha256="a" * 64, ours=True),
        InputFile(url="https://example.com/a.png", media_type="image/png", ours=False),
    )
    for known, told in ((TODAYS, [None, None]), ([*TODAYS, "ours"], [True, False])):
        double.protocol = known
        await backend.look()
        await backend.start(replace(order(), inputs={"faces": files}))
        sent = double.puts[-1].inputs["faces"]
        assert [file.ours for file in sent] == told
        assert ["ours" in file.model_fields_set for file in sent] == [known != TODAYS] * 2
        assert [(file.url, file.sha256) for file in sent] == [(f.url, f.sha256) for f in files]
