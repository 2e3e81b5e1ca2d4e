"""Video nodes: frames put together and encoded for real."""

from gpu_server.simulator import videos
from gpu_server.simulator.nodes.files import PNG_INPUTS, listed, place, told
from gpu_server.simulator.nodes.table import (
    DYNAMIC,
    Context,
    Detailed,
    Shown,
    choice,
    dynamic,
    node,
)
from gpu_server.simulator.values import Image, Video

_ENCODERS = {"h264": "libx264", "av1": "libsvtav1"}
_CONTAINERS = {
    "auto": ["h264", "av1"],
    "mp4": ["h264", "av1"],
    "mkv": ["h264", "av1"],
    "webm": ["av1"],
}
"""Container → codecs; the first is what `auto` chooses."""
_WEBM_ENCODERS = {"vp9": "libvpx-vp9", "av1": "libsvtav1"}


def _codec(names: list[str]) -> Detailed:
    return dynamic({"auto": {}, **{name: {} for name in names}})


@node(
    "CreateVideo",
    display_name="Create Video",
    category="image/video",
    module="comfy_extras.nodes_video",
    v3=True,
    inputs={
        "images": ("IMAGE", {}),
        "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
    },
    optional={
        "audio": ("AUDIO", {}),
        "bit_depth": (
            "INT",
            {"default": 8, "min": 8, "max": 10, "step": 2, "display": "number"},
        ),
    },
    outputs=("VIDEO",),
)
def create_video(
    _: Context, *, images: Image, fps: float, audio: object = None, bit_depth: int = 8
) -> tuple[Video]:
    """Put frames and their rate together."""
    if audio is not None:
        raise NotImplementedError("the simulator has no sound")
    return (Video(images=images, fps=fps, bit_depth=bit_depth),)


@node(
    "SaveVideo",
    display_name="Save Video",
    category="image/video",
    module="comfy_extras.nodes_video",
    v3=True,
    inputs={
        "video": ("VIDEO", {}),
        "filename_prefix": ("STRING", {"default": "video/ComfyUI", "multiline": False}),
        "format": dynamic({name: {"codec": _codec(known)} for name, known in _CONTAINERS.items()}),
    },
    # Below `format` since 0.34; the old place is still taken.
    optional={"codec": (DYNAMIC, {"hidden": True, **_codec(["h264", "av1"])[1]})},
    hidden=PNG_INPUTS,
    outputs=("VIDEO",),
    output_names=("video",),
    output_node=True,
)
def save_video(
    context: Context,
    *,
    video: Video,
    filename_prefix: str,
    format: str,  # noqa: A002 - ComfyUI's name
    codec: str = "auto",
    **nested: object,
) -> Shown:
    """Write a video into output/; a codec that the container cannot hold is replaced."""
    known = _CONTAINERS[format]
    wanted = [name for name in (nested.get("format.codec"), codec) if name in known]
    encoder = _ENCODERS[str(wanted[0]) if wanted else known[0]]
    suffix = "mp4" if format == "auto" else format
    return _saved(context, video, filename_prefix, suffix, encoder)


def _saved(
    context: Context,
    video: Video,
    prefix: str,
    suffix: str,
    encoder: str,
    *,
    crf: float | None = None,
) -> Shown:
    height, width = video.images.shape[1:3]
    folder, stem, counter = place(context, "output", prefix, (width, height))
    path = folder / f"{stem}_{counter:05}_.{suffix}"
    videos.write(path, video, encoder, told(context), crf)
    ui = {"images": [listed(context, path, "output")], "animated": [True]}
    return Shown(ui=ui, values=(video,))


@node(
    "SaveWEBM",
    category="image/video",
    module="comfy_extras.nodes_video",
    v3=True,
    experimental=True,
    inputs={
        "images": ("IMAGE", {}),
        "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
        "codec": choice(list(_WEBM_ENCODERS)),
        "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
        "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
    },
    hidden=PNG_INPUTS,
    output_node=True,
)
def save_webm(
    context: Context, *, images: Image, filename_prefix: str, codec: str, fps: float, crf: float
) -> Shown:
    """Write frames as a WEBM file into output/."""
    video = Video(images=images, fps=fps, bit_depth=8)
    shown = _saved(context, video, filename_prefix, "webm", _WEBM_ENCODERS[codec], crf=crf)
    return Shown(ui=shown.ui)
