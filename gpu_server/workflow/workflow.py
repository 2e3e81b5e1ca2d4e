"""A graph and its manifest as one thing: read from disk, checked, ready to be bound."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import JsonValue, ValidationError

from gpu_server.protocol import Missing
from gpu_server.workflow.bind import BoundGraph, bind, check_names, choices_of, default_of
from gpu_server.workflow.file_inputs import OWN_TOOL, unfilled
from gpu_server.workflow.graph import Graph, WorkflowError, parse_graph
from gpu_server.workflow.manifest import Limits, Manifest, ModelRequirement, Output
from gpu_server.workflow.node_specs import ObjectInfo
from gpu_server.workflow.pictures import Misfit, Sizes, misfits
from gpu_server.workflow.readiness import check_against
from gpu_server.workflow.static_check import check_static


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A graph and its manifest, known to fit one another."""

    name: str
    """The files' stem."""
    digest: str
    """SHA-256 over the graph file, a zero byte and the manifest file."""
    graph: Graph = field(repr=False)
    manifest: Manifest = field(repr=False)

    @property
    def tool(self) -> str:
        """The tool that this workflow carries out."""
        return self.manifest.tool

    @property
    def variant(self) -> str | None:
        """The tool's variant that this workflow is."""
        return self.manifest.variant

    @property
    def title(self) -> str:
        """The name for people."""
        return self.manifest.title

    @property
    def models(self) -> tuple[ModelRequirement, ...]:
        """The model files that the graph names."""
        return self.manifest.models

    @property
    def outputs(self) -> Mapping[str, Output]:
        """What a run delivers, by name."""
        return self.manifest.outputs

    @property
    def defaults(self) -> dict[str, JsonValue]:
        """The graph's own values, by parameter.

        Left out: required parameters, seeds, files, texts inside a template, and what is not the
        same when it is given as when it is left out.
        """
        values = {
            name: default_of(self.graph, param)
            for name, param in self.manifest.params.items()
            if not (param.required or param.seed or param.upload)
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def limits(self) -> dict[str, Limits]:
        """Bounds narrower than the tool's own, by parameter."""
        return {n: p.limits for n, p in self.manifest.params.items() if p.limits is not None}

    @property
    def choices(self) -> dict[str, tuple[JsonValue, ...]]:
        """The only values taken, by parameter; the others are free within their limits."""
        found = {name: choices_of(param) for name, param in self.manifest.params.items()}
        return {name: values for name, values in found.items() if values}

    @property
    def files(self) -> dict[str, int]:
        """Most files each parameter takes that takes files."""
        return {n: p.most for n, p in self.manifest.params.items() if p.upload is not None}

    def check_names(self, params: Collection[str], files: Collection[str]) -> None:
        """Raise ParamError for a value or file that is unknown or missing."""
        check_names(self.manifest, params, files)

    def bind(
        self,
        params: Mapping[str, JsonValue],
        *,
        run_id: str,
        object_info: ObjectInfo,
        uploads: Mapping[str, Sequence[str]] | None = None,
        sizes: Sizes | None = None,
    ) -> BoundGraph:
        """Make the graph of one run; raises ParamError when a value does not fit."""
        return bind(
            self.graph,
            self.manifest,
            params,
            run_id=run_id,
            object_info=object_info,
            uploads=uploads,
            sizes=sizes,
        )

    def misfits(self, params: Mapping[str, JsonValue], sizes: Sizes) -> list[Misfit]:
        """Find the pictures whose size is known and does not fit."""
        return list(misfits(self.manifest, {**self.defaults, **params}, sizes))


def make_workflow(name: str, graph: JsonValue, manifest: JsonValue, *, digest: str) -> Workflow:
    """Check a graph and a manifest against one another; raises WorkflowError naming the place."""
    parsed = parse_graph(graph)
    try:
        model = Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise WorkflowError(place, first["msg"]) from None
    check_static(parsed, model)
    return Workflow(name=name, digest=digest, graph=parsed, manifest=model)


def digest_of(graph_file: bytes, manifest_file: bytes) -> str:
    """Name the content of a workflow's two files."""
    return hashlib.sha256(graph_file + b"\0" + manifest_file).hexdigest()


def content_digest(graph: JsonValue, manifest: JsonValue) -> str:
    """Name the content of a workflow that is in no files: the same on both sides of the wire."""
    return digest_of(_canonical(graph), _canonical(manifest))


def _canonical(part: JsonValue) -> bytes:
    return json.dumps(part, sort_keys=True).encode()


def load_workflows(
    path: Path, *, on_error: Callable[[str, str, WorkflowError], None] | None = None
) -> dict[str, Workflow]:
    """Read every `<name>.yaml` with its `<name>.json`.

    A file that does not fit raises WorkflowError, or is left out and told to
    `on_error(name, digest, error)`, so that one bad file need not stop a service.
    """
    found: dict[str, Workflow] = {}
    for manifest_path in sorted(path.glob("*.yaml")):
        name, graph_path = manifest_path.stem, manifest_path.with_suffix(".json")
        graph_file = graph_path.read_bytes() if graph_path.is_file() else b""
        manifest_file = manifest_path.read_bytes()
        digest = digest_of(graph_file, manifest_file)
        try:
            found[name] = _read(name, graph_file, manifest_file, digest)
        except WorkflowError as error:
            named = WorkflowError(f"{name}: {error.place}", error.detail)
            if on_error is None:
                raise named from None
            on_error(name, digest, named)
    return found


def _read(name: str, graph_file: bytes, manifest_file: bytes, digest: str) -> Workflow:
    if not graph_file:
        raise WorkflowError(f"{name}.json", "the manifest has no graph beside it")
    try:
        graph = json.loads(graph_file)
    except ValueError as error:
        raise WorkflowError(f"{name}.json", f"not JSON: {error}") from None
    try:
        manifest = yaml.safe_load(manifest_file)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise WorkflowError(f"{name}.yaml", f"not YAML{where}") from None
    return make_workflow(name, graph, manifest, digest=digest)


def check(workflow: Workflow, object_info: ObjectInfo) -> list[Missing]:
    """List what this ComfyUI lacks to run a workflow; empty = ready."""
    graph, manifest = workflow.graph, workflow.manifest
    found = check_against(graph, manifest, object_info)
    if manifest.tool == OWN_TOOL:
        # one that was taken while nobody knew its classes may turn out to read ComfyUI's disk
        for one in unfilled(graph, manifest, object_info):
            place = f"{one.node}.{one.name}"
            found.append(Missing(kind="invalid", name=place, detail=one.detail))
    return found
