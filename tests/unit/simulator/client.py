"""A simulator process and a client that reads it the way ComfyUI's clients do."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import websocket
from numpy.typing import NDArray
from PIL import Image

Json = dict[str, Any]
Graph = dict[str, Json]
PATIENCE = 30


def node(class_type: str, **inputs: object) -> Json:
    return {"class_type": class_type, "inputs": inputs}


def picture(color: int = 1, prefix: str = "test/a", *, side: int = 16, batch: int = 1) -> Graph:
    """EmptyImage to SaveImage."""
    return {
        "1": node("EmptyImage", width=side, height=side, batch_size=batch, color=color),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def text_to_image(**changes: Any) -> Graph:
    """The shortest text-to-image graph with a LoRA; changes go to the node that has the input."""
    graph = {
        "4": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.ckpt"),
        "10": node(
            "LoraLoader",
            model=["4", 0],
            clip=["4", 1],
            lora_name="demo-ink.safetensors",
            strength_model=1.0,
            strength_clip=1.0,
        ),
        "6": node("CLIPTextEncode", clip=["10", 1], text="a lighthouse"),
        "7": node("CLIPTextEncode", clip=["10", 1], text=changes.pop("negative_text", "blurry")),
        "5": node("EmptyLatentImage", width=128, height=64, batch_size=1),
        "3": node(
            "KSampler",
            model=["10", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
            seed=1,
            steps=3,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="test/t2i"),
    }
    for name, value in changes.items():
        owner = next(one for one in graph.values() if name in one["inputs"])
        owner["inputs"][name] = value
    return graph


class Listener:
    """One websocket; the first `status` is already read."""

    def __init__(self, url: str, client_id: str) -> None:
        self.client_id = client_id
        address = f"{url.replace('http', 'ws')}/ws?clientId={client_id}"
        self.socket = websocket.create_connection(address, timeout=PATIENCE)
        self.next()

    def next(self) -> Json | bytes:
        message = self.socket.recv()
        return json.loads(message) if isinstance(message, str) else message

    def until_end(self, prompt_id: str) -> list[Json]:
        """Every JSON event up to the end of a run."""
        seen: list[Json] = []
        end = {"node": None, "prompt_id": prompt_id}
        while not seen or seen[-1] != {"type": "executing", "data": end}:
            message = self.next()
            if not isinstance(message, bytes):
                seen.append(message)
        return seen

    def until_lost(self) -> list[str]:
        """Types of every event before the connection breaks without a closing handshake."""
        seen: list[str] = []
        with contextlib.suppress(websocket.WebSocketConnectionClosedException, ConnectionError):
            while True:
                message = self.next()
                if not isinstance(message, bytes):
                    seen.append(message["type"])
        return seen


class Simulator:
    """A running simulator."""

    def __init__(self, folder: Path, port: int | None = None, **env: str) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)
        command = ["-m", "gpu_server.simulator", "--port", str(self.port), "--dir", str(folder)]
        environment = {**os.environ, "SIM_STEP_MS": "0", **env}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(httpx.TransportError):
                self.http.get("/_sim")
                return
            assert time.monotonic() < deadline, "the simulator did not answer"
            time.sleep(0.05)

    def log(self) -> str:
        """What it printed; only when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def stop(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(PATIENCE)
        self.http.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def state(self) -> Json:
        return self.http.get("/_sim").json()

    def knobs(self, **changes: object) -> Json:
        answer = self.http.post("/_sim", json=changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def listen(self, client_id: str | None = None) -> Listener:
        return Listener(self.url, client_id or uuid.uuid4().hex)

    @contextlib.contextmanager
    def listening(self) -> Generator[Listener]:
        listener = self.listen()
        try:
            yield listener
        finally:
            listener.socket.close()

    def submit(self, graph: object, **extra: object) -> str:
        answer = self.http.post("/prompt", json={"prompt": graph, **extra})
        assert answer.status_code == 200, answer.text
        return answer.json()["prompt_id"]

    def history(self, prompt_id: str) -> Json:
        return self.http.get(f"/history/{prompt_id}").json().get(prompt_id, {})

    def finished(self, prompt_id: str) -> Json:
        """The history entry, waited for."""
        deadline = time.monotonic() + PATIENCE
        while not (entry := self.history(prompt_id)):
            assert time.monotonic() < deadline, f"{prompt_id} is not finished"
            time.sleep(0.02)
        return entry

    def run(self, graph: Graph, **extra: object) -> Json:
        """The history entry of a run."""
        return self.finished(self.submit(graph, **extra))

    def events(self, graph: Graph) -> tuple[list[Json], Json]:
        """The events of a run, and its history entry."""
        with self.listening() as listener:
            prompt_id = self.submit(graph, client_id=listener.client_id)
            return listener.until_end(prompt_id), self.history(prompt_id)

    def queue(self) -> tuple[list[str], list[str]]:
        listing = self.http.get("/queue").json()
        return (
            [item[1] for item in listing["queue_running"]],
            [item[1] for item in listing["queue_pending"]],
        )

    def wait_until_running(self, prompt_id: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.queue()[0] != [prompt_id]:
            assert time.monotonic() < deadline, f"{prompt_id} does not run"
            time.sleep(0.02)

    def download(self, file: Json) -> bytes:
        answer = self.http.get("/view", params=file)
        assert answer.status_code == 200, answer.text
        return answer.content

    def upload(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Put a picture into input/."""
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        fields = {"overwrite": "true"}
        answer = self.http.post(
            "/upload/image", files={"image": (name, file.getvalue())}, data=fields
        )
        assert answer.status_code == 200, answer.text

    def outputs(self, graph: Graph) -> list[tuple[str, bytes]]:
        """Names and contents of every file of a run that went well, whatever its kind."""
        entry = self.run(graph)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        return [(file["filename"], self.download(file)) for file in all_files(entry)]

    def output(self, graph: Graph) -> bytes:
        """The only file of a run."""
        ((_, content),) = self.outputs(graph)
        return content

    def text(self, graph: Graph) -> str:
        """The only text that a run showed."""
        entry = self.run(graph)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        (text,) = [text for ui in entry["outputs"].values() for text in ui.get("text", [])]
        return text

    def failure(self, graph: Graph) -> Json:
        """How a run failed."""
        event, data = self.run(graph)["status"]["messages"][-1]
        assert event == "execution_error"
        return data

    def pixels(self, graph: Graph) -> list[NDArray[np.uint8]]:
        """The saved pictures of a run."""
        entry = self.run(graph)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return [np.asarray(Image.open(BytesIO(self.download(file)))) for file in saved_files(entry)]


def saved_files(entry: Json) -> list[Json]:
    return [file for ui in entry["outputs"].values() for file in ui.get("images", [])]


def all_files(entry: Json) -> list[Json]:
    """Everything that has a file name, whatever the node calls it."""
    shown = [item for ui in entry["outputs"].values() for items in ui.values() for item in items]
    return [item for item in shown if isinstance(item, dict) and "filename" in item]


def ending(entry: Json) -> str:
    """The last message of a run: how it ended."""
    return entry["status"]["messages"][-1][0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
