"""Latents: blank, encoded, masked, and drawn when they are decoded."""

from dataclasses import replace

import numpy as np

from gpu_server.simulator import editing, motion, pictures
from gpu_server.simulator.nodes.masks import resized_masks
from gpu_server.simulator.nodes.scaling import resized
from gpu_server.simulator.nodes.table import Context, node
from gpu_server.simulator.values import (
    Conditioning,
    Described,
    Image,
    Latent,
    LatentFrame,
    Mask,
    Model,
    key_of,
)

_BATCH = ("INT", {"default": 1, "min": 1, "max": 4096})
_SIDE_16 = {"min": 16, "max": 16384, "step": 16}
_SIDE_32 = {"min": 32, "max": 16384, "step": 32}
_LENGTH = {"min": 1, "max": 16384, "step": 4}


def _empty(width: int, height: int, batch_size: int) -> tuple[Latent]:
    # A latent has one cell for 8 by 8 pixels: sizes are cut down to multiples of 8.
    frames = (LatentFrame(),) * batch_size
    return (Latent(width // 8 * 8, height // 8 * 8, frames),)


@node(
    "EmptyLatentImage",
    display_name="Empty Latent Image",
    category="latent",
    inputs={
        "width": ("INT", {"default": 512, "min": 16, "max": 16384, "step": 8}),
        "height": ("INT", {"default": 512, "min": 16, "max": 16384, "step": 8}),
        "batch_size": _BATCH,
    },
    outputs=("LATENT",),
)
def empty_latent_image(_: Context, *, width: int, height: int, batch_size: int) -> tuple[Latent]:
    """Make blank latents."""
    return _empty(width, height, batch_size)


@node(
    "EmptySD3LatentImage",
    category="latent/sd3",
    module="comfy_extras.nodes_sd3",
    v3=True,
    inputs={
        "width": ("INT", {"default": 1024, **_SIDE_16}),
        "height": ("INT", {"default": 1024, **_SIDE_16}),
        "batch_size": _BATCH,
    },
    outputs=("LATENT",),
)
def empty_sd3_latent_image(
    _: Context, *, width: int, height: int, batch_size: int
) -> tuple[Latent]:
    """Make blank latents of the 16-channel kind."""
    return _empty(width, height, batch_size)


@node(
    "EmptyFlux2LatentImage",
    display_name="Empty Flux 2 Latent",
    category="latent",
    module="comfy_extras.nodes_flux",
    v3=True,
    inputs={
        "width": ("INT", {"default": 1024, **_SIDE_16}),
        "height": ("INT", {"default": 1024, **_SIDE_16}),
        "batch_size": _BATCH,
    },
    outputs=("LATENT",),
)
def empty_flux2_latent_image(
    _: Context, *, width: int, height: int, batch_size: int
) -> tuple[Latent]:
    """Make blank latents of the kind with a cell for 16 by 16 pixels."""
    return _empty(width // 16 * 16, height // 16 * 16, batch_size)


@node(
    "VAEEncode",
    display_name="VAE Encode",
    category="latent",
    inputs={"pixels": ("IMAGE",), "vae": ("VAE",)},
    outputs=("LATENT",),
)
def vae_encode(_: Context, *, pixels: Image, vae: Model) -> tuple[Latent]:
    """Keep pictures as latents, cropped about the middle to multiples of 8."""
    if not vae.key:
        raise ValueError("the VAE is empty")
    height, width = (side // 8 * 8 for side in pixels.shape[1:3])
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    cropped = pixels[:, top : top + height, left : left + width, :3]
    frames = tuple(LatentFrame(base=frame) for frame in cropped)
    return (Latent(width, height, frames),)


@node(
    "SetLatentNoiseMask",
    display_name="Set Latent Noise Mask",
    category="latent/inpaint",
    inputs={"samples": ("LATENT",), "mask": ("MASK",)},
    outputs=("LATENT",),
)
def set_latent_noise_mask(_: Context, *, samples: Latent, mask: Mask) -> tuple[Latent]:
    """Keep sampling to where a mask is white."""
    return (replace(samples, mask=resized_masks(mask, samples.width, samples.height)),)


@node(
    "WanImageToVideo",
    category="conditioning/video_models",
    module="comfy_extras.nodes_wan",
    v3=True,
    inputs={
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "vae": ("VAE", {}),
        "width": ("INT", {"default": 832, **_SIDE_16}),
        "height": ("INT", {"default": 480, **_SIDE_16}),
        "length": ("INT", {"default": 81, **_LENGTH}),
        "batch_size": _BATCH,
    },
    optional={
        "clip_vision_output": ("CLIP_VISION_OUTPUT", {}),
        "start_image": ("IMAGE", {}),
    },
    outputs=("CONDITIONING", "CONDITIONING", "LATENT"),
    output_names=("positive", "negative", "latent"),
)
def wan_image_to_video(
    _: Context,
    *,
    positive: Conditioning,
    negative: Conditioning,
    vae: Model,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    clip_vision_output: Described | None = None,
    start_image: Image | None = None,
) -> tuple[Conditioning, Conditioning, Latent]:
    """Attach the first frame of a video, and make room for the video."""
    (latent,) = _empty(width, height, batch_size)
    start = None if start_image is None else _start(start_image, latent)
    seen = key_of(clip_vision_output, start_image, vae)
    return (
        replace(positive, key=key_of(positive.key, seen), start=start),
        replace(negative, key=key_of(negative.key, seen), start=start),
        replace(latent, length=_whole(length)),
    )


def _start(images: Image, latent: Latent) -> Image:
    return resized(images[:1, ..., :3], latent.width, latent.height, "bilinear", "center")[0]


def _whole(length: int) -> int:
    """Cut a length to one more than a multiple of 4, which is all such a latent can hold."""
    return (length - 1) // 4 * 4 + 1


@node(
    "Wan22ImageToVideoLatent",
    category="conditioning/inpaint",
    module="comfy_extras.nodes_wan",
    v3=True,
    inputs={
        "vae": ("VAE", {}),
        "width": ("INT", {"default": 1280, **_SIDE_32}),
        "height": ("INT", {"default": 704, **_SIDE_32}),
        "length": ("INT", {"default": 49, **_LENGTH}),
        "batch_size": _BATCH,
    },
    optional={"start_image": ("IMAGE", {})},
    outputs=("LATENT",),
)
def wan22_image_to_video_latent(
    _: Context,
    *,
    vae: Model,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    start_image: Image | None = None,
) -> tuple[Latent]:
    """Make room for a video, with its first frame in place."""
    if not vae.key:
        raise ValueError("the VAE is empty")
    (latent,) = _empty(width // 32 * 32, height // 32 * 32, batch_size)
    start = None if start_image is None else _start(start_image, latent)
    frames = tuple(replace(frame, start=start) for frame in latent.frames)
    return (replace(latent, frames=frames, length=_whole(length)),)


@node(
    "VAEDecode",
    display_name="VAE Decode",
    category="latent",
    inputs={"samples": ("LATENT",), "vae": ("VAE",)},
    outputs=("IMAGE",),
)
def vae_decode(context: Context, *, samples: Latent, vae: Model) -> tuple[Image]:
    """Draw each latent and put the mark on it; latents of video become all their frames."""
    length = samples.length
    total = len(samples.frames) * length
    width, height = samples.width, samples.height
    decoded = motion.batch(context.folders.directory("temp"), total, height, width)
    for index, frame in enumerate(samples.frames):
        into = decoded[index * length : (index + 1) * length]
        if length == 1 and frame.start is None:
            into[0] = render(frame, width, height, vae, mark=True)
        else:
            drawn = render(frame, width, height, vae)
            first = drawn if frame.start is None else frame.start
            motion.marked_frames(key_of(frame.key, vae.key), first, drawn, into)
    return (decoded,)


def render(frame: LatentFrame, width: int, height: int, vae: Model, *, mark: bool = False) -> Image:
    """Draw a latent: rows, columns, RGB; the mark goes where the model would have painted."""
    if isinstance(frame.base, LatentFrame):
        base = render(frame.base, width, height, vae)
    elif frame.base is not None:
        base = frame.base
    else:
        base = np.full((height, width, 3), 127, np.uint8)
    if not frame.key:
        return pictures.marked(base) if mark else base
    drawn = pictures.draw(key_of(frame.key, vae.key), width, height)
    if frame.control is not None:
        drawn = editing.with_control(drawn, frame.control)
    if frame.mask is not None:
        return _inpainted(frame, frame.mask, base, drawn, mark=mark)
    if frame.references:
        drawn = editing.with_references(drawn, frame.references, editing.stage(width, height))
    if frame.strength < 1:
        drawn = pictures.blend(base, drawn, frame.strength)
    return pictures.marked(drawn) if mark else drawn


def _inpainted(frame: LatentFrame, mask: Mask, base: Image, drawn: Image, *, mark: bool) -> Image:
    """Draw inside the mask alone: the last reference, which is what is to be put there."""
    box = editing.bounds(mask)
    if box is None:
        return pictures.marked(base) if mark else base
    if frame.references:
        drawn = editing.with_references(drawn, frame.references[-1:], box)
    drawn = pictures.blend(base, drawn, frame.strength)
    return editing.repainted(base, pictures.marked(drawn, box) if mark else drawn, mask)
