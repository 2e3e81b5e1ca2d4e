"""Receipts of serverless workers in every storage: the worker's client and the gateway's."""

from datetime import timedelta

from gateway.receipts import Receipts
from gateway.security.signing import Signer
from gpu_server.protocol import ReceiptNote, RunStatus
from gpu_server.serverless.receipts import TakenRun
from tests.conformance.storage.conftest import Place

RUN = "01890000-0000-7000-8000-00000000cccc"
ENDED = RunStatus(run_id=RUN, state="completed", executed=True, texts={"caption": ["ü" * 2000]})


def both_sides(place: Place, job: str = "job-u1") -> tuple[Receipts, TakenRun]:
    receipts = Receipts(place.storage, Signer(bytes(32)))
    addresses = receipts.addresses(RUN, timedelta(hours=1))
    return receipts, TakenRun(addresses, job_id=job, run_id=RUN)


async def test_the_gateway_reads_what_the_worker_wrote(place: Place) -> None:
    receipts, taken = both_sides(place)
    assert await receipts.read(RUN) is None
    async with taken:
        assert await taken.claim() is None
        assert await receipts.read(RUN) == ReceiptNote(job="job-u1")
        await taken.close(ENDED)
        assert taken.kept
    assert await receipts.read(RUN) == ReceiptNote(job="job-u1", status=ENDED)
    _, another = both_sides(place, "another-u1")
    async with another:
        assert await another.claim() == ENDED
    await receipts.remove(RUN)
    assert await receipts.read(RUN) is None
    await receipts.remove(RUN)


async def test_the_worker_reads_what_the_gateway_wrote(place: Place) -> None:
    receipts, taken = both_sides(place)
    await receipts.cancel(RUN)
    async with taken:
        assert await taken.claim() == RunStatus(run_id=RUN, state="cancelled")
    note = await receipts.read(RUN)
    assert note is not None
    assert (note.cancelled, note.job) == (True, None)
