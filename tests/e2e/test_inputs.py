"""Files as inputs, through real processes: gateway, GPU service and simulator."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.reading import colour_of, data_uri, picture, workflows
from tests.support.stack import Service, Stack

CYAN, RED = (0, 255, 255), (255, 0, 0)
SECONDS = 120
SLOW: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
    "num_inference_steps": 100,
}


class ReadingStack(Stack):
    """Its gateway has a tool that reads a file."""

    def command(self, service: Service) -> list[str]:
        command = super().command(service)
        if service != "gateway":
            return command
        return [command[0], str(Path(__file__).with_name("reading_gateway.py")), "serve"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("reading")
    stack = ReadingStack(folder, WORKFLOWS_PATH=str(workflows(folder / "workflows")))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        until_ready(client)
        yield client


def until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        tools = client.get("/api/tools").json()["items"]
        states = {t["name"]: {v["name"]: v["readiness"] for v in t["variants"]} for t in tools}
        if states["invert"]["plain"] == "ready":
            return
        time.sleep(0.1)
    raise AssertionError(f"the tool did not become ready: {states}")


def inverted(client: httpx.Client, image_url: str, **params: Any) -> dict[str, Any]:
    answer = client.post("/api/invert", json={"image_url": image_url, **params})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def file(client: httpx.Client, url: str) -> bytes:
    answer = client.get(url)
    assert answer.status_code == 200
    return answer.content


def submitted(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    answer = client.post(f"{path}/async", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def end_of(client: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/api/jobs/{job_id}", params={"wait": 20}).json()
        if job["status"] in {"completed", "failed", "cancelled"}:
            return job
    raise AssertionError(f"job {job_id} hangs: {job}")


def behind_others(stack: Stack, client: httpx.Client) -> list[str]:
    """Jobs that take every place the GPU service has, for as long as the test likes."""
    stack.simulator(step_ms=1000)
    slow = [submitted(client, "/api/generate", SLOW | {"seed": n}) for n in range(2)]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if all(client.get(f"/api/jobs/{job}").json()["status"] == "processing" for job in slow):
            return slow
        time.sleep(0.05)
    raise AssertionError("the GPU service did not take both")


def let_through(stack: Stack, client: httpx.Client, slow: list[str]) -> None:
    stack.simulator(step_ms=0)
    for job in slow:
        client.post(f"/api/jobs/{job}/cancel")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_inside_the_call_is_worked_on(client: httpx.Client, kind: str) -> None:
    made = inverted(client, data_uri(picture("red", (32, 16), kind)), scale=2)
    size, colour = colour_of(file(client, made["image_url"]))
    assert size == (64, 32)
    assert all(abs(a - b) < 20 for a, b in zip(colour, CYAN, strict=True))
    assert made["engine"] == "simulator"


def test_an_output_is_the_next_tools_input_under_each_of_its_addresses(
    client: httpx.Client,
) -> None:
    made = inverted(client, data_uri(picture("red")))
    entry = made["files"][0]
    absolute = f"{client.base_url}{entry['link']}".replace("//api", "/api")
    for address in (made["image_url"], entry["link"], entry["r2_path"], absolute):
        again = inverted(client, address)
        assert colour_of(file(client, again["image_url"])) == ((32, 16), RED)


def test_a_large_picture_reaches_comfyui_whole(client: httpx.Client) -> None:
    # past the end of a picture nobody looks: it only makes it long
    made = inverted(client, data_uri(picture("red") + bytes(9_000_000)))
    assert colour_of(file(client, made["image_url"]))[1] == CYAN


@pytest.mark.timeout(600)
def test_a_job_outlives_the_gateway_that_checked_its_input(stack: Stack) -> None:
    with stack.client() as client:
        until_ready(client)
        first = inverted(client, data_uri(picture("red")))
        slow = behind_others(stack, client)
        waiting = [
            submitted(client, "/api/invert", {"image_url": address})
            for address in (first["image_url"], data_uri(picture("blue")))
        ]
    stack.kill("gateway")
    stack.start("gateway")
    with stack.client() as client:
        let_through(stack, client, slow)
        ended = [end_of(client, job) for job in waiting]
        assert [job["status"] for job in ended] == ["completed"] * 2, ended
        colours = [colour_of(file(client, job["result"]["image_url"]))[1] for job in ended]
        assert colours == [RED, (255, 255, 0)]


@pytest.mark.timeout(600)
def test_a_file_deleted_before_its_turn_came_ends_the_job_with_its_parameter(
    stack: Stack, client: httpx.Client
) -> None:
    first = inverted(client, data_uri(picture("red")))
    slow = behind_others(stack, client)
    waiting = submitted(client, "/api/invert", {"image_url": first["image_url"]})
    assert client.delete(f"/api/jobs/{first['job_id']}").status_code == 204
    let_through(stack, client, slow)
    job = end_of(client, waiting)
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "input_gone",
        "message": "image_url: the file was deleted after the job was taken",
    }


@pytest.mark.timeout(600)
def test_a_host_nobody_knows_is_the_callers_fault_after_a_few_tries(client: httpx.Client) -> None:
    answer = client.post("/api/invert", json={"image_url": "https://nothing.invalid/a.png?key=1"})
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "fetch_failed"
    assert problem["detail"] == "image_url: nothing.invalid can't be resolved"


def test_what_is_stored_for_a_call_goes_with_its_job(stack: Stack, client: httpx.Client) -> None:
    made = inverted(client, data_uri(picture("green")))
    kept = list((stack.workspace / "data" / "files" / "inputs").rglob(f"{made['job_id']}/*.png"))
    assert len(kept) == 1
    assert client.delete(f"/api/jobs/{made['job_id']}").status_code == 204
    assert not kept[0].exists()
