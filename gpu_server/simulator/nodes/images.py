"""Image nodes, computed for real."""

import numpy as np

from gpu_server.simulator import edges
from gpu_server.simulator.nodes.compositing import with_channels
from gpu_server.simulator.nodes.scaling import resized
from gpu_server.simulator.nodes.table import Context, node
from gpu_server.simulator.values import Image, Mask


@node(
    "EmptyImage",
    category="image",
    inputs={
        "width": ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1}),
        "height": ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1}),
        "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
        "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
    },
    outputs=("IMAGE",),
)
def empty_image(
    _: Context, *, width: int, height: int, batch_size: int, color: int
) -> tuple[Image]:
    """Fill frames with one colour."""
    rgb = np.array([color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF], np.uint8)
    return (np.broadcast_to(rgb, (batch_size, height, width, 3)).copy(),)


@node(
    "ImageInvert",
    display_name="Invert Image",
    category="image",
    inputs={"image": ("IMAGE",)},
    outputs=("IMAGE",),
)
def image_invert(_: Context, *, image: Image) -> tuple[Image]:
    """Turn every value round."""
    return (np.uint8(255) - image,)


@node(
    "ImageBatch",
    display_name="Batch Images",
    category="image",
    inputs={"image1": ("IMAGE",), "image2": ("IMAGE",)},
    outputs=("IMAGE",),
)
def image_batch(_: Context, *, image1: Image, image2: Image) -> tuple[Image]:
    """Join two batches; the second takes the first one's size."""
    height, width = image1.shape[1:3]
    second = resized(image2, width, height, "bilinear", "center")
    channels = max(image1.shape[3], second.shape[3])
    return (np.concatenate([with_channels(image1, channels), with_channels(second, channels)]),)


@node(
    "ImageFromBatch",
    category="image/batch",
    module="comfy_extras.nodes_images",
    inputs={
        "image": ("IMAGE",),
        "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
        "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
    },
    outputs=("IMAGE",),
)
def image_from_batch(_: Context, *, image: Image, batch_index: int, length: int) -> tuple[Image]:
    """Take frames out of a batch."""
    first = min(image.shape[0] - 1, batch_index)
    return (image[first : first + length].copy(),)


@node(
    "ImageBlur",
    category="image/postprocessing",
    module="comfy_extras.nodes_post_processing",
    v3=True,
    inputs={
        "image": ("IMAGE", {}),
        "blur_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
        "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
    },
    outputs=("IMAGE",),
)
def image_blur(_: Context, *, image: Image, blur_radius: int, sigma: float) -> tuple[Image]:
    """Blur with a Gaussian kernel of 2r + 1 taps; sigma is measured in radii."""
    offsets = np.linspace(-1, 1, 2 * blur_radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return (np.stack([_blurred(frame, kernel) for frame in image]),)


def _blurred(frame: Image, kernel: Mask) -> Image:
    radius = len(kernel) // 2
    if radius >= min(frame.shape[:2]):
        message = "Padding size should be less than the corresponding input dimension"
        raise RuntimeError(message)  # as torch does: it mirrors a picture but once
    values = frame.astype(np.float32)
    for axis in (0, 1):
        margin = [(radius, radius) if axis == other else (0, 0) for other in range(3)]
        padded = np.pad(values, margin, mode="reflect")
        length = frame.shape[axis]
        values = np.zeros(frame.shape, np.float32)
        for tap, weight in enumerate(kernel):
            values += weight * padded.take(range(tap, tap + length), axis=axis)
    return values.clip(0, 255).astype(np.uint8)


@node(
    "GetImageSize",
    display_name="Get Image Size",
    category="image",
    module="comfy_extras.nodes_images",
    inputs={"image": ("IMAGE",)},
    hidden={"unique_id": "UNIQUE_ID"},
    outputs=("INT", "INT", "INT"),
    output_names=("width", "height", "batch_size"),
)
def get_image_size(context: Context, *, image: Image) -> tuple[int, int, int]:
    """Measure a picture and show the result on the node."""
    batch_size, height, width = image.shape[:3]
    context.text(f"width: {width}, height: {height}\n batch size: {batch_size}")
    return width, height, batch_size


_THRESHOLD = {"min": 0.01, "max": 0.99, "step": 0.01}


@node(
    "Canny",
    category="image/preprocessors",
    module="comfy_extras.nodes_canny",
    v3=True,
    inputs={
        "image": ("IMAGE", {}),
        "low_threshold": ("FLOAT", {"default": 0.4, **_THRESHOLD}),
        "high_threshold": ("FLOAT", {"default": 0.8, **_THRESHOLD}),
    },
    outputs=("IMAGE",),
)
def canny(_: Context, *, image: Image, low_threshold: float, high_threshold: float) -> tuple[Image]:
    """Draw the edges of a picture, white on black."""
    found = [edges.canny(frame, low_threshold, high_threshold) for frame in image]
    return (np.stack([np.repeat(one[..., None], 3, axis=2) for one in found]) * np.uint8(255),)
