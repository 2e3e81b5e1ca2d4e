"""Model nodes: text, latents and the sampler. Results are described by keys."""

import numpy as np

from gpu_server.simulator import pictures
from gpu_server.simulator.nodes.table import Context, node
from gpu_server.simulator.values import (
    Conditioning,
    Image,
    Latent,
    LatentFrame,
    Model,
    key_of,
)

SAMPLERS = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
SCHEDULERS = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]
_PREVIEW_SIZE = 512


@node(
    "CLIPTextEncode",
    display_name="CLIP Text Encode (Prompt)",
    category="conditioning",
    inputs={"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP",)},
    outputs=("CONDITIONING",),
)
def clip_text_encode(_: Context, *, text: str, clip: Model) -> tuple[Conditioning]:
    """Describe a text as seen by a text encoder."""
    return (Conditioning(key_of(clip.key, text)),)


@node(
    "ConditioningZeroOut",
    category="advanced/conditioning",
    inputs={"conditioning": ("CONDITIONING",)},
    outputs=("CONDITIONING",),
)
def conditioning_zero_out(_: Context, *, conditioning: Conditioning) -> tuple[Conditioning]:
    """Forget what a conditioning says."""
    return (Conditioning(key_of("zero", bool(conditioning.key))),)


@node(
    "FluxGuidance",
    category="advanced/conditioning/flux",
    module="comfy_extras.nodes_flux",
    v3=True,
    inputs={
        "conditioning": ("CONDITIONING", {}),
        "guidance": ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1}),
    },
    outputs=("CONDITIONING",),
)
def flux_guidance(
    _: Context, *, conditioning: Conditioning, guidance: float
) -> tuple[Conditioning]:
    """Attach a guidance strength."""
    return (Conditioning(key_of(conditioning.key, "guidance", guidance)),)


@node(
    "ModelSamplingAuraFlow",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    inputs={
        "model": ("MODEL",),
        "shift": ("FLOAT", {"default": 1.73, "min": 0.0, "max": 100.0, "step": 0.01}),
    },
    outputs=("MODEL",),
)
def model_sampling_aura_flow(_: Context, *, model: Model, shift: float) -> tuple[Model]:
    """Shift the noise schedule."""
    return (Model(key_of(model.key, "aura_flow", shift)),)


def _empty(width: int, height: int, batch_size: int) -> tuple[Latent]:
    # A latent has one cell for 8 by 8 pixels: sizes are cut down to multiples of 8.
    frames = (LatentFrame(),) * batch_size
    return (Latent(width // 8 * 8, height // 8 * 8, frames),)


_BATCH = ("INT", {"default": 1, "min": 1, "max": 4096})


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
        "width": ("INT", {"default": 1024, "min": 16, "max": 16384, "step": 16}),
        "height": ("INT", {"default": 1024, "min": 16, "max": 16384, "step": 16}),
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
    "KSampler",
    category="sampling",
    inputs={
        "model": ("MODEL",),
        "seed": (
            "INT",
            {
                "default": 0,
                "min": 0,
                "max": 18446744073709551615,
                "control_after_generate": True,
            },
        ),
        "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
        "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
        "sampler_name": (SAMPLERS, {}),
        "scheduler": (SCHEDULERS, {}),
        "positive": ("CONDITIONING",),
        "negative": ("CONDITIONING",),
        "latent_image": ("LATENT",),
        "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
    },
    outputs=("LATENT",),
)
def ksampler(
    context: Context,
    *,
    model: Model,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    denoise: float,
) -> tuple[Latent]:
    """Take the steps' time and describe what sampling would have made."""
    latent = latent_image
    if denoise == 0:
        return (latent,)
    # `denoise` is not in the key: it says how strongly the same drawing covers what was there.
    key = key_of(
        *(model.key, positive.key, negative.key if cfg != 1 else None, seed, steps, cfg),
        *(sampler_name, scheduler, latent.width, latent.height),
    )
    frames = tuple(
        LatentFrame(key_of(key, index), frame if denoise < 1 else None, denoise)
        for index, frame in enumerate(latent.frames)
    )

    def preview() -> bytes:
        return pictures.preview_jpeg(frames[0].key, latent.width, latent.height, _PREVIEW_SIZE)

    for done in range(1, steps + 1):
        context.step(done, steps, preview)
    return (Latent(latent.width, latent.height, frames),)


@node(
    "VAEDecode",
    display_name="VAE Decode",
    category="latent",
    inputs={"samples": ("LATENT",), "vae": ("VAE",)},
    outputs=("IMAGE",),
)
def vae_decode(_: Context, *, samples: Latent, vae: Model) -> tuple[Image]:
    """Draw each latent and put the mark on it."""
    frames = [render(frame, samples.width, samples.height, vae) for frame in samples.frames]
    return (np.stack([pictures.marked(frame) for frame in frames]),)


def render(frame: LatentFrame, width: int, height: int, vae: Model) -> Image:
    """Draw a latent without the mark: rows, columns, RGB."""
    if isinstance(frame.base, LatentFrame):
        base = render(frame.base, width, height, vae)
    elif frame.base is not None:
        base = frame.base
    else:
        base = np.full((height, width, 3), 127, np.uint8)
    if not frame.key:
        return base
    drawn = pictures.draw(key_of(frame.key, vae.key), width, height)
    return pictures.blend(base, drawn, frame.strength) if frame.strength < 1 else drawn


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
