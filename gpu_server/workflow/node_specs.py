"""What ComfyUI says about its node classes: `/object_info` read into types, bounds and choices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

ObjectInfo = Mapping[str, Any]

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"})
FILE_OPTIONS = (
    "image_upload",
    "audio_upload",
    "video_upload",
    "file_upload",
    "image_folder",
    "remote",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One declared input of a node class."""

    name: str
    type: str
    """ComfyUI's type; `COMBO` for both ways a combo is written."""
    required: bool
    options: Mapping[str, Any]
    choices: tuple[Any, ...] | None = None
    """What a combo takes; None when ComfyUI does not list it."""

    @property
    def is_socket(self) -> bool:
        """It takes a link, not a typed value."""
        return self.type not in WIDGET_TYPES or bool(self.options.get("forceInput"))

    @property
    def names_a_file(self) -> bool:
        """Its choices are files on ComfyUI's disk."""
        return any(self.options.get(key) for key in FILE_OPTIONS)

    def default(self) -> Any:  # noqa: ANN401 - a schema default is any JSON value
        """The schema's default, or None; a V3 combo without one starts at its first choice."""
        if "default" in self.options:
            return self.options["default"]
        if self.type == "COMFY_DYNAMICCOMBO_V3":
            return next((o["key"] for o in self.options.get("options", ())), None)
        v3 = self.type == "COMBO" and "options" in self.options
        if v3 and self.choices and not self.names_a_file:
            return self.choices[0]
        return None


def _input(name: str, raw: list[Any], *, required: bool) -> InputSpec:
    kind: Any = raw[0]
    options = cast("dict[str, Any]", raw[1] if len(raw) > 1 else {})
    if isinstance(kind, list):
        choices: tuple[Any, ...] = tuple(kind)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType] - an untyped answer
        return InputSpec(
            name=name, type="COMBO", required=required, options=options, choices=choices
        )
    listed = options.get("options") if kind == "COMBO" else None
    return InputSpec(
        name=name,
        type=str(kind),
        required=required,
        options=options,
        choices=tuple(listed) if listed is not None else None,
    )


def _section(
    section: Mapping[str, Any], values: Mapping[str, Any], prefix: str
) -> Iterator[InputSpec]:
    for kind in ("required", "optional"):
        for key, raw in cast("dict[str, list[Any]]", section.get(kind) or {}).items():
            spec = _input(prefix + key, raw, required=kind == "required")
            yield spec
            if spec.type == "COMFY_DYNAMICCOMBO_V3":
                # A dynamic combo's choice brings inputs of its own, under dotted names.
                chosen = values.get(spec.name, spec.default() if spec.required else None)
                for option in spec.options.get("options", ()):
                    if option["key"] == chosen:
                        yield from _section(option["inputs"], values, f"{spec.name}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One node class, for a node with these values."""

    inputs: dict[str, InputSpec]
    outputs: tuple[str, ...]
    output_node: bool

    def declares(self, name: str) -> bool:
        """Tell whether the class has this input, or one it grows from (`images.image0`)."""
        return name in self.inputs or ("." in name and name.split(".", 1)[0] in self.inputs)


_known: dict[int, tuple[Mapping[str, Any], NodeSpec]] = {}
"""Classes read before, by the identity of their definition, which is kept alive beside them."""
_MOST_KNOWN = 256


def node_spec(
    object_info: ObjectInfo, class_type: str, values: Mapping[str, Any] | None = None
) -> NodeSpec | None:
    """Read one class; None when ComfyUI does not have it."""
    raw = object_info.get(class_type)
    if raw is None:
        return None
    known = _known.get(id(raw))
    if known is not None:
        return known[1]
    spec = NodeSpec(
        inputs={s.name: s for s in _section(raw["input"], values or {}, "")},
        outputs=tuple("COMBO" if isinstance(o, list) else str(o) for o in raw["output"]),
        output_node=bool(raw.get("output_node")),
    )
    if not any(s.type == "COMFY_DYNAMICCOMBO_V3" for s in spec.inputs.values()):
        # The inputs of a dynamic combo depend on the node's values; all others do not.
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(raw)] = (raw, spec)
    return spec


def input_spec(object_info: ObjectInfo, node: Mapping[str, Any], name: str) -> InputSpec | None:
    """Read one input of one node of a graph."""
    spec = node_spec(object_info, node["class_type"], node["inputs"])
    return spec.inputs.get(name) if spec else None


def types_fit(source: str, target: str) -> bool:
    """Tell whether an output of one type may feed an input of the other, as ComfyUI sees it."""
    if "*" in (source, target) or "MATCHTYPE" in source + target or "AUTOGROW" in target:
        return True
    return bool(set(source.split(",")) & set(target.split(",")))
