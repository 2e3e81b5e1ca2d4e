"""Image nodes, computed for real."""

import numpy as np
from PIL import Image as Pillow

from gpu_server.simulator.nodes.masks import composite, resized_masks
from gpu_server.simulator.nodes.table import Context, node
from gpu_server.simulator.values import Image, Mask

UPSCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_FILTERS = {
    "nearest-exact": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "area": Pillow.Resampling.BOX,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}
_SIDE = {"default": 512, "min": 0, "max": 16384, "step": 1}


def resized(images: Image, width: int, height: int, method: str, crop: str = "disabled") -> Image:
    """Scale every frame; `crop="center"` keeps the proportions and cuts what is over."""
    if crop == "center":
        images = _cropped_to(images, width / height)
    if images.shape[1:3] == (height, width):
        return images
    frames = [
        np.asarray(Pillow.fromarray(frame).resize((width, height), _FILTERS[method]))
        for frame in images
    ]
    return np.stack(frames)


def _cropped_to(images: Image, ratio: float) -> Image:
    height, width = images.shape[1:3]
    left = round((width - height * ratio) / 2) if width / height > ratio else 0
    top = round((height - width / ratio) / 2) if width / height < ratio else 0
    return images[:, top : height - top, left : width - left]


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
    "ImageScale",
    display_name="Upscale Image",
    category="image/upscaling",
    inputs={
        "image": ("IMAGE",),
        "upscale_method": (UPSCALE_METHODS,),
        "width": ("INT", _SIDE),
        "height": ("INT", _SIDE),
        "crop": (["disabled", "center"],),
    },
    outputs=("IMAGE",),
)
def image_scale(
    _: Context, *, image: Image, upscale_method: str, width: int, height: int, crop: str
) -> tuple[Image]:
    """Scale to a size; a side of 0 follows the other one."""
    rows, columns = image.shape[1:3]
    if width == 0 and height == 0:
        return (image,)
    width = width or max(1, round(columns * height / rows))
    height = height or max(1, round(rows * width / columns))
    return (resized(image, width, height, upscale_method, crop),)


@node(
    "ImageScaleBy",
    display_name="Upscale Image By",
    category="image/upscaling",
    inputs={
        "image": ("IMAGE",),
        "upscale_method": (UPSCALE_METHODS,),
        "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
    },
    outputs=("IMAGE",),
)
def image_scale_by(
    _: Context, *, image: Image, upscale_method: str, scale_by: float
) -> tuple[Image]:
    """Scale both sides by a factor."""
    height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
    return (resized(image, width, height, upscale_method),)


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
    return (np.concatenate([_with_channels(image1, channels), _with_channels(second, channels)]),)


def _with_channels(images: Image, channels: int) -> Image:
    missing = channels - images.shape[3]
    return np.pad(images, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=255)


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
    "ImageCompositeMasked",
    category="image",
    module="comfy_extras.nodes_mask",
    inputs={
        "destination": ("IMAGE",),
        "source": ("IMAGE",),
        "x": ("INT", {"default": 0, "min": 0, "max": 16384, "step": 1}),
        "y": ("INT", {"default": 0, "min": 0, "max": 16384, "step": 1}),
        "resize_source": ("BOOLEAN", {"default": False}),
    },
    optional={"mask": ("MASK",)},
    outputs=("IMAGE",),
)
def image_composite_masked(
    _: Context,
    *,
    destination: Image,
    source: Image,
    x: int,
    y: int,
    resize_source: bool,
    mask: Mask | None = None,
) -> tuple[Image]:
    """Lay a picture over another one at (x, y), through a mask."""
    channels = destination.shape[3]
    source = _with_channels(source, max(channels, source.shape[3]))[..., :channels]
    if resize_source:
        source = resized(source, destination.shape[2], destination.shape[1], "bilinear")
    if mask is None:
        mask = np.ones(source.shape[:3], np.float32)
    mask = resized_masks(mask, source.shape[2], source.shape[1])

    def over(below: Mask, above: Mask, opacity: Mask) -> Mask:
        return np.asarray(below + (above - below) * opacity[..., None], np.float32)

    blended = composite(
        destination.astype(np.float32), source.astype(np.float32), x, y, operation=over, mask=mask
    )
    return (blended.clip(0, 255).astype(np.uint8),)


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
