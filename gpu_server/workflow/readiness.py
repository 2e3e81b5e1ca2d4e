"""Workflow against `/object_info`: what a ComfyUI lacks to run it, and where to get it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from gpu_server.protocol import Missing
from gpu_server.workflow.bind import ParamError, bind
from gpu_server.workflow.graph import Graph, WorkflowError, is_link, links, resolve
from gpu_server.workflow.literals import unfit_literal, unfit_target, with_fixed
from gpu_server.workflow.manifest import Limits, Manifest, ModelRequirement, Param
from gpu_server.workflow.node_specs import ObjectInfo, input_spec, node_spec, types_fit
from gpu_server.workflow.sources import missing_class, missing_file, names_a_model
from gpu_server.workflow.surgery import prune

Chosen = dict[tuple[str, str], Param]
"""Inputs (node, name) that a caller's choice or file fills."""

_Call = tuple[dict[str, JsonValue], dict[str, list[str]]]
"""Values and uploaded files, by parameter."""

_TRIAL_RUN = "00000000-0000-0000-0000-000000000000"
_TRIAL_FILE = "example.png"


def check_against(graph: Graph, manifest: Manifest, object_info: ObjectInfo) -> list[Missing]:
    """List everything missing or unfit, each thing once."""
    # What no output depends on is dropped before a run: nothing it lacks is missed.
    used = with_fixed(graph, manifest)
    prune(used, [o.node for o in manifest.outputs.values()])
    classes = _missing_classes(used, manifest, object_info)
    chosen = _chosen(graph, manifest)
    values = [
        *_models(used, chosen, manifest, object_info),
        *_literals(used, chosen, manifest, object_info),
    ]
    if classes:
        # Without the classes only files can be judged.
        return [*classes, *(each for each in values if each.kind == "model")]
    found = [
        *values,
        *_links(used, object_info),
        *_bindings(graph, used, manifest, object_info),
        *_outputs(graph, manifest, object_info),
    ]
    return found or list(_trials(graph, manifest, object_info))


def _invalid(name: str, detail: str) -> Missing:
    return Missing(kind="invalid", name=name, detail=detail)


def _missing_classes(graph: Graph, manifest: Manifest, object_info: ObjectInfo) -> list[Missing]:
    lacking = sorted({str(n["class_type"]) for n in graph.values()} - set(object_info))
    packs = ", ".join(p.cnr_id for p in manifest.packs)
    oldest = manifest.comfyui.min if manifest.comfyui else None
    return [missing_class(name, packs=packs, oldest=oldest) for name in lacking]


def _models(
    graph: Graph, chosen: Chosen, manifest: Manifest, object_info: ObjectInfo
) -> Iterator[Missing]:
    """Model files the graph names and ComfyUI does not list."""
    required = {m.name: m for m in manifest.models}
    seen: set[str] = set()
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            model = required.get(value) if isinstance(value, str) else None
            if model is None or (node_id, name) in chosen or model.name in seen:
                continue
            spec = input_spec(object_info, node, name)
            if spec is not None and value not in (spec.choices or ()):
                seen.add(model.name)
                yield _missing_model(model)


def _missing_model(model: ModelRequirement) -> Missing:
    return Missing(
        kind="model",
        name=model.name,
        directory=model.directory,
        url=model.url,
        bytes=model.bytes,
        license=model.license,
        detail="the download needs an account that accepted the licence" if model.gated else None,
    )


def _chosen(graph: Graph, manifest: Manifest) -> Chosen:
    """Inputs whose literal only stands in for an installed file that the caller chooses."""
    found: Chosen = {}
    for param in manifest.params.values():
        if (param.choices is not None and param.required) or param.upload is not None:
            found |= {resolve(graph, t.to): param for t in param.targets}
        if param.chain is not None:
            for to, key in param.chain.set.items():
                if key in param.chain.choices or param.upload is not None:
                    found[resolve(graph, to)] = param
    return found


def _literals(
    graph: Graph, chosen: Chosen, manifest: Manifest, object_info: ObjectInfo
) -> Iterator[Missing]:
    """Required inputs without a value, and combo values ComfyUI does not offer."""
    models = {m.name for m in manifest.models}
    for node_id, node in graph.items():
        spec = node_spec(object_info, node["class_type"], node["inputs"])
        for entry in spec.inputs.values() if spec else ():
            place = f"{node_id}.{entry.name}"
            if entry.name not in node["inputs"]:
                grown = any(k.startswith(f"{entry.name}.") for k in node["inputs"])
                if entry.required and entry.default() is None and not grown:
                    yield _invalid(place, "a required input without value or default")
                continue
            value = node["inputs"][entry.name]
            param = chosen.get((node_id, entry.name))
            if param is not None and param.required and param.choices and not entry.choices:
                yield Missing(
                    kind="model",
                    name=f"any of {param.choices}",
                    directory=param.choices,
                    detail=f"no file is installed in {param.choices}",
                )
            if param is not None or is_link(value) or (isinstance(value, str) and value in models):
                continue
            if entry.type == "COMBO" and entry.choices is not None and value not in entry.choices:
                if names_a_model(value):
                    yield missing_file(node["class_type"], entry.name, str(value))
                else:
                    yield _invalid(place, f"this ComfyUI does not offer {value!r}")
            elif wrong := unfit_literal(entry, value):
                yield _invalid(place, wrong)


def _links(graph: Graph, object_info: ObjectInfo) -> Iterator[Missing]:
    for node_id, name, source, slot in links(graph):
        entry = input_spec(object_info, graph[node_id], name)
        read = graph.get(source)
        outputs = node_spec(object_info, read["class_type"], read["inputs"]) if read else None
        if outputs is None or not 0 <= slot < len(outputs.outputs):
            yield _invalid(f"{node_id}.{name}", f"node {source} has no output {slot}")
        elif entry is not None and not types_fit(outputs.outputs[slot], entry.type):
            yield _invalid(
                f"{node_id}.{name}", f"{outputs.outputs[slot]} does not fit {entry.type}"
            )


def _bindings(
    graph: Graph, used: Graph, manifest: Manifest, object_info: ObjectInfo
) -> Iterator[Missing]:
    """Targets the node classes do not declare, free strings at file inputs, impossible limits."""
    for name, param in manifest.params.items():
        for target in param.targets:
            node, key = resolve(graph, target.to)
            if node not in used:
                continue
            spec = node_spec(object_info, graph[node]["class_type"], graph[node]["inputs"])
            if spec is None or not spec.declares(key):
                yield _invalid(target.to, f"{graph[node]['class_type']} declares no input {key!r}")
                continue
            entry = spec.inputs.get(key)
            guarded = param.upload or param.choices or target.map is not None
            if entry and (entry.type == "COMBO" or entry.names_a_file) and not guarded:
                yield _invalid(target.to, f"{name} would reach a list of files: use choices or map")
            elif entry and (wrong := unfit_target(param, target, entry)):
                yield _invalid(f"{node}.{key}", f"{name}: {wrong}")
            elif entry and param.limits and not target.transforms:
                yield from _limits(name, param.limits, entry.options)


def _limits(name: str, limits: Limits, bounds: Mapping[str, Any]) -> Iterator[Missing]:
    low, high = bounds.get("min"), bounds.get("max")
    if low is not None and limits.minimum is not None and limits.minimum < low:
        yield _invalid(f"params.{name}.limits", f"the node's minimum is {low}")
    if high is not None and limits.maximum is not None and limits.maximum > high:
        yield _invalid(f"params.{name}.limits", f"the node's maximum is {high}")


def _outputs(graph: Graph, manifest: Manifest, object_info: ObjectInfo) -> Iterator[Missing]:
    for name, output in manifest.outputs.items():
        spec = node_spec(object_info, graph[output.node]["class_type"])
        if spec is not None and not spec.output_node:
            yield _invalid(f"outputs.{name}", f"node {output.node} delivers nothing")


def _trials(graph: Graph, manifest: Manifest, object_info: ObjectInfo) -> Iterator[Missing]:
    """Expand the graph as calls would, each change once, and look at what is left of it."""
    params = {n: p.model_copy(update={"required": False}) for n, p in manifest.params.items()}
    optional = manifest.model_copy(update={"params": params})
    found: dict[Missing, None] = {}
    for given, files in _calls(manifest):
        try:
            bound = bind(
                graph, optional, given, run_id=_TRIAL_RUN, object_info=object_info, uploads=files
            )
        except (WorkflowError, ParamError) as error:
            found[_invalid("graph", str(error))] = None
        else:
            found |= dict.fromkeys(_remains(bound.graph, object_info))
    yield from found


def _calls(manifest: Manifest) -> Iterator[_Call]:
    """An empty call, then one for each value and number of files that changes the graph."""
    yield {}, {}
    for name, param in manifest.params.items():
        for case in param.when:
            if not case.is_empty:
                yield {name: case.equals}, {}
        if param.upload is not None and (param.absent or param.items or param.chain):
            most = min(param.most, len(param.items) or 2)
            for count in range(1, most + 1):
                yield {}, {name: [_TRIAL_FILE] * count}


def _remains(graph: Graph, object_info: ObjectInfo) -> Iterator[Missing]:
    """Find what an expansion left open or joined wrongly."""
    for node_id, node in graph.items():
        spec = node_spec(object_info, node["class_type"], node["inputs"])
        for entry in spec.inputs.values() if spec else ():
            if entry.required and entry.is_socket and entry.name not in node["inputs"]:
                yield _invalid(f"{node_id}.{entry.name}", "left without a link")
    yield from _links(graph, object_info)
