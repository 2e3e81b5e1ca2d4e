"""The OpenAPI document and the pages written from the code."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from gateway import reference
from gateway.api import docs
from gateway.api.problems import all_errors
from gateway.job_codes import JOB_CODES
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.library import bytes_of, file_fields

ROOT = Path(__file__).parents[2]
KIND = r'"(?:usage|transient|fatal)"'
JOB_CODE = re.compile(
    rf"(?:RunFailed\(\s*{KIND},\s*|Failure\(\s*kind={KIND},\s*code=|_again\(\s*"
    r'|JobError\(\s*code=|ParamError\([^,()]*,\s*)"([a-z_]+)"'
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def document(served: Gateway) -> dict[str, Any]:
    return (await served.stranger.get("/openapi.json")).json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


async def test_every_operation_has_a_summary_a_description_and_a_tag(
    document: dict[str, Any],
) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert set(operation["tags"]) <= tags, (method, path)


async def test_operations_have_distinct_ids(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


async def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (path, status) != ("/readyz", "503"):
                content = response["content"]["application/problem+json"]
                ref = content["schema"]["$ref"]
                assert ref == "#/components/schemas/Problem", (method, path, status)


async def test_only_the_open_routes_need_no_key(document: dict[str, Any]) -> None:
    open_paths = {path for _, path, operation in operations(document) if not operation["security"]}
    assert open_paths == {"/health", "/livez", "/readyz"}


async def test_every_body_field_has_a_description(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for _, path, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = content["schema"]["$ref"].rpartition("/")[2]
            for field, schema in schemas[name]["properties"].items():
                assert schema.get("description"), (path, field)


async def demo_items(served: Gateway) -> dict[str, str]:
    """What the paths with an id in them need."""
    form = {"name": "Mug", "prompt": "TRIGGER_WORD on a {surface}"}
    files = {"image": bytes_of("red")}
    made = await served.http.post("/api/templates", data=form, files=files)
    return {"templates": made.json()["id"], "styles": "clay"}


async def test_the_examples_of_a_body_run_as_they_stand(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    backend = ScriptedBackend(installed={"loras": frozenset({"demo-style.safetensors"})})
    backend.gate.set()
    count = 0
    async with gateway(tmp_path / "demo", backend) as served:
        ids = await demo_items(served)
        for method, path, operation in operations(document):
            content = operation.get("requestBody", {}).get("content", {})
            for media_type, body in content.items():
                for example in body.get("examples", {}).values():
                    noun = path.removeprefix("/api/").partition("/")[0]
                    address = path.replace("{item_id}", ids.get(noun, ""))
                    sent = {"json": example["value"]}
                    if media_type == "multipart/form-data":
                        files = dict.fromkeys(file_fields(document, body), bytes_of("red"))
                        sent = {"data": example["value"], "files": files}
                    answer = await served.http.request(method, address, **sent)
                    assert answer.status_code in {200, 201, 202}, (path, answer.text)
                    count += 1
    assert count >= 7


async def test_every_parameter_and_body_field_states_its_default(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if not parameter.get("required"):
                assert "default" in parameter["schema"], (method, path, parameter["name"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            body = schemas[content["schema"]["$ref"].rpartition("/")[2]]
            for field, schema in body["properties"].items():
                assert field in body.get("required", ()) or "default" in schema, (path, field)


async def test_every_text_and_list_a_caller_sends_is_bounded(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bound = {"string": "maxLength", "array": "maxItems", "integer": "maximum", "number": "maximum"}
    for method, path, operation in operations(document):
        found = {p["name"]: p["schema"] for p in operation.get("parameters", ())}
        for content in operation.get("requestBody", {}).get("content", {}).values():
            found |= schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
        for name, schema in found.items():
            for part in [schema, *schema.get("anyOf", ())]:
                if part.get("format") in {"date-time", "binary"} or "enum" in part:
                    continue
                needed = bound.get(part.get("type", ""))
                assert needed is None or needed in schema or needed in part, (method, path, name)


async def test_what_a_cancelled_or_too_large_call_is_answered_is_documented(
    document: dict[str, Any],
) -> None:
    paths = document["paths"]
    assert "`cancelled`" in paths["/api/generate"]["post"]["responses"]["409"]["description"]
    assert "413" in paths["/api/models"]["post"]["responses"]


async def test_the_errors_page_explains_every_code(served: Gateway) -> None:
    page = (await served.stranger.get("/docs/errors")).text
    for code in {error.code for error in all_errors()} | set(JOB_CODES):
        assert f"id={code}>" in page


def test_every_code_a_job_can_fail_with_is_explained() -> None:
    sources = [
        path
        for folder in ("gateway/jobs", "gateway/backends", "gpu_server")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found = {code for path in sources for code in JOB_CODE.findall(path.read_text())}
    assert len(found) > 20
    assert found - set(JOB_CODES) == set()


async def test_the_documentation_page_names_the_document(served: Gateway) -> None:
    page = (await served.stranger.get("/docs")).text
    assert "/openapi.json" in page


async def test_the_documentation_page_needs_no_internet_where_its_scripts_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        (tmp_path / name).write_text(f"/* {name} */")
    monkeypatch.setattr(docs, "local_assets", lambda: tmp_path)
    async with gateway(tmp_path / "workspace") as served:
        page = (await served.stranger.get("/docs")).text
        assert "https://" not in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f'"/docs/assets/{name}"' in page
            script = await served.stranger.get(f"/docs/assets/{name}")
            assert script.text == f"/* {name} */"
        wrong = await served.http.post("/docs/assets/swagger-ui.css")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("name", ["errors.md", "settings.md", "tools.md"])
def test_the_reference_pages_are_as_written_from_the_code(name: str) -> None:
    written = reference.pages(ROOT / "workflows")[name]
    assert (ROOT / "docs" / name).read_text() == written, "run: python -m gateway docs"


def test_the_example_environment_names_every_setting() -> None:
    text = (ROOT / ".env.example").read_text()
    for name in reference.settings_names():
        assert f"{name}=" in text, name
