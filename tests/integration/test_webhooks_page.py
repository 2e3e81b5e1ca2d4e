"""The receiver that docs/webhooks.md shows runs as printed."""

import asyncio
import base64
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.support.gateway import SMALL, gateway
from tests.support.receiver import PATIENCE_S
from tests.support.stack import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BASH = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


async def made_secret() -> str:
    """As the page says how to make one."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = await asyncio.create_subprocess_shell(BASH[0], stdout=asyncio.subprocess.PIPE, env=env)
    printed, _ = await made.communicate()
    return printed.decode().strip()


async def listening(port: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                # it knows no GET; any answer will do
                await http.get(f"http://127.0.0.1:{port}/")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_the_receiver_of_the_page_verifies_and_takes_each_event_once(tmp_path: Path) -> None:
    script = tmp_path / "receiver.py"
    script.write_text(PYTHON[0])
    secret, port = await made_secret(), free_port()
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    settings: dict[str, Any] = {"webhook_allow_private": True, "webhook_secret": secret}
    try:
        await listening(port)
        async with gateway(tmp_path / "workspace", **settings) as served:
            url = f"http://127.0.0.1:{port}/hooks"
            body = SMALL | {"webhook_url": url}
            printed: list[str] = []
            ids: list[str] = []
            for _ in range(2):
                answer = await served.http.post("/api/generate", json=body)
                ids.append(answer.json()["job_id"])
                line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
                printed.append(line.decode().strip())
                # told twice, printed once
                event = await delivered(served.http, ids[-1], attempts=1)
                await served.http.post(f"/api/webhooks/{event}/redeliver")
                await delivered(served.http, ids[-1], attempts=2)
            unsigned = httpx.AsyncClient(trust_env=False)
            async with unsigned:
                assert (await unsigned.post(url, json={"type": "job.completed"})).status_code == 401
    finally:
        process.kill()
        rest = await process.stdout.read()
        await process.wait()
    assert printed == [f"job.completed completed {job_id}" for job_id in ids]
    assert rest == b""


async def delivered(http: httpx.AsyncClient, job_id: str, attempts: int) -> str:
    """Id of the job's event once it has been delivered that often."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            items = (await http.get("/api/webhooks", params={"job_id": job_id})).json()["items"]
            if items and (items[0]["status"], items[0]["attempts"]) == ("delivered", attempts):
                return str(items[0]["id"])
            await asyncio.sleep(0.02)
