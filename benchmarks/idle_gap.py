"""How long the GPU idles between two jobs that wait, by how many ComfyUI is given ahead.

Measured where the work is done: the simulator notes when each execution begins and ends. Jobs are
submitted all at once through gateway and GPU service; with QUEUE_AHEAD=1 ComfyUI has one at a time
and the next comes when the first was collected, with 2 one waits there already.

    python -m benchmarks.idle_gap [--jobs 60] [--write benchmarks/idle_gap.md]
"""

import argparse
import os
import platform
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.support.stack import running, wait_ready

VARIANT = "checkpoint:tiny-sd15.ckpt"
BODY: dict[str, Any] = {"prompt": "bench", "variant": VARIANT, "width": 256, "height": 256}
STEP_MS = 50
WARM_UP = 5
AHEAD = (1, 2, 3)


def submit(http: httpx.Client, seed: int) -> str:
    body = BODY | {"num_inference_steps": 1, "seed": seed}
    answer = http.post("/api/generate/async", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def finish(http: httpx.Client, jobs: list[str]) -> None:
    for job_id in jobs:
        job: dict[str, Any] = {}
        while not job.get("finished_at"):
            job = http.get(f"/api/jobs/{job_id}", params={"wait": 60}).json()
        assert job["status"] == "completed", job


def gaps_ms(executions: list[tuple[str, float, float]]) -> list[float]:
    """From the end of each execution to the begin of the next one."""
    ordered = sorted(executions, key=lambda each: each[1])
    return [(after[1] - before[2]) * 1000 for before, after in pairwise(ordered)]


def measure(ahead: int, count: int) -> str:
    """One line of the table."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), SIM_STEP_MS=str(STEP_MS), QUEUE_AHEAD=str(ahead)) as stack,
        stack.client() as http,
    ):
        wait_ready(http, VARIANT)
        finish(http, [submit(http, seed) for seed in range(WARM_UP)])
        jobs = [submit(http, 1000 + seed) for seed in range(count)]
        finish(http, jobs)
        known = set(jobs)
        executions = [each for each in stack.simulator()["executions_s"] if each[0] in known]
    assert len(executions) == count, executions
    gaps = sorted(gaps_ms(executions))
    # While they are submitted the queue is not full yet: what comes before counts all the same.
    high = gaps[min(len(gaps) - 1, round(len(gaps) * 0.95))]
    busy = sum(each[2] - each[1] for each in executions)
    span = max(each[2] for each in executions) - min(each[1] for each in executions)
    return (
        f"| {ahead} | **{statistics.median(gaps):.2f}** | {high:.2f} | {gaps[-1]:.2f} "
        f"| {busy / span:.0%} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=60, help="jobs measured in each line")
    options.add_argument("--write", type=Path, help="also write the table into this file")
    args = options.parse_args()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    lines = [
        "| QUEUE_AHEAD | idle gap ms, median | 95 % | longest | GPU at work |",
        "|--:|--:|--:|--:|--:|",
    ]
    for ahead in AHEAD:
        lines.append(measure(ahead, args.jobs))
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if args.write:
        args.write.write_text(
            f"# Idle gap\n\nMade by `python -m benchmarks.idle_gap --write {args.write}` on "
            f"{machine}.\n\n{__doc__.splitlines()[0]} {args.jobs} jobs of about {STEP_MS} ms, "
            f"submitted at once, on SQLite.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
