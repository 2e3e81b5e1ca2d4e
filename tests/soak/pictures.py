"""Whether the pixels are the ones that were asked for: a simulator of its own draws them again."""

import io
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from gpu_server.workflow import load_workflows
from tests.support.stack import ROOT, free_port

UP_S = 60


class Judge:
    """Draws what a job should have made."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._workflow = load_workflows(ROOT / "workflows")["checkpoint"]
        self._info = http.get("/object_info").json()

    def wrong(self, job_id: str, body: Mapping[str, Any], files: Sequence[Path]) -> list[str]:
        """What is wrong with the pictures of a job."""
        wanted = self._draw(body)
        found = [file.read_bytes() for file in files]
        if len(wanted) != len(found):
            return [f"{job_id}: {len(found)} pictures instead of {len(wanted)}"]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [f"{job_id}: picture {n} is another" for n, (a, b) in pairs if not _same(a, b)]

    def _draw(self, body: Mapping[str, Any]) -> list[bytes]:
        params = {name: value for name, value in body.items() if name != "variant"}
        params["checkpoint"] = body["variant"].partition(":")[2]
        prompt_id = str(uuid.uuid4())
        graph = self._workflow.bind(params, run_id=prompt_id, object_info=self._info).graph
        prompt = {"prompt": graph, "prompt_id": prompt_id}
        self._http.post("/prompt", json=prompt).raise_for_status()
        deadline = time.monotonic() + UP_S
        while not (history := self._http.get(f"/history/{prompt_id}").json()):
            assert time.monotonic() < deadline, "the judge does not draw"
            time.sleep(0.005)
        outputs = history[prompt_id]["outputs"].values()
        files = [file for output in outputs for file in output["images"]]
        return [self._http.get("/view", params=file).content for file in files]


def _same(one: bytes, other: bytes) -> bool:
    # the files differ: they carry the graph, and that the id
    a, b = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (one, other))
    return bool(np.array_equal(a, b))


@contextmanager
def judge(folder: Path) -> Generator[Judge]:
    """A judge with a simulator of its own, as fast as it can."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["gpu_server.simulator", "--port", str(port), "--dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "SIM_STEP_MS": "0"},
        stdout=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=url, timeout=UP_S, trust_env=False) as http:
            deadline = time.monotonic() + UP_S
            while time.monotonic() < deadline:
                with suppress(httpx.TransportError):
                    http.get("/_sim").raise_for_status()
                    break
                time.sleep(0.05)
            yield Judge(http)
    finally:
        process.terminate()
        process.wait(20)
