"""The reference pages under `docs/`, written from the code they describe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic.fields import FieldInfo

from gateway.api.problems import all_errors
from gateway.catalogue import Catalogue, Variant
from gateway.errors import JobFailed
from gateway.job_codes import JOB_CODES
from gateway.operations import OPERATIONS
from gateway.settings import Settings, environment_name, shown_default
from gateway.tool import AnyTool, JobOptions
from gateway.tools import MODES, TOOLS
from gpu_server.workflow import load_workflows

NONE = "-"

_PARAMETERS = ("| parameter | default | bounds | meaning |", "| --- | --- | --- | --- |")
_WRITTEN = "<!-- Written by `python -m gateway docs`; change the code, not this file. -->"


def pages(workflows: Path) -> dict[str, str]:
    """Write every reference page, by file name."""
    known = {**load_workflows(workflows), **OPERATIONS}
    catalogue = Catalogue(tools=TOOLS, workflows=known, backends=())
    return {
        "errors.md": "\n".join(_errors()) + "\n",
        "settings.md": "\n".join(_settings()) + "\n",
        "tools.md": "\n".join(_tools(catalogue)) + "\n",
    }


def settings_names() -> list[str]:
    """List the environment variables of the gateway."""
    return [environment_name(name) for name in Settings.model_fields]


def _errors() -> Iterator[str]:
    yield from (_WRITTEN, "", "# Errors", "")
    yield "Every error is `application/problem+json` (RFC 9457): `type`, `title`, `status`,"
    yield "`detail`, `instance` and a stable `code`. `errors` names the wrong fields, `missing`"
    yield "what is not installed, `job_id` the job that failed. A job that fails shows the same"
    yield "codes in its `error`; ComfyUI's own text never reaches a caller."
    yield from ("", "| code | status | meaning | try again |", "| --- | --- | --- | --- |")
    for error in all_errors():
        status = "422, 502, 503, 504" if error is JobFailed else str(error.status)
        meaning = (error.__doc__ or "").strip().split("\n")[0].replace("|", "\\|")
        again = "yes" if error.retryable else "no"
        yield f'| <a id="{error.code}"></a>`{error.code}` | {status} | {meaning} | {again} |'
    yield from ("", "## Codes of failed jobs", "")
    yield "In the `error` of a job, and in the problem a waiting call is answered with."
    yield from ("", "| code | meaning |", "| --- | --- |")
    for code, meaning in JOB_CODES.items():
        anchor = "" if code in {error.code for error in all_errors()} else f'<a id="{code}"></a>'
        yield f"| {anchor}`{code}` | {meaning} |"
    yield from ("", "## When a job fails while a call waits", "")
    yield "The answer carries the job's own code and its id. The status says whose fault it was:"
    yield "422 the call's, 503 a model is missing, 504 the deadline passed, 409 somebody cancelled"
    yield "it, 502 anything else."


def _settings() -> Iterator[str]:
    yield from (_WRITTEN, "", "# Settings of the gateway", "")
    yield "Environment variables, or the same names in a `.env` file in the current folder; the"
    yield "environment wins."
    yield from ("", "| name | default | bounds | meaning |", "| --- | --- | --- | --- |")
    for name, info in Settings.model_fields.items():
        default = f"`{shown_default(name)}`" if shown_default(name) else NONE
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| `{environment_name(name)}` | {default} | {_bounds(info)} | {meaning} |"


def _bounds(info: FieldInfo) -> str:
    values: tuple[Any, ...] = getattr(info.annotation, "__args__", ())
    if values and all(isinstance(value, str) for value in values):
        return ", ".join(f"`{value}`" for value in values)
    found: list[str] = []
    for rule in info.metadata:
        for attribute, sign in (("ge", "≥"), ("le", "≤"), ("max_length", "length ≤")):
            limit = getattr(rule, attribute, None)
            if limit is not None:
                found.append(f"{sign} {limit}")
    return ", ".join(found) or NONE


def _tools(catalogue: Catalogue) -> Iterator[str]:
    yield from (_WRITTEN, "", "# Tools", "")
    yield "`GET /api/tools` answers the same with what is ready at the moment."
    for tool in catalogue.tools:
        yield from _tool(catalogue, tool)
    yield from ("", "## Options of every call", "")
    yield "Beside its own parameters every tool's call takes these; so does `POST /generate`."
    yield from ("", *_PARAMETERS)
    for name, field in JobOptions.model_json_schema()["properties"].items():
        yield _parameter(name, field, needed=False)
    yield from ("", "## Modes", "", "`POST /generate` takes them as `mode`.", "")
    yield from ("| mode | tool | meaning |", "| --- | --- | --- |")
    for mode in MODES:
        yield f"| `{mode.name}` | {mode.tool.name} | {mode.summary} |"


def _tool(catalogue: Catalogue, tool: AnyTool) -> Iterator[str]:
    yield from ("", f"## {tool.summary}", "", f"`POST {tool.path}` · `POST {tool.path}/async` ·")
    files = f" · `GET {tool.files_path}/{{filename}}`" if tool.files_path else ""
    yield f"`GET {tool.path}/{{job_id}}`{files}"
    yield from ("", tool.description, "")
    yield f"Most seconds of one execution (`TOOL_TIMEOUTS`): {tool.timeout_s:g}. Of a job, waiting"
    yield f"included (`deadline_s`): {tool.deadline_s:g}."
    yield from ("", *_PARAMETERS)
    schema = tool.params.model_json_schema()
    required = set(cast("list[str]", schema.get("required", [])))
    for name, field in cast("dict[str, dict[str, Any]]", schema["properties"]).items():
        yield _parameter(name, field, needed=name in required)
    families = catalogue.families(tool)
    yield from ("", "### Variants", "")
    for variant in families:
        yield from _variant(variant, default=variant.name == tool.default_variant)


def _parameter(name: str, field: dict[str, Any], *, needed: bool) -> str:
    default = "required" if needed else _literal(field.get("default"))
    parts = [field, *cast("list[dict[str, Any]]", field.get("anyOf", []))]
    found: list[str] = []
    for key, sign in (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("multipleOf", "multiple of"),
        ("minLength", "length ≥"),
        ("maxLength", "length ≤"),
        ("maxItems", "items ≤"),
    ):
        found += [f"{sign} {part[key]}" for part in parts if key in part]
    found += [f"`{choice}`" for part in parts for choice in part.get("enum", ())]
    meaning = str(field.get("description", "")).replace("|", "\\|")
    return f"| `{name}` | {default} | {', '.join(found) or NONE} | {meaning} |"


def _literal(value: object) -> str:
    if value == "":
        return "(empty)"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return NONE if value is None else f"`{value}`"


def _variant(variant: Variant, *, default: bool) -> Iterator[str]:
    workflow = variant.workflow
    yield f"**`{variant.pattern}`**{' (default)' if default else ''}: {workflow.title}"
    yield ""
    values = {k: v for k, v in workflow.defaults.items() if k != "loras"}
    yield "Its own defaults: " + ", ".join(f"`{k}` {_literal(v)}" for k, v in values.items()) + "."
    yield ""
    if not workflow.models:
        return
    yield from ("| file | size | licence | commercial use |", "| --- | --- | --- | --- |")
    for model in workflow.models:
        size = f"{model.bytes / 1e9:.2f} GB" if model.bytes else NONE
        allowed = "yes" if model.commercial else "**no**"
        place = f"[{model.directory}/{model.name}]({model.url})"
        yield f"| {place} | {size} | {model.license} | {allowed} |"
    yield ""
