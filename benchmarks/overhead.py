"""Time per job through gateway and GPU service against the floor, and the memory of each process.

The floor is a bare client of the same simulator: POST /prompt, one persistent websocket, GET
/history, GET /view. Both sides run the same graph, ask in turn in the same minutes, and read every
byte of the result. The ratio counts; the milliseconds are this machine's.

    python -m benchmarks.overhead [--quick] [--write benchmarks/overhead.md]
"""

import argparse
import hashlib
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import websocket

from gpu_server.workflow import load_workflows
from tests.support.stack import ROOT, Stack, running, wait_ready

VARIANT = "checkpoint:tiny-sd15.ckpt"
BODY: dict[str, Any] = {"prompt": "bench", "variant": VARIANT, "width": 256, "height": 256}
MB = 1_000_000
ABREAST = 8


@dataclass(frozen=True)
class Case:
    """What is measured: execution time, output size, how many at once, how often."""

    steps: int
    step_ms: int
    output_bytes: int
    abreast: int
    rounds: int

    @property
    def name(self) -> str:
        """As the table says it."""
        seconds = self.steps * self.step_ms / 1000
        return f"{seconds:g} s, {self.output_bytes / MB:g} MB, {self.abreast} at once"


CASES = [
    Case(1, 50, 1_500_000, 1, 60),
    Case(1, 50, 1_500_000, ABREAST, 12),
    Case(3, 1000, 1_500_000, 1, 8),
    Case(3, 1000, 1_500_000, ABREAST, 1),
    Case(1, 50, 150 * MB, 1, 6),
    Case(1, 50, 150 * MB, ABREAST, 1),
    Case(3, 1000, 150 * MB, 1, 3),
    Case(3, 1000, 150 * MB, ABREAST, 1),
]


class Floor:
    """The least a client of ComfyUI can do."""

    def __init__(self, url: str, graph: dict[str, Any]) -> None:
        self.graph = graph
        self.client_id = uuid.uuid4().hex
        self.http = httpx.Client(base_url=url, timeout=300, trust_env=False)
        self.ended: dict[str, threading.Event] = {}
        self.socket = websocket.create_connection(
            f"{url.replace('http', 'ws')}/ws?clientId={self.client_id}"
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                frame = self.socket.recv()
            except (websocket.WebSocketException, OSError):
                return
            if not isinstance(frame, str) or '"executing"' not in frame:
                continue
            data = json.loads(frame)["data"]
            if data.get("node") is None and (event := self.ended.get(data.get("prompt_id", ""))):
                event.set()

    def job(self, seed: int) -> int:
        """Bytes of the picture of one job, read and forgotten."""
        prompt_id = str(uuid.uuid4())
        graph = json.loads(json.dumps(self.graph))
        for node in graph.values():
            if "seed" in node["inputs"]:
                node["inputs"]["seed"] = seed
            if "filename_prefix" in node["inputs"]:
                node["inputs"]["filename_prefix"] = f"floor/{prompt_id}/image"
        ended = self.ended[prompt_id] = threading.Event()
        body = {"prompt": graph, "client_id": self.client_id, "prompt_id": prompt_id}
        self.http.post("/prompt", json=body).raise_for_status()
        assert ended.wait(300), "no end was heard"
        del self.ended[prompt_id]
        entry = self.http.get(f"/history/{prompt_id}").json()[prompt_id]
        files = [f for out in entry["outputs"].values() for f in out.get("images", [])]
        return sum(read_all(self.http, "/view", f) for f in files)


def read_all(http: httpx.Client, url: str, params: dict[str, str] | None = None) -> int:
    """Read a whole answer and forget it; its size."""
    with http.stream("GET", url, params=params) as answer:
        answer.raise_for_status()
        return sum(len(chunk) for chunk in answer.iter_raw())


def gateway_job(http: httpx.Client, case: Case, seed: int) -> int:
    body = BODY | {"num_inference_steps": case.steps, "seed": seed}
    answer = http.post("/api/generate", json=body)
    assert answer.status_code == 200, answer.text
    return read_all(http, answer.json()["image_url"])


def memory(stack: Stack, field: str) -> dict[str, float]:
    """`VmRSS` or `VmHWM` (peak) of each process, in MB."""
    found = {}
    for name, process in stack.processes.items():
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        found[name] = int(line.split()[1]) * 1024 / MB
    return found


def reset_peaks(stack: Stack) -> None:
    for process in stack.processes.values():
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def per_job(job: Callable[[int], int], case: Case, seeds: range) -> float:
    """Milliseconds per job of one round: `abreast` jobs at once."""
    begin = time.perf_counter()
    if case.abreast == 1:
        sizes = [job(seeds[0])]
    else:
        with ThreadPoolExecutor(case.abreast) as pool:
            sizes = list(pool.map(job, seeds))
    elapsed = time.perf_counter() - begin
    # a job's file comes without the texts in it
    assert all(size > case.output_bytes - 64 * 1024 for size in sizes), sizes
    return elapsed * 1000 / case.abreast


def measure(stack: Stack, floor: Floor, http: httpx.Client, case: Case, start: int) -> str:
    stack.simulator(step_ms=case.step_ms, output_bytes=case.output_bytes)
    for node in floor.graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = case.steps
    before = memory(stack, "VmRSS")
    reset_peaks(stack)
    low: list[float] = []
    ours: list[float] = []
    for n in range(case.rounds):
        seeds = range(start + n * case.abreast, start + (n + 1) * case.abreast)
        low.append(per_job(floor.job, case, seeds))
        other = range(seeds[0] + 500_000, seeds[-1] + 500_001)
        ours.append(per_job(lambda seed: gateway_job(http, case, seed), case, other))
    peak = memory(stack, "VmHWM")
    grown = " | ".join(f"{peak[s]:.0f} (+{peak[s] - before[s]:.0f})" for s in stack.processes)
    a, b = statistics.median(low), statistics.median(ours)
    return f"| {case.name} | {a:.1f} | {b:.1f} | **{b / a:.2f}** | {grown} |"


def graph_of(stack: Stack) -> dict[str, Any]:
    """The graph the GPU service makes of our call."""
    info = httpx.get(f"{stack.comfyui}/object_info", trust_env=False).json()
    params = {k: v for k, v in BODY.items() if k != "variant"} | {"checkpoint": "tiny-sd15.ckpt"}
    workflow = load_workflows(ROOT / "workflows")["checkpoint"]
    bound = workflow.bind(params | {"seed": 1}, run_id=str(uuid.uuid4()), object_info=info)
    return bound.graph


def parts(folder: Path) -> str:
    """What the parts of a job cost on this machine, medians: the ratio is read against them."""
    data = os.urandom(1_500_000)
    file, database = folder / "part.bin", sqlite3.connect(folder / "part.sqlite")

    def write() -> None:
        with file.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

    def commit() -> None:
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()

    def timed(work: Callable[[], object]) -> float:
        took: list[float] = []
        for _ in range(30):
            begin = time.perf_counter()
            work()
            took.append((time.perf_counter() - begin) * 1000)
        return statistics.median(took)

    # as the gateway opens it
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (x)")
    hashed = timed(lambda: hashlib.sha256(data).hexdigest())
    written, committed = timed(write), timed(commit)
    database.close()
    return (
        f"On this machine SHA-256 of 1.5 MB takes {hashed:.1f} ms, writing 1.5 MB with fsync "
        f"{written:.1f} ms, one SQLite commit {committed:.1f} ms. The floor does none of these; a "
        "job hashes its file where it is sent and where it is stored, writes it, and commits when "
        "it is submitted, placed, started and done."
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    options.add_argument("--write", type=Path, help="also write the table into this file")
    args = options.parse_args()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    lines = [
        "| execution, output, at once | floor ms/job | ours ms/job | ratio"
        + "".join(
            f" | {name} MB, peak (growth)" for name in ("simulator", "GPU service", "gateway")
        )
        + " |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stack:
        limits = httpx.Limits(max_connections=32)
        with stack.client(limits=limits) as http:
            wait_ready(http, VARIANT)
            floor = Floor(stack.comfyui, graph_of(stack))
            for _ in range(10):
                gateway_job(http, CASES[0], 1)
            for n, case in enumerate(CASES):
                rounds = 1 if args.quick else case.rounds
                line = measure(stack, floor, http, replace(case, rounds=rounds), 10**6 * (n + 1))
                lines.append(line)
                print(lines[-1], flush=True)
        lines += ["", parts(Path(folder))]
    table = "\n".join(lines)
    print(table)
    if args.write:
        args.write.write_text(
            f"# Overhead\n\nMade by `python -m benchmarks.overhead --write {args.write}` on "
            f"{machine}.\n\n{__doc__.splitlines()[0]}\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
