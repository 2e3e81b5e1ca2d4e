"""Inputs by which a graph reads files of ComfyUI's own disk, and whether each call fills them.

A caller's own graph must not read what lies there: only files that came with the call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpu_server.workflow.graph import Graph, is_link, links, resolve
from gpu_server.workflow.manifest import Change, Manifest, Param
from gpu_server.workflow.node_specs import NodeSpec, ObjectInfo, node_spec
from gpu_server.workflow.values import ParamError

OWN_TOOL = "workflows"
"""The `tool` of every manifest of a caller's own workflow."""

Upload = Literal["image", "mask", "audio", "video"]
Place = tuple[str, str]
"""Node and input."""

LOADERS: Mapping[str, tuple[str, Upload]] = {
    "LoadImage": ("image", "image"),
    "LoadImageMask": ("image", "mask"),
    "LoadImageOutput": ("image", "image"),
    "LoadVideo": ("file", "video"),
    "LoadAudio": ("audio", "audio"),
    "VHS_LoadVideo": ("video", "video"),
    "VHS_LoadAudioUpload": ("audio", "audio"),
}
"""Well-known class to the input that names its file, and what kind of file that is."""
_HOW = "make it an input of the call by the title `input: <name>`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfilled:
    """An input that may read a file which did not come with the call."""

    node: str
    name: str
    code: str
    detail: str


def file_inputs(info: ObjectInfo | None, node: Mapping[str, Any]) -> list[str]:
    """List the inputs by which a node reads files of ComfyUI's own disk."""
    inputs: Mapping[str, Any] = node["inputs"]
    found: dict[str, None] = {}
    for spec in _specs(info, node):
        for each in spec.inputs.values():
            # one that is not there and need not be is not read
            if each.names_a_file and (each.required or each.name in inputs):
                found[each.name] = None
    known = LOADERS.get(node["class_type"])
    if known is not None and known[0] in inputs:
        found[known[0]] = None
    return list(found)


def _specs(info: ObjectInfo | None, node: Mapping[str, Any]) -> Iterator[NodeSpec]:
    """Read a node's class, as it is and with every choice of each dynamic combo it holds."""
    inputs: Mapping[str, Any] = node["inputs"]
    spec = node_spec(info, node["class_type"], inputs) if info else None
    if spec is None or info is None:
        return
    yield spec
    for each in spec.inputs.values():
        if each.type != "COMFY_DYNAMICCOMBO_V3":
            continue
        for option in each.options.get("options", ()):
            # a call may choose another than the graph does
            values = {**inputs, each.name: option["key"]}
            other = node_spec(info, node["class_type"], values)
            if other is not None:
                present = {k: s for k, s in other.inputs.items() if k in inputs}
                yield NodeSpec(inputs=present, outputs=other.outputs, output_node=other.output_node)


def unfilled(graph: Graph, manifest: Manifest, info: ObjectInfo | None) -> Iterator[Unfilled]:
    """Find every input that may read ComfyUI's disk; raises WorkflowError for a bad address."""
    uploads, others = _bound(graph, manifest)
    fixed = {resolve(graph, address) for address in manifest.fixed}
    for node_id, node in graph.items():
        for name in file_inputs(info, node):
            place = (node_id, name)
            wrong = _wrong(place, node["inputs"].get(name), uploads, others=others, fixed=fixed)
            if wrong is not None:
                yield Unfilled(node=node_id, name=name, code=wrong[0], detail=wrong[1])


def _wrong(
    place: Place,
    value: object,
    uploads: Mapping[Place, Sequence[bool]],
    *,
    others: Mapping[Place, str],
    fixed: set[Place],
) -> tuple[str, str] | None:
    """Say what is wrong with one input, as a code and a sentence."""
    if place in fixed:
        return "fixed_file", f"`fixed` sets a file of ComfyUI's own disk: {_HOW} instead"
    if place in others:
        message = f"{others[place]} would name a file of ComfyUI's own disk: it must be an `upload`"
        return "bound_file", message
    if place not in uploads:
        where = "what a link says" if is_link(value) else "a file"
        return "unmarked_file", f"reads {where} of ComfyUI's own disk: {_HOW}"
    if not any(uploads[place]):
        message = (
            "would read a file of ComfyUI's own disk when none is sent: make the upload `required`,"
            " or let its `absent` unset this input, or drop or bypass the node or what reads it"
        )
        return "optional_file", message
    return None


def _bound(graph: Graph, manifest: Manifest) -> tuple[dict[Place, list[bool]], dict[Place, str]]:
    """Tell which places uploads fill, and whether always; and which parameters fill others."""
    uploads: dict[Place, list[bool]] = {}
    others: dict[Place, str] = {}
    for name, param in manifest.params.items():
        for place, always in _filled(graph, param):
            if param.upload is None:
                others[place] = name
            else:
                uploads.setdefault(place, []).append(always)
    return uploads, others


def _filled(graph: Graph, param: Param) -> Iterator[tuple[Place, bool]]:
    """Every place a parameter goes to, and whether it leaves no literal there."""
    for target in param.bind:
        place = resolve(graph, target.to)
        yield place, param.required or _gone(graph, param.absent, place)
    for number, item in enumerate(param.items):
        for target in item.bind:
            place = resolve(graph, target.to)
            always = _gone(graph, item.absent, place)
            if number == 0:
                always = always or param.required or _gone(graph, param.absent, place)
            yield place, always
    # without items the whole group is taken out
    for to in param.chain.set if param.chain else ():
        yield resolve(graph, to), True


def _gone(graph: Graph, change: Change | None, place: Place) -> bool:
    """Tell whether a change may keep a node from being run; `require_sent` sees whether it did."""
    if change is None:
        return False
    unset = {resolve(graph, address) for address in change.unset}
    if place in unset:
        return True
    # what reads the node, directly or not: without readers it is no part of the run
    readers: dict[str, set[str]] = {}
    for node, _, source, _ in links(graph):
        readers.setdefault(source, set()).add(node)
    onward, waiting = {place[0]}, [place[0]]
    while waiting:
        new = readers.get(waiting.pop(), set()) - onward
        onward |= new
        waiting += new
    return not onward.isdisjoint({*change.drop, *change.bypass, *(node for node, _ in unset)})


def require_sent(
    graph: Graph, run: Graph, manifest: Manifest, uploads: Mapping[str, Sequence[str]]
) -> None:
    """Raise ParamError for an upload that was not sent though the run would read a file there.

    `graph` is the workflow's own, `run` what is left of it for one call.
    """
    if manifest.tool != OWN_TOOL:
        return
    for name, param in manifest.params.items():
        if param.upload is None or param.chain is not None:
            continue
        sent = len(uploads.get(name, ()))
        places = param.items or (param,)
        for number, one in enumerate(places):
            if number < sent or (one.absent is None and param.absent is None):
                # a required one is asked for elsewhere
                continue
            for target in one.bind:
                node, key = resolve(graph, target.to)
                if node in run and key in run[node]["inputs"]:
                    message = f"{name} is required with these values."
                    raise ParamError(name, "missing_param", message)
