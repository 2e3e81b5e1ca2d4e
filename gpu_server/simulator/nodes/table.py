"""The one table of node classes: input specs, outputs and what each does.

A node is a function with a declaration above it. Validation, execution and `/object_info` all read
the declaration, which keeps ComfyUI's own form: `"steps": ("INT", {"default": 20, "min": 1})`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gpu_server.simulator.folders import Folders


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A choice among the files of a model folder."""

    folder: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputImages:
    """A choice among the pictures in input/."""


InputType = str | list[str] | ModelFiles | InputImages
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
Detailed = tuple[InputType, dict[str, Any]]
Spec = tuple[InputType] | Detailed
Specs = dict[str, Spec]


class Context(Protocol):
    """What a node may use besides its inputs."""

    @property
    def folders(self) -> Folders:
        """Input, output and temp."""
        ...

    @property
    def graph(self) -> Mapping[str, Any]:
        """The prompt as it was posted; it goes into saved files."""
        ...

    @property
    def extra_pnginfo(self) -> Mapping[str, Any]:
        """What else goes into saved files."""
        ...

    @property
    def output_bytes(self) -> int:
        """Least size of a saved picture."""
        ...

    def step(self, done: int, total: int, preview: Callable[[], bytes]) -> None:
        """Take the time of one sampler step and report it; raises when interrupted."""
        ...

    def show(self, done: int, total: int, png: bytes) -> None:
        """Report progress and send a picture to the client."""
        ...

    def text(self, text: str) -> None:
        """Show a text on the node."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an output node returns: its `ui` output, and its values if it has any."""

    ui: dict[str, list[Any]]
    values: tuple[Any, ...] = ()


Check = Callable[[Folders, Any], str | None]
Fingerprint = Callable[[Folders, Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClass:
    """One row of the table."""

    name: str
    display_name: str | None
    category: str
    module: str
    required: Specs
    optional: Specs
    hidden: dict[str, str]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    output_is_list: tuple[bool, ...]
    input_is_list: bool
    output_node: bool
    v3: bool
    """Declared in ComfyUI's newer style, which `/object_info` shows a little differently."""
    experimental: bool
    execute: Callable[..., tuple[Any, ...] | Shown]
    checks: Mapping[str, Check]
    """Per input: what says what is wrong with its value, in place of the standard checks."""
    fingerprint: Fingerprint | None
    """What the result depends on besides the inputs, such as a file's content."""

    @property
    def per_node(self) -> bool:
        """Whether two equal nodes with different ids are different."""
        return "UNIQUE_ID" in self.hidden.values()

    def inputs(self, folders: Folders) -> dict[str, tuple[str | list[str], dict[str, Any], bool]]:
        """Return type, options and whether it is required, for each declared input."""
        resolved: dict[str, tuple[str | list[str], dict[str, Any], bool]] = {}
        for specs, required in ((self.required, True), (self.optional, False)):
            for name, spec in specs.items():
                options = _options(spec[1], folders) if len(spec) > 1 else {}
                resolved[name] = (_resolved(spec[0], folders), options, required)
        return resolved

    def declares(self, name: str) -> bool:
        """Tell whether the node has such an input, or one that a choice brings: `format.codec`."""
        owner, _, inner = name.partition(".")
        spec = self.required.get(owner) or self.optional.get(owner)
        return spec is not None and (not inner or spec[0] == DYNAMIC)

    def describe(self, folders: Folders) -> dict[str, Any]:
        """Return this class's entry of `/object_info`."""
        groups: dict[str, dict[str, Any]] = {"required": _listed(self.required, folders)}
        if self.optional:
            groups["optional"] = _listed(self.optional, folders)
        if self.hidden:
            groups["hidden"] = {k: [v] if self.v3 else v for k, v in self.hidden.items()}
        described: dict[str, Any] = {
            "input": groups,
            "input_order": {group: list(specs) for group, specs in groups.items()},
            "output": list(self.outputs),
            "output_is_list": list(self.output_is_list),
            "output_name": list(self.output_names),
            "name": self.name,
            "display_name": self.display_name,
            "description": "",
            "python_module": self.module,
            "category": self.category,
            "output_node": self.output_node,
        }
        if self.v3:
            described |= {
                "output_tooltips": [None] * len(self.outputs),
                "deprecated": False,
                "experimental": self.experimental,
                "api_node": False,
            }
        return described


def _resolved(kind: InputType, folders: Folders) -> str | list[str]:
    match kind:
        case ModelFiles(folder, also):
            return [*folders.model_files(folder), *also]
        case InputImages():
            return folders.input_images()
        case _:
            return kind


def _options(options: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """Return an input's options; the newer form of a choice keeps its files there."""
    files = options.get("options")
    return {**options, "options": _resolved(files, folders)} if files is not None else options


def _listed(specs: Specs, folders: Folders) -> dict[str, Any]:
    return {
        name: [_resolved(spec[0], folders), *(_options(each, folders) for each in spec[1:])]
        for name, spec in specs.items()
    }


def choice(options: list[str] | ModelFiles, **more: object) -> Detailed:
    """Declare a choice in ComfyUI's newer form."""
    return ("COMBO", {"multiselect": False, "options": options, **more})


def dynamic(choices: Mapping[str, Mapping[str, Spec]], **more: object) -> Detailed:
    """Declare a choice that brings inputs of its own, which a prompt gives as `name.input`.

    The node's function takes these under `**`, for their names are no identifiers.
    """
    options = [
        {"key": key, "inputs": {"required": {name: list(spec) for name, spec in specs.items()}}}
        for key, specs in choices.items()
    ]
    return (DYNAMIC, {"options": options, **more})


NODE_CLASSES: dict[str, NodeClass] = {}
"""Filled by the decorators of this package's modules when they are imported."""

_Execute = TypeVar("_Execute", bound=Callable[..., tuple[Any, ...] | Shown])


def node(
    name: str,
    *,
    category: str,
    inputs: Specs,
    outputs: Sequence[str] = (),
    optional: Specs | None = None,
    hidden: dict[str, str] | None = None,
    output_names: Sequence[str] | None = None,
    output_is_list: Sequence[bool] | None = None,
    input_is_list: bool = False,
    output_node: bool = False,
    display_name: str | None = None,
    module: str = "nodes",
    v3: bool = False,
    experimental: bool = False,
    checks: Mapping[str, Check] | None = None,
    fingerprint: Fingerprint | None = None,
) -> Callable[[_Execute], _Execute]:
    """Enter a node class into the table; its function gets the context, and inputs by name."""

    def enter(execute: _Execute) -> _Execute:
        NODE_CLASSES[name] = NodeClass(
            name=name,
            # A class of the newer declaration style has no display name unless it sets one.
            display_name=display_name if display_name or v3 else name,
            category=category,
            module=module,
            required=inputs,
            optional=optional or {},
            hidden=hidden or {},
            outputs=tuple(outputs),
            output_names=tuple(output_names or outputs),
            output_is_list=tuple(output_is_list or [False] * len(outputs)),
            input_is_list=input_is_list,
            output_node=output_node,
            v3=v3,
            experimental=experimental,
            execute=execute,
            checks=checks or {},
            fingerprint=fingerprint,
        )
        return execute

    return enter
