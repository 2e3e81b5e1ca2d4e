"""Nodes that lay pictures over one another, and cut them out."""

import numpy as np
from PIL import Image as Pillow
from PIL import ImageColor

from gpu_server.simulator.editing import bounds
from gpu_server.simulator.nodes.masks import batched, composite, grown, resized_masks
from gpu_server.simulator.nodes.scaling import resized
from gpu_server.simulator.nodes.table import Context, node
from gpu_server.simulator.values import Image, Mask

_SIZE = {"default": 1024, "min": 64, "max": 4096, "step": 8}


def with_channels(images: Image, channels: int) -> Image:
    """Add opaque channels until there are so many."""
    missing = channels - images.shape[3]
    return np.pad(images, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=255)


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
    source = with_channels(source, max(channels, source.shape[3]))[..., :channels]
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
    "JoinImageWithAlpha",
    display_name="Join Image with Alpha",
    category="mask/compositing",
    module="comfy_extras.nodes_compositing",
    v3=True,
    inputs={"image": ("IMAGE", {}), "alpha": ("MASK", {})},
    outputs=("IMAGE",),
)
def join_image_with_alpha(_: Context, *, image: Image, alpha: Mask) -> tuple[Image]:
    """Make a picture transparent where a mask is white; the shorter batch is repeated."""
    masks = resized_masks(alpha, image.shape[2], image.shape[1])
    opaque = ((1 - masks.clip(0, 1)) * 255).round().astype(np.uint8)
    joined = [
        np.dstack([image[index % len(image)][..., :3], opaque[index % len(opaque)]])
        for index in range(max(len(image), len(opaque)))
    ]
    return (np.stack(joined),)


@node(
    "ImageCropToMask",
    display_name="Crop Image to Mask",
    category="image/transform",
    module="comfy_extras.nodes_images",
    v3=True,
    inputs={
        "images": ("IMAGE", {}),
        "masks": ("MASK", {}),
        "width": ("INT", _SIZE),
        "height": ("INT", _SIZE),
        "pad_factor": ("FLOAT", {"default": 1.0, "min": 1.0, "max": 2.0, "step": 0.01}),
        "grow_mask": ("INT", {"default": 0, "min": -32, "max": 32, "step": 1}),
        "background": ("COLOR", {"default": "#000000", "socketless": True}),
    },
    outputs=("IMAGE",),
    output_names=("images",),
)
def image_crop_to_mask(
    _: Context,
    *,
    images: Image,
    masks: Mask,
    width: int,
    height: int,
    pad_factor: float,
    grow_mask: int,
    background: str,
) -> tuple[Image]:
    """Cut out what is masked, on one colour, with a margin, and scale it to a size."""
    masks = grown(resized_masks(masks, images.shape[2], images.shape[1]), grow_mask, tapered=True)
    colour = np.array(ImageColor.getrgb(background)[:3], np.float32)
    frames: list[Image] = []
    for index, image in enumerate(images):
        mask = batched(masks)[index % len(masks)].clip(0, 1)[..., None]
        cut = (image[..., :3] * mask + colour * (1 - mask)).round().astype(np.uint8)
        frames.append(_cropped(cut, mask[..., 0], (width, height), pad_factor, colour))
    return (np.stack(frames),)


def _cropped(
    picture: Image, mask: Mask, size: tuple[int, int], pad_factor: float, colour: Mask
) -> Image:
    """Crop to the box around a mask, widened to the shape of the size wanted."""
    rows, columns = picture.shape[:2]
    left, top, right, bottom = bounds(mask) or (0, 0, columns, rows)
    ratio = size[0] / size[1]
    tall = max(bottom - top, (right - left) / ratio) * pad_factor
    wide = tall * ratio
    x, y = round((left + right - wide) / 2), round((top + bottom - tall) / 2)
    # The crop may reach beyond the picture: there is background, too.
    sheet = Pillow.new("RGB", (max(1, round(wide)), max(1, round(tall))), tuple(map(int, colour)))
    sheet.paste(Pillow.fromarray(picture), (-x, -y))
    return np.asarray(sheet.resize(size, Pillow.Resampling.LANCZOS))
