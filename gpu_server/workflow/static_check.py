"""Manifest against graph: everything that can be known without a ComfyUI."""

from gpu_server.workflow.bind import default_of
from gpu_server.workflow.graph import Graph, WorkflowError, is_link, links, resolve
from gpu_server.workflow.manifest import PREFIX_ROOT, Chain, Change, Manifest, Param, Target
from gpu_server.workflow.surgery import check_group

_PREFIX_INPUTS = frozenset({"filename_prefix", "prefix"})
_PLACE_INPUTS = frozenset(
    {"folder", "subfolder", "directory", "path", "file", "filename", "url", *_PREFIX_INPUTS}
)
_PLACE_ENDINGS = ("_name", "_path", "_dir", "_file", "_folder", "_prefix", "_url")


def check_static(graph: Graph, manifest: Manifest) -> None:
    """Raise WorkflowError at the first place where manifest and graph do not fit."""
    for node, class_type in manifest.guard.items():
        found = graph.get(node, {}).get("class_type")
        if found != class_type:
            raise WorkflowError(f"guard.{node}", f"expected {class_type}, the graph has {found}")
    for name, param in manifest.params.items():
        _check_param(graph, f"params.{name}", param)
    _check_fixed(graph, manifest)
    _check_prefixes(graph, manifest)
    for name, output in manifest.outputs.items():
        if output.node not in graph:
            raise WorkflowError(f"outputs.{name}", f"the graph has no node {output.node!r}")
    _check_changes(graph, manifest)
    _check_appends(graph, manifest)


def _check_param(graph: Graph, place: str, param: Param) -> None:
    guarded = param.upload is not None or param.choices is not None
    for target in param.targets:
        _check_target(graph, target)
        if not guarded and target.map is None and _is_place(graph, target.to):
            raise WorkflowError(
                place, f"{target.to} names a file, folder or model: use choices, map or upload"
            )
    if param.chain is not None:
        _check_chain(graph, place, param, param.chain)
    same = default_of(graph, param) if param.bind else None
    for case in param.when:
        # The gateway sends defaults along: given or not, they must mean one thing.
        if same is not None and case.matches(same) and not case.is_empty:
            raise WorkflowError(f"{place}.when", f"{case.equals!r} is the graph's own value")


def _check_target(graph: Graph, target: Target) -> None:
    node, name = resolve(graph, target.to)
    if target.over_link:
        if not is_link(graph[node]["inputs"].get(name)):
            raise WorkflowError(target.to, "over_link, but the input holds no link")
        return
    _literal_at(graph, target.to)
    if target.append and not isinstance(graph[node]["inputs"][name], str):
        raise WorkflowError(target.to, "append, but the input holds no text")


def _check_changes(graph: Graph, manifest: Manifest) -> None:
    """Refuse a change that could leave a link to nowhere, alone or together with others.

    Each change must tidy up after itself: whatever reads a node it drops is unset or dropped by
    the same change. Then any of them may come together, because all of them are unset first.
    """
    chains = [p.chain for p in manifest.params.values() if p.chain is not None]
    chained = {node for chain in chains for node in chain.nodes}
    entries = {resolve(graph, entry) for chain in chains for entry in chain.links.values()}
    kept = {o.node for o in manifest.outputs.values()}
    for name, param in manifest.params.items():
        for change in param.changes:
            unset = {_unset_at(graph, f"params.{name}.unset", a) for a in change.unset}
            if unset & entries:
                raise WorkflowError(f"params.{name}.unset", "a chain enters at this input")
            _check_change(graph, f"params.{name}", change, unset, chained=chained, kept=kept)


def _check_appends(graph: Graph, manifest: Manifest) -> None:
    """Refuse a parameter that would overwrite what an earlier one added to a text."""
    added: set[tuple[str, str]] = set()
    for name, param in manifest.params.items():
        for target in param.targets:
            place = resolve(graph, target.to)
            if target.append:
                added.add(place)
            elif place in added:
                raise WorkflowError(
                    f"params.{name}", f"{target.to} was added to before: set it first"
                )


def _unset_at(graph: Graph, place: str, address: str) -> tuple[str, str]:
    node, name = resolve(graph, address)
    if name not in graph[node]["inputs"]:
        raise WorkflowError(place, f"node {node} has no input {name!r}")
    return node, name


def _check_change(
    graph: Graph,
    place: str,
    change: Change,
    unset: set[tuple[str, str]],
    *,
    chained: set[str],
    kept: set[str],
) -> None:
    for node in (*change.drop, *change.bypass):
        if node not in graph:
            raise WorkflowError(place, f"the graph has no node {node!r}")
        if node in chained:
            raise WorkflowError(place, f"node {node} belongs to a chain, which alone may move it")
        if node in kept:
            raise WorkflowError(place, f"node {node} is an output: without it nothing is delivered")
    for reader, name, source, _ in links(graph):
        if source in change.drop and reader not in change.drop and (reader, name) not in unset:
            raise WorkflowError(
                f"{place}.drop", f"{reader}.{name} reads node {source}: unset it as well"
            )


def _is_place(graph: Graph, address: str) -> bool:
    """Tell whether a caller's string would become a file, folder, model or prefix there."""
    node, name = resolve(graph, address)
    literal = graph[node]["inputs"].get(name)
    if literal is not None and not isinstance(literal, str) and not is_link(literal):
        return False
    loads = str(graph[node]["class_type"]).startswith("Load")
    return loads or name in _PLACE_INPUTS or name.endswith(_PLACE_ENDINGS)


def _literal_at(graph: Graph, address: str) -> None:
    node, name = resolve(graph, address)
    inputs = graph[node]["inputs"]
    if name not in inputs:
        raise WorkflowError(address, f"node {node} has no input {name!r}")
    if is_link(inputs[name]):
        raise WorkflowError(address, "the input holds a link, not a value")


def _check_chain(graph: Graph, place: str, param: Param, chain: Chain) -> None:
    check_group(graph, chain.nodes, chain.links)
    for to, key in chain.set.items():
        _literal_at(graph, to)
        if resolve(graph, to)[0] not in chain.nodes:
            raise WorkflowError(f"{place}.chain.set", f"{to} is not in the chain's nodes")
        if not param.upload and key not in chain.choices and _is_place(graph, to):
            raise WorkflowError(
                f"{place}.chain.set", f"{to} names a file, folder or model: it needs choices"
            )
    keys = set(chain.set.values())
    if "." in keys and len(keys) > 1:
        raise WorkflowError(f"{place}.chain.set", "'.' is the whole item and stands alone")
    for key in chain.choices.keys() - keys:
        raise WorkflowError(f"{place}.chain.choices", f"set has no key {key!r}")


def _check_fixed(graph: Graph, manifest: Manifest) -> None:
    for address, value in manifest.fixed.items():
        _literal_at(graph, address)
        name = resolve(graph, address)[1]
        if name in _PREFIX_INPUTS and not str(value).startswith(PREFIX_ROOT):
            raise WorkflowError(f"fixed.{address}", f"a prefix begins with {PREFIX_ROOT}")
        if name in _PREFIX_INPUTS and ".." in str(value):
            raise WorkflowError(f"fixed.{address}", "a prefix leads nowhere else: no '..'")
    fixed = {resolve(graph, address) for address in manifest.fixed}
    for node_id, node in graph.items():
        # Without a prefix of its own, a repeated prompt returns an earlier run's files.
        if "filename_prefix" in node["inputs"] and (node_id, "filename_prefix") not in fixed:
            raise WorkflowError(f"{node_id}.filename_prefix", f"fixed must set it to {PREFIX_ROOT}")


def _check_prefixes(graph: Graph, manifest: Manifest) -> None:
    """Refuse a parameter that would move a run's files out of the run's own folder."""
    set_here = {
        resolve(graph, address)
        for address, value in manifest.fixed.items()
        if str(value).startswith(PREFIX_ROOT)
    }
    for name, param in manifest.params.items():
        touched = [target.to for target in param.targets]
        touched += param.chain.set if param.chain is not None else ()
        touched += [address for change in param.changes for address in change.unset]
        for address in touched:
            place = resolve(graph, address)
            if place in set_here or place[1] == "filename_prefix":
                message = f"{address} is the run's own folder, which no parameter sets"
                raise WorkflowError(f"params.{name}", message)
