"""Workflows as callers bring them."""

from typing import Any

import httpx

from tests.support.recordings import files

Json = dict[str, Any]
SIZE = {"width": 64, "height": 64, "steps": 2}


def lighthouse(name: str, **titles: str) -> Json:
    """The text-to-image graph that everybody has, its inputs marked; `titles` by node."""
    graph, _ = files("checkpoint")
    graph["1"]["inputs"]["ckpt_name"] = "tiny-sd15.ckpt"
    # without the LoRA, as it comes out of ComfyUI's own default workflow
    del graph["2"]
    for node in graph.values():
        for key, value in node["inputs"].items():
            if value == ["2", 0]:
                node["inputs"][key] = ["1", 0]
            elif value == ["2", 1]:
                node["inputs"][key] = ["1", 1]
    marks = {
        "3": "input: prompt",
        "5": "input: width, height",
        "6": "input: seed, steps, sampler.sampler_name",
        "8": "output: picture",
    }
    for node, title in (marks | titles).items():
        graph[node]["_meta"]["title"] = title
    return {"name": name, "graph": graph}


def send(http: httpx.Client, workflow: Json, status: int = 201) -> Json:
    answer = http.post("/api/workflows", json=workflow)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(http: httpx.Client, workflow: Json) -> list[Json]:
    return send(http, workflow, 422)["errors"]
