"""The README's calls work as printed, and the document's own examples run as they stand."""

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from gateway.examples import MUG
from tests.support.library import file_fields
from tests.support.stack import KEY, ROOT, Stack, wait_ready

PICTURE = base64.b64decode(MUG.partition(",")[2])
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_a_call_of_the_readme_works_as_printed(stack: Stack, tmp_path: Path, block: int) -> None:
    (tmp_path / ".env").write_text(f"GATEWAY_API_KEY={KEY}\n")
    script = BLOCKS[block].replace("http://127.0.0.1:8000", stack.url)
    assert script != BLOCKS[block]
    with stack.client() as client:
        wait_ready(client, "flux1-dev")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout[done.stdout.rindex("\n{") if "\n{" in done.stdout else 0 :])
    result: dict[str, Any] = last.get("result") or last
    assert result["success"] is True, done.stdout


def test_the_openapi_document_is_valid_and_describes_every_parameter(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    validate(document)
    fields = document["components"]["schemas"]["GenerateParams"]["properties"]
    for name, schema in fields.items():
        assert schema.get("description"), name
        assert name == "prompt" or "default" in schema or "anyOf" in schema, name
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), f"{method} {path}"
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), f"{method} {path} {parameter['name']}"


def test_every_example_of_the_openapi_document_runs_as_it_stands(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    ran = 0
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        if not body or "{" in path:
            continue
        ((media_type, content),) = body["content"].items()
        examples = content.get("examples", {})
        assert examples, path
        for name, example in examples.items():
            sent: dict[str, Any] = {"json": example["value"]}
            if media_type == "multipart/form-data":
                files = dict.fromkeys(file_fields(document, content), PICTURE)
                sent = {"data": example["value"], "files": files}
            answer = client.post(path, **sent)
            assert answer.status_code < 300, f"{path} {name}: {answer.text}"
            ran += 1
    assert ran >= 3
