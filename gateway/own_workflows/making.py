"""From a graph somebody brings, with or without a manifest, to a workflow that is known to fit."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from gateway.backends.brought import PREFIX
from gateway.errors import FieldError, InvalidParameters
from gateway.own_workflows.contradictions import check_outputs, check_sources, check_steps
from gateway.own_workflows.faults import fault, node_name, place_of, refused, unfit
from gateway.own_workflows.marks import MOST_FILES, found_outputs, marked_params
from gateway.own_workflows.params import Kinds, is_reserved, params_model
from gateway.own_workflows.reading import require_keepable
from gateway.own_workflows.schemas import schema_of
from gpu_server.protocol import MAX_SLOTS
from gpu_server.workflow import (
    Graph,
    Workflow,
    WorkflowError,
    check,
    content_digest,
    make_workflow,
)
from gpu_server.workflow.file_inputs import OWN_TOOL, unfilled
from gpu_server.workflow.graph import is_link
from gpu_server.workflow.manifest import PREFIX_ROOT, Manifest, Param
from gpu_server.workflow.node_specs import ObjectInfo

TOOL = OWN_TOOL

MOST_PARAMS = 100
LONGEST_NAME = 200
"""Of a title."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A workflow as it is kept."""

    workflow: Workflow
    graph: Json
    manifest: Json
    """Complete: with a `schema` for every parameter, and every output."""


def make(name: str, graph: Graph, sent: Json | None, info: ObjectInfo | None) -> Made:
    """Check what was sent and fill in the rest. Raises InvalidParameters naming each place.

    Args:
        name: the workflow's own, without `PREFIX`.
        graph: as `read_graph` made it.
        sent: the manifest, as far as the caller wrote one.
        info: what a GPU service says of the graph's classes; None where none answers.
    """
    require_keepable("manifest", sent)
    manifest = _manifest(name, graph, sent or {}, info)
    _check_params(graph, manifest, info)
    _check_slots(manifest)
    check_outputs(graph, manifest)
    check_sources(manifest)
    params = {
        key: param.model_copy(update={"json_schema": schema_of(graph, key, param, info)})
        for key, param in manifest.params.items()
    }
    check_steps(manifest, params)
    whole = _dumped(manifest.model_copy(update={"params": params}))
    plain = cast("Json", graph)
    workflow = stored(name, plain, whole)
    _check_defaults(workflow)
    if info is not None:
        _check_against(workflow, info)
    return Made(workflow=workflow, graph=plain, manifest=whole)


def stored(name: str, graph: Json, manifest: Json) -> Workflow:
    """Make a workflow of what is kept of it; raises InvalidParameters if it does not fit."""
    digest = content_digest(graph, manifest)
    try:
        return make_workflow(f"{PREFIX}{name}", graph, manifest, digest=digest)
    except WorkflowError as error:
        raise unfit(error) from None


def _dumped(manifest: Manifest) -> Json:
    return manifest.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def _manifest(name: str, graph: Graph, sent: Json, info: ObjectInfo | None) -> Manifest:
    """Fill in what the caller left out, and validate the whole."""
    whole: Json = {"manifest": 1, "title": name, **sent, "tool": TOOL}
    whole.pop("variant", None)
    if "params" not in whole:
        whole["params"] = cast("Json", marked_params(graph, info))
    if "outputs" not in whole:
        whole["outputs"] = cast("Json", found_outputs(graph, info))
    given = whole.get("fixed", {})
    if isinstance(given, dict):
        # by whatever address: each prefix is set here
        kept = {to: value for to, value in given.items() if not _is_prefix(to)}
        whole["fixed"] = {**kept, **_prefixes(graph)}
    try:
        return Manifest.model_validate(whole)
    except ValidationError as error:
        raise InvalidParameters([_wrong(one) for one in error.errors()[:20]]) from None


def _wrong(error: Mapping[str, object]) -> FieldError:
    parts = cast("tuple[object, ...]", error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return fault(".".join(map(str, ("manifest", *parts))), str(error["type"]), message)


def _is_prefix(address: str) -> bool:
    return address.removeprefix("title:").partition(".")[2] == "filename_prefix"


def _prefixes(graph: Graph) -> Json:
    """Give every saver a folder of the run's own: no text of a caller becomes a file's name."""
    found: Json = {}
    for node_id, node in graph.items():
        if "filename_prefix" not in node["inputs"]:
            continue
        if is_link(node["inputs"]["filename_prefix"]):
            message = (
                f"{node_name(node_id, node)}: filename_prefix comes from a link: put a text there "
                "instead; each run gets a folder of its own anyway"
            )
            raise refused(place_of(node_id, "filename_prefix"), "linked_prefix", message)
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", node_id)
        found[f"{node_id}.filename_prefix"] = f"{PREFIX_ROOT}{plain}"
    return found


def _check_params(graph: Graph, manifest: Manifest, info: ObjectInfo | None) -> None:
    errors: list[FieldError] = []
    if len(manifest.params) > MOST_PARAMS:
        message = f"are {len(manifest.params)}: at most {MOST_PARAMS}"
        errors.append(fault("params", "too_long", message))
    if len(manifest.title) > LONGEST_NAME:
        message = f"must be at most {LONGEST_NAME} characters long"
        errors.append(fault("manifest.title", "string_too_long", message))
    for name, param in manifest.params.items():
        errors += _bad_names(name, param)
        if param.upload is not None and param.upload not in Kinds:
            message = f"{param.upload} files cannot be sent with a call"
            errors.append(fault(f"params.{name}", "unsupported", message))
    try:
        for one in unfilled(graph, manifest, info):
            said = f"{node_name(one.node, graph[one.node])}: {one.name}: {one.detail}"
            errors.append(fault(place_of(one.node, one.name), one.code, said))
    except WorkflowError as error:
        raise unfit(error) from None
    if errors:
        raise InvalidParameters(errors[:20])


def _bad_names(name: str, param: Param) -> Iterator[FieldError]:
    if is_reserved(name):
        message = "every call has something of that name already: choose another one"
        yield fault(f"params.{name}", "reserved", message)
    keys = param.chain.set.values() if param.chain else ()
    for one in (name, *(key for key in keys if key != ".")):
        if not _NAME.fullmatch(one) or (is_reserved(one) and one != name):
            message = f"{one[:64]!r} is no name that it can have: a to z, 0 to 9 and _, at most 64"
            yield fault(f"params.{name}", "bad_name", message)


def _check_slots(manifest: Manifest) -> None:
    """Keep to the number of files one run can deliver."""
    total = 0
    for name, output in manifest.outputs.items():
        most = output.max
        if isinstance(most, str):
            most = _most(manifest.params[most])
        if most is None or not 1 <= most <= MOST_FILES:
            message = f"max must be 1 to {MOST_FILES}, or a parameter whose limits say so"
            raise refused(f"outputs.{name}.max", "too_many_outputs", message)
        if output.min > most:
            message = f"min is {output.min}, which is above its max, {most}: no run could fit"
            raise refused(f"outputs.{name}", "no_output_fits", message)
        total += most
    if total > MAX_SLOTS:
        message = f"allow {total} files together: at most {MAX_SLOTS}"
        raise refused("outputs", "too_many_outputs", message)


def _most(param: Param) -> int | None:
    bounds = [part.maximum for part in (param.limits, param.json_schema) if part is not None]
    known = [bound for bound in bounds if bound is not None]
    return int(min(known)) if known else None


def _check_defaults(workflow: Workflow) -> None:
    """Hold the graph's own values to what callers are held to: they stand for what is left out."""
    model = params_model("Defaults", workflow)
    errors: list[FieldError] = []
    for name, value in workflow.defaults.items():
        info = model.model_fields[name]
        try:
            TypeAdapter[object](info.rebuild_annotation()).validate_python(value)
        except ValidationError as error:
            param = workflow.manifest.params[name]
            said = str(error.errors()[0]["msg"]).lower()
            message = f"the graph's own value {value!r} is not possible here: {said}"
            where = param.bind[0].to if param.bind else name
            errors.append(fault(f"params.{name}", "bad_default", f"{where}: {message}"))
    if errors:
        raise InvalidParameters(errors[:20])


def _check_against(workflow: Workflow, info: ObjectInfo) -> None:
    """Raise for what this ComfyUI will never take; what it only lacks is no error."""
    errors: list[FieldError] = []
    for thing in check(workflow, info):
        if thing.kind != "invalid":
            continue
        detail = thing.detail or "does not fit"
        node_id, _, name = thing.name.partition(".")
        node = workflow.graph.get(node_id)
        if node is None:
            errors.append(fault(thing.name, "workflow_invalid", detail))
        else:
            said = f"{node_name(node_id, node)}: {name}: {detail}"
            errors.append(fault(place_of(node_id, name), "workflow_invalid", said))
    if errors:
        raise InvalidParameters(errors[:20])
