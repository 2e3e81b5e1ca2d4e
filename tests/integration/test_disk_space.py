"""New work is refused before the disk is full; what runs may finish."""

from pathlib import Path
from typing import Any

from gateway.storage.disk import DiskSpace
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway
from tests.support.receiver import PATIENCE_S

TOO_MUCH = 50_000_000
BATCH: dict[str, Any] = {"tool": "generate", "items": [SMALL]}


class Disk:
    """How much is free, and how often somebody looked."""

    def __init__(self, free_mb: int) -> None:
        self.free_mb = free_mb
        self.looked = 0

    def __call__(self, folder: Path) -> int:
        assert folder.name
        self.looked += 1
        return self.free_mb * 1_000_000


async def health(served: Gateway) -> dict[str, Any]:
    answer = await served.stranger.get("/health")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_a_disk_with_too_little_room_takes_no_new_work(tmp_path: Path) -> None:
    async with gateway(tmp_path, min_free_disk_mb=TOO_MUCH) as served:
        for path, body in (
            ("/api/generate", SMALL),
            ("/api/generate/async", SMALL),
            ("/generate", {"mode": "free", "prompt": "a mug"}),
            ("/api/batches", BATCH),
        ):
            answer = await served.http.post(path, json=body)
            assert answer.status_code == 507, path
            problem = answer.json()
            assert problem["code"] == "storage_full"
            assert f"{TOO_MUCH} MB" in problem["detail"]
            assert str(tmp_path) not in answer.text
        assert (await served.http.get("/api/jobs")).json()["items"] == []
        said = await health(served)
        assert said["status"] == "degraded"
        assert f"{TOO_MUCH} MB" in said["detail"]


async def test_running_jobs_finish_and_known_keys_still_find_them(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend(), min_free_disk_mb=1) as held:
        key = {"Idempotency-Key": "before"}
        taken = (await held.http.post("/api/generate/async", json=SMALL, headers=key)).json()
        await held.backend.begun.wait()
        held.context.disk._free = Disk(0)
        held.context.disk._looked_at = None
        held.backend.gate.set()
        assert (await held.http.post("/api/generate/async", json=SMALL)).status_code == 507
        again = await held.http.post("/api/generate/async", json=SMALL, headers=key)
        assert again.json()["job_id"] == taken["job_id"]
        path = f"/api/jobs/{taken['job_id']}"
        job = (await held.http.get(path, params={"wait": PATIENCE_S})).json()
        assert job["status"] == "completed"


async def test_work_is_taken_again_once_there_is_room(tmp_path: Path) -> None:
    async with gateway(tmp_path, min_free_disk_mb=100) as served:
        disk = Disk(99)
        served.context.disk._free = disk
        assert (await served.http.post("/api/generate", json=SMALL)).status_code == 507
        disk.free_mb = 100
        served.context.disk._looked_at = None
        assert (await served.http.post("/api/generate", json=SMALL)).status_code == 200
        assert (await health(served))["detail"] is None


async def test_the_disk_is_looked_at_once_for_many_calls() -> None:
    free = Disk(500)
    disk = DiskSpace([Path("/a"), Path("/b"), Path("/a")], least_mb=100, free=free)
    for _ in range(50):
        disk._looked_at = disk._looked_at and disk._looked_at + 10
        await disk.require()
    assert free.looked == 2


async def test_zero_looks_at_nothing() -> None:
    free = Disk(0)
    await DiskSpace([Path("/a")], least_mb=0, free=free).require()
    assert free.looked == 0


async def test_a_disk_that_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    assert await DiskSpace([tmp_path / "nowhere"], least_mb=1).shortage() is None
