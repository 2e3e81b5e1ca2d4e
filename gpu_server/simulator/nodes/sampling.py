"""Samplers: they take their steps' time and describe what sampling would have made."""

from dataclasses import dataclass, replace

from gpu_server.simulator import pictures
from gpu_server.simulator.nodes.table import Context, choice, node
from gpu_server.simulator.values import (
    Conditioning,
    Described,
    Guider,
    Latent,
    LatentFrame,
    Model,
    Sigmas,
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
_SEED = (
    "INT",
    {"default": 0, "min": 0, "max": 18446744073709551615, "control_after_generate": True},
)
_CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01})
_STEP = {"min": 0, "max": 10000, "advanced": True}
_SIDE = {"default": 1024, "min": 16, "max": 16384, "step": 1}
_PREVIEW_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """What a sampler is to do with a latent."""

    key: str
    """Everything the drawing depends on besides its place in the batch."""
    model: Model
    positive: Conditioning
    strength: float
    steps: int


def sampled(context: Context, latent: Latent, sampling: Sampling) -> Latent:
    """Take the steps' time and describe each frame as drawn over what was there."""
    positive = sampling.positive
    masks = [None] * len(latent.frames) if latent.mask is None else latent.mask
    frames = tuple(
        LatentFrame(
            key_of(sampling.key, index),
            frame if sampling.strength < 1 or latent.mask is not None else None,
            sampling.strength,
            mask=masks[index % len(masks)],
            references=positive.references,
            control=sampling.model.control,
            start=frame.start if positive.start is None else positive.start,
        )
        for index, frame in enumerate(latent.frames)
    )

    def preview() -> bytes:
        return pictures.preview_jpeg(frames[0].key, latent.width, latent.height, _PREVIEW_SIZE)

    for done in range(1, sampling.steps + 1):
        context.step(done, sampling.steps, preview)
    return replace(latent, frames=frames)


def _followed(positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[str | None, ...]:
    """Return what of the texts counts: at cfg 1 the negative one is left out."""
    return positive.key, negative.key if cfg != 1 else None


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
    """Sample a latent anew, or change it as far as `denoise` says."""
    latent = latent_image
    if denoise == 0:
        return (latent,)
    # `denoise` is not in the key: it says how strongly the same drawing covers what was there.
    key = key_of(
        *(model.key, *_followed(positive, negative, cfg), seed, steps, cfg),
        *(sampler_name, scheduler, latent.width, latent.height),
    )
    sampling = Sampling(key=key, model=model, positive=positive, strength=denoise, steps=steps)
    return (sampled(context, latent, sampling),)


@node(
    "KSamplerAdvanced",
    display_name="KSampler (Advanced)",
    category="sampling",
    inputs={
        "model": ("MODEL",),
        "add_noise": (["enable", "disable"], {"advanced": True}),
        "noise_seed": _SEED,
        "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
        "cfg": _CFG,
        "sampler_name": (SAMPLERS,),
        "scheduler": (SCHEDULERS,),
        "positive": ("CONDITIONING",),
        "negative": ("CONDITIONING",),
        "latent_image": ("LATENT",),
        "start_at_step": ("INT", {"default": 0, **_STEP}),
        "end_at_step": ("INT", {"default": 10000, **_STEP}),
        "return_with_leftover_noise": (["disable", "enable"], {"advanced": True}),
    },
    outputs=("LATENT",),
)
def ksampler_advanced(
    context: Context,
    *,
    model: Model,
    add_noise: str,
    noise_seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    start_at_step: int,
    end_at_step: int,
    return_with_leftover_noise: str,
) -> tuple[Latent]:
    """Take some of a schedule's steps; the next sampler goes on where this one stopped."""
    latent = latent_image
    count = min(end_at_step, steps) - start_at_step
    if count <= 0:
        return (latent,)
    before = [frame.key for frame in latent.frames]
    key = key_of(
        *(model.key, *_followed(positive, negative, cfg), noise_seed, steps, cfg),
        *(sampler_name, scheduler, add_noise, start_at_step, end_at_step),
        *(return_with_leftover_noise, before, latent.width, latent.height),
    )
    # Without new noise it finishes what another sampler began, and that is drawn over wholly.
    strength = 1 - start_at_step / steps if add_noise == "enable" else 1.0
    sampling = Sampling(key=key, model=model, positive=positive, strength=strength, steps=count)
    return (sampled(context, latent, sampling),)


@node(
    "RandomNoise",
    category="sampling/custom_sampling/noise",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={"noise_seed": _SEED},
    outputs=("NOISE",),
)
def random_noise(_: Context, *, noise_seed: int) -> tuple[Described]:
    """Describe noise by its seed."""
    return (Described(key_of("noise", noise_seed)),)


@node(
    "KSamplerSelect",
    category="sampling/custom_sampling/samplers",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={"sampler_name": choice(SAMPLERS)},
    outputs=("SAMPLER",),
)
def ksampler_select(_: Context, *, sampler_name: str) -> tuple[Described]:
    """Name a sampler."""
    return (Described(key_of("sampler", sampler_name)),)


@node(
    "Flux2Scheduler",
    category="sampling/custom_sampling/schedulers",
    module="comfy_extras.nodes_flux",
    v3=True,
    inputs={
        "steps": ("INT", {"default": 20, "min": 1, "max": 4096}),
        "width": ("INT", _SIDE),
        "height": ("INT", _SIDE),
    },
    outputs=("SIGMAS",),
)
def flux2_scheduler(_: Context, *, steps: int, width: int, height: int) -> tuple[Sigmas]:
    """Lay out steps for a picture of a size."""
    return (Sigmas(key=key_of("flux2", steps, width, height), steps=steps, strength=1.0),)


@node(
    "SplitSigmasDenoise",
    category="sampling/custom_sampling/sigmas",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={
        "sigmas": ("SIGMAS", {}),
        "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
    },
    outputs=("SIGMAS", "SIGMAS"),
    output_names=("high_sigmas", "low_sigmas"),
)
def split_sigmas_denoise(_: Context, *, sigmas: Sigmas, denoise: float) -> tuple[Sigmas, Sigmas]:
    """Split a schedule so that the second part begins with that share of the steps left."""
    low = round(sigmas.steps * denoise)
    strength = sigmas.strength * low / sigmas.steps if sigmas.steps else 0.0
    return (
        Sigmas(key=key_of(sigmas, "high"), steps=sigmas.steps - low, strength=sigmas.strength),
        # How much is left is not in the key: the same drawing covers more or less.
        Sigmas(key=key_of(sigmas, "low"), steps=low, strength=strength),
    )


@node(
    "CFGGuider",
    display_name="CFG Guider",
    category="sampling/custom_sampling/guiders",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={
        "model": ("MODEL", {}),
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "cfg": _CFG,
    },
    outputs=("GUIDER",),
)
def cfg_guider(
    _: Context, *, model: Model, positive: Conditioning, negative: Conditioning, cfg: float
) -> tuple[Guider]:
    """Put together what a sampler follows."""
    key = key_of(model.key, *_followed(positive, negative, cfg), cfg)
    return (Guider(key=key, model=model, positive=positive),)


@node(
    "SamplerCustomAdvanced",
    category="sampling/custom_sampling",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={
        "noise": ("NOISE", {}),
        "guider": ("GUIDER", {}),
        "sampler": ("SAMPLER", {}),
        "sigmas": ("SIGMAS", {}),
        "latent_image": ("LATENT", {}),
    },
    outputs=("LATENT", "LATENT"),
    output_names=("output", "denoised_output"),
)
def sampler_custom_advanced(
    context: Context,
    *,
    noise: Described,
    guider: Guider,
    sampler: Described,
    sigmas: Sigmas,
    latent_image: Latent,
) -> tuple[Latent, Latent]:
    """Sample a latent by parts that were put together before."""
    if sigmas.steps == 0:
        return latent_image, latent_image
    key = key_of(noise, guider, sampler, sigmas, latent_image.width, latent_image.height)
    sampling = Sampling(
        key=key,
        model=guider.model,
        positive=guider.positive,
        strength=sigmas.strength,
        steps=sigmas.steps,
    )
    result = sampled(context, latent_image, sampling)
    return result, result
