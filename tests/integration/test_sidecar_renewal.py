"""New slots for a run that a GPU service has: the gateway's side, against a double."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.backends.base import BackendError, BackendUnreachable, RunLost
from gateway.backends.sidecar import Sidecar
from tests.support.asgi import serving
from tests.support.gpu_double import TOKEN, WORKFLOWS, Double, new_http, order, problem


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


async def test_renew_sends_the_slots_and_never_begins(backend: Sidecar, double: Double) -> None:
    await backend.start(order())
    await backend.renew(order())
    assert double.puts[0] == double.puts[1]
    assert double.if_match == [None, "*"]


@pytest.mark.parametrize(
    ("status", "code", "meaning"),
    [
        (404, "run_not_found", RunLost),
        # by one that does not heed the header
        (429, "at_capacity", RunLost),
        (409, "workflow_mismatch", RunLost),
        (503, "journal_unavailable", BackendUnreachable),
    ],
)
async def test_what_an_answer_to_renew_means(
    backend: Sidecar, double: Double, status: int, code: str, meaning: type[BackendError]
) -> None:
    double.put_answer = lambda _: problem(status, code)
    with pytest.raises(meaning):
        await backend.renew(order())
