"""The same through real processes: HTTP, GPU service and simulator, several gateways, kill -9."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import Connection, body, submits
from tests.support.postgres import execute
from tests.support.stack import KEY, ROOT, Stack, free_port, wait_ready

UP_S = 60
CLIENTS = 16
WARM_UP = 10
WATCHED = 300
VARIANT = "checkpoint:tiny-sd15.ckpt"
MB = 1_000_000


@contextmanager
def doubled(
    database: str, folder: Path, *, capacity: int, run_s: float
) -> Generator[tuple[str, psutil.Process]]:
    """A gateway with a double behind it: its address and process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    workspace = Path(tempfile.mkdtemp(dir=folder.parent))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.doubled_gateway", str(capacity), str(run_s)],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(ROOT),
            "WORKSPACE": str(workspace),
            "BACKEND_PORT": str(port),
            "GATEWAY_API_KEY": KEY,
            "DATABASE_URL": database,
            "LOG_LEVEL": "ERROR",
        },
    )
    try:
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(f"{url}/livez", trust_env=False)
                break
            assert process.poll() is None, "the gateway ended"
            time.sleep(0.05)
        yield url, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(workspace, ignore_errors=True)


def submit_rate(database: str, folder: Path, count: int) -> float:
    """Async submits a second, while nothing can carry them out."""
    with doubled(database, folder, capacity=0, run_s=0) as (url, _):
        asyncio.run(submits(url, CLIENTS * 5, CLIENTS))
        begin = time.perf_counter()
        asyncio.run(submits(url, count, CLIENTS))
        return count / (time.perf_counter() - begin)


def starts(database: str, folder: Path, count: int) -> list[float]:
    """Milliseconds from before the POST until ComfyUI's queue takes the prompt up."""
    ledger = folder.parent / "ledger"
    ledger.unlink(missing_ok=True)
    stack = _Ledgered(Path(tempfile.mkdtemp(dir=folder.parent)), ledger, database)
    sent: dict[str, float] = {}
    try:
        stack.start()
        with stack.client() as client:
            wait_ready(client, VARIANT)
            for n in range(count + WARM_UP):
                begin = time.time()
                answer = client.post("/api/generate/async", json=body(n)).json()
                sent[answer["job_id"]] = begin
                client.get(f"/api/generate/{answer['job_id']}", params={"wait": 30})
                time.sleep(0.25)  # until it was forgotten there
    finally:
        stack.stop()
    lines = [line.split() for line in ledger.read_text().splitlines()]
    return [(float(at) - sent[job]) * 1000 for at, _, job in lines][WARM_UP:]


class _Ledgered(Stack):
    """A stack whose simulator writes down when each prompt began."""

    def __init__(self, workspace: Path, ledger: Path, database: str) -> None:
        super().__init__(workspace, database_url=database, SIM_STEP_MS="1")
        self._ledger = ledger

    def command(self, service: str) -> list[str]:
        """The command line of one service."""
        more = ["--ledger", str(self._ledger)] if service == "simulator" else []
        return [*super().command(service), *more]


def takeover(database: str, folder: Path) -> float:
    """Seconds from kill -9 of a gateway until another one drives its job."""
    with (
        doubled(database, folder, capacity=4, run_s=600) as (first, process),
        doubled(database, folder, capacity=4, run_s=600) as (second, _),
    ):
        (job,) = asyncio.run(submits(first, 1, 1))
        owner = "SELECT owner FROM runs WHERE id = $1 AND state = 'started'"
        while not (before := execute(database, owner, job)):
            time.sleep(0.05)
        del second
        process.kill()
        begin = time.monotonic()
        while execute(database, owner, job) == before:
            time.sleep(0.05)
        return time.monotonic() - begin


_STATS = """SELECT xact_commit + xact_rollback AS n, active_time AS ms
    FROM pg_stat_database WHERE datname = current_database()"""


def idle(database: str, folder: Path, gateways: int, *, seconds: int) -> str:
    """What gateways that have nothing to do ask of their database."""
    stack = Stack(
        Path(tempfile.mkdtemp(dir=folder.parent)), gateways=gateways, database_url=database
    )
    try:
        stack.start()
        time.sleep(10)
        before = _statistics(database)
        time.sleep(seconds)
        after = _statistics(database)
    finally:
        stack.stop()
    # one of ours looks each time
    transactions = (after["n"] - before["n"] - 1) / seconds
    return f"{transactions:.1f}, {(after['ms'] - before['ms']) / seconds:.2f}"


def _statistics(database: str) -> dict[str, Any]:
    (row,) = execute(database, _STATS)
    return row


def crowd(database: str, folder: Path, *, running: int, waiting: int) -> tuple[str, str]:
    """Loop lag and memory with so many jobs in flight and waiting."""
    with doubled(database, folder, capacity=running, run_s=20) as (url, process):
        before = process.memory_info().rss / MB
        asyncio.run(submits(url, running + waiting, CLIENTS))
        time.sleep(2)
        _bench(url)
        time.sleep(25)
        lag = _bench(url)
        rss = process.memory_info().rss / MB
    late = f"{lag['p50']:.1f} / {lag['p99']:.1f} / {lag['max']:.0f}"
    return late, f"{rss:.0f} ({before:.0f} before)"


def _bench(url: str) -> dict[str, float]:
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.get(f"{url}/_bench", headers=headers, timeout=60, trust_env=False)
    found: dict[str, float] = answer.json()
    return found


def watchers(database: str, folder: Path, count: int) -> str:
    """Memory with so many open event streams of running jobs, several of each."""
    with doubled(database, folder, capacity=WATCHED, run_s=600) as (url, process):
        before = process.memory_info().rss / MB
        ids = asyncio.run(submits(url, WATCHED, CLIENTS))
        rss = asyncio.run(_watch(url, [ids[n % WATCHED] for n in range(count)], process))
    return f"{rss:.0f} ({before:.0f} before)"


async def _watch(url: str, ids: list[str], process: psutil.Process) -> float:
    """Open a stream for each; memory once every one has said something."""
    connections = [Connection(url) for _ in ids]
    highest = 0.0
    try:
        for job, connection in zip(ids, connections, strict=True):
            await connection.__aenter__()
            connection.send("GET", f"/api/jobs/{job}/events")
        for connection in connections:
            while not (await connection.line()).startswith(b"data"):
                highest = max(highest, process.memory_info().rss / MB)
        for _ in range(10):
            await asyncio.sleep(0.5)
            highest = max(highest, process.memory_info().rss / MB)
    finally:
        for connection in connections:
            with suppress(AttributeError):
                await connection.__aexit__(None, None, None)
    return highest
