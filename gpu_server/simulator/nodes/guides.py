"""Guide pictures that a model would draw from a picture: depth and pose.

They carry no mark, for they are fed to another model as masks are.
"""

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter

from gpu_server.simulator import boxes, stances, subjects
from gpu_server.simulator.editing import bounds
from gpu_server.simulator.nodes.table import Context, ModelFiles, Specs, choice, dynamic, node
from gpu_server.simulator.stances import Stance, Style
from gpu_server.simulator.values import Described, Image, Mask, Model, key_of

Poses = list[tuple[int, int, list[Stance]]]
"""POSE_KEYPOINT: for each picture its width, its height and the persons in it."""

_DA3 = "comfy_extras.nodes_depth_anything_3"
_NORMALIZATION = choice(["v2_style", "min_max", "raw"], default="v2_style")
_DEPTH: Specs = {
    "normalization": _NORMALIZATION,
    "apply_sky_clip": ("BOOLEAN", {"default": False}),
}
_SOFTNESS = 24
"""A depth map is smooth over the longer side divided by this."""
_ON: tuple[str, dict[str, object]] = ("BOOLEAN", {"default": True})


@node(
    "LoadDA3Model",
    display_name="Load Depth Anything 3",
    category="model/loaders",
    module=_DA3,
    v3=True,
    inputs={
        "model_name": choice(ModelFiles("geometry_estimation")),
        "weight_dtype": choice(["default", "fp16", "bf16", "fp32"], default="default"),
    },
    outputs=("DA3_MODEL",),
)
def load_da3_model(_: Context, *, model_name: str, weight_dtype: str) -> tuple[Described]:
    """Name a model."""
    return (Described(key_of("da3", model_name, weight_dtype)),)


@node(
    "DA3Inference",
    display_name="Run Depth Anything 3",
    category="image/geometry estimation",
    module=_DA3,
    v3=True,
    inputs={
        "da3_model": ("DA3_MODEL", {}),
        "image": ("IMAGE", {}),
        "resolution": ("INT", {"default": 504, "min": 140, "max": 2520, "step": 14}),
        "resize_method": choice(
            ["upper_bound_resize", "lower_bound_resize"], default="upper_bound_resize"
        ),
        "mode": dynamic(
            {
                "mono": {},
                "multiview": {
                    "ref_view_strategy": choice(
                        ["saddle_balanced", "saddle_sim_range", "first", "middle"],
                        default="saddle_balanced",
                    ),
                    "pose_method": choice(["cam_dec", "ray_pose"], default="cam_dec"),
                },
            }
        ),
    },
    outputs=("DA3_GEOMETRY",),
    output_names=("da3_geometry",),
)
def da3_inference(_: Context, *, image: Image, **_unused: object) -> tuple[Mask]:
    """Guess what is near: the subject, the lower part, and what is light; 1 is nearest."""
    return (np.stack([_depth(frame) for frame in image]),)


def _depth(picture: Image) -> Mask:
    height, width = picture.shape[:2]
    near = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    light = np.asarray(Pillow.fromarray(picture[..., :3]).convert("L"), np.float32) / 255
    sure = subjects.foreground(picture)
    guess = (near + light + 2 * sure) * np.float32(255 / 4)
    grey = Pillow.fromarray(guess.astype(np.uint8))
    smooth = grey.filter(ImageFilter.GaussianBlur(max(width, height) / _SOFTNESS))
    return np.asarray(smooth, np.float32) / np.float32(255)


@node(
    "DA3Render",
    display_name="Render Depth Anything 3",
    category="image/geometry estimation",
    module=_DA3,
    v3=True,
    inputs={
        "da3_geometry": ("DA3_GEOMETRY", {}),
        "output": dynamic({"depth": _DEPTH, "depth_colored": _DEPTH}),
    },
    outputs=("IMAGE",),
)
def da3_render(_: Context, *, da3_geometry: Mask, output: str, **_unused: object) -> tuple[Image]:
    """Show depth from black, far, to white, near, over its whole range; coloured, blue to red."""
    least, most = float(da3_geometry.min()), float(da3_geometry.max())
    grey = ((da3_geometry - least) * (255 / max(most - least, 1e-6))).astype(np.uint8)
    if output == "depth":
        return (np.repeat(grey[..., None], 3, axis=3),)
    if output != "depth_colored":
        raise NotImplementedError(f"the simulator renders no {output}")
    middle = 255 - np.abs(2 * grey.astype(np.int16) - 255)
    return (np.stack([grey, middle.astype(np.uint8), 255 - grey], axis=3),)


@node(
    "SDPoseKeypointExtractor",
    display_name="SDPose Keypoint Extractor",
    category="image/detection",
    module="comfy_extras.nodes_sdpose",
    v3=True,
    inputs={
        "model": ("MODEL", {}),
        "vae": ("VAE", {}),
        "image": ("IMAGE", {}),
        "batch_size": ("INT", {"default": 16, "min": 1, "max": 10000, "step": 1}),
    },
    optional={"bboxes": ("BOUNDING_BOX", {"socketless": True, "forceInput": True})},
    outputs=("POSE_KEYPOINT",),
    output_names=("keypoints",),
)
def sdpose_keypoint_extractor(
    _: Context, *, model: Model, vae: Model, image: Image, batch_size: int, bboxes: object = None
) -> tuple[Poses]:
    """Take the subject, or what lies in each box, for a standing person."""
    if not (model.key and vae.key and batch_size):
        raise ValueError("the model is empty")
    poses: Poses = []
    for frame in image:
        height, width = frame.shape[:2]
        found = boxes.read(bboxes) or [bounds(subjects.foreground(frame)) or (0, 0, width, height)]
        poses.append((width, height, [stances.standing(box) for box in found]))
    return (poses,)


@node(
    "SDPoseDrawKeypoints",
    display_name="SDPose Draw Keypoints",
    category="image/detection",
    module="comfy_extras.nodes_sdpose",
    v3=True,
    inputs={
        "keypoints": ("POSE_KEYPOINT", {}),
        "draw_body": _ON,
        "draw_hands": _ON,
        "draw_face": _ON,
        "draw_feet": ("BOOLEAN", {"default": False}),
        "stick_width": ("INT", {"default": 4, "min": 1, "max": 10, "step": 1}),
        "face_point_size": ("INT", {"default": 3, "min": 1, "max": 10, "step": 1}),
        "score_threshold": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 1.0, "step": 0.01}),
        "draw_head": _ON,
    },
    outputs=("IMAGE",),
)
def sdpose_draw_keypoints(
    _: Context,
    *,
    keypoints: Poses,
    draw_body: bool,
    draw_hands: bool,
    draw_face: bool,
    draw_feet: bool,
    stick_width: int,
    face_point_size: int,
    draw_head: bool,
    **_unused: object,
) -> tuple[Image]:
    """Draw the persons on black; every joint is sure, so no threshold leaves one out."""
    style = Style(
        body=draw_body,
        hands=draw_hands,
        face=draw_face,
        feet=draw_feet,
        head=draw_head,
        stick_width=stick_width,
        face_point_size=face_point_size,
    )
    return (np.stack([stances.draw(found, w, h, style) for w, h, found in keypoints]),)
