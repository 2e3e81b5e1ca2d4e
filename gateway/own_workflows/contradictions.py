"""What a manifest says that no run could ever carry out, found before it is kept."""

from collections.abc import Mapping

from gateway.own_workflows.faults import node_name, refused
from gpu_server.addresses import FetchError, FetchRules, check_address
from gpu_server.workflow import Graph
from gpu_server.workflow.manifest import Manifest, OutputKind, Param

_MAKES: Mapping[str, OutputKind] = {
    "SaveImage": "image",
    "PreviewImage": "image",
    "MaskPreview": "image",
    "SaveAudio": "audio",
    "SaveAudioMP3": "audio",
    "SaveAudioOpus": "audio",
    "PreviewAudio": "audio",
    "SaveVideo": "video",
    "SaveWEBM": "video",
    "SaveGLB": "model",
    "PreviewAny": "text",
}
"""ComfyUI's own output nodes to the only kind of thing that each makes."""


def check_outputs(graph: Graph, manifest: Manifest) -> None:
    """Raise InvalidParameters for an output of another kind than its node makes."""
    for name, output in manifest.outputs.items():
        node = graph.get(output.node)
        made = None if node is None else _MAKES.get(node["class_type"])
        if node is None or made is None or output.kind in {made, "file"}:
            continue
        message = f"is {output.kind}, but {node_name(output.node, node)} makes {made}"
        raise refused(f"outputs.{name}", "wrong_kind", message)


def check_steps(manifest: Manifest, params: Mapping[str, Param]) -> None:
    """Raise InvalidParameters for whole numbers that have to be multiples of a fraction.

    Args:
        manifest: as it was sent.
        params: its parameters, each with the schema that was derived for it.
    """
    for name, sent in manifest.params.items():
        schema = params[name].json_schema
        if schema is None or schema.type != "integer":
            continue
        for place, part in (
            ("limits.multiple_of", sent.limits),
            ("schema.multipleOf", sent.json_schema),
        ):
            step = None if part is None else part.multiple_of
            if step is not None and not step.is_integer():
                message = f"is {step:g}, but what it goes to takes whole numbers"
                raise refused(f"params.{name}.{place}", "wrong_type", message)


def check_sources(manifest: Manifest) -> None:
    """Raise InvalidParameters for an address of a model that nothing would ever be fetched from."""
    for number, model in enumerate(manifest.models):
        place = f"manifest.models.{number}.url"
        try:
            check_address(model.url, FetchRules(ports=None))
        except FetchError as error:
            raise refused(place, error.code, error.message) from None
