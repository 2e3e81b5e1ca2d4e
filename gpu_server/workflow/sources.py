"""Where to get what a graph names and a ComfyUI lacks, as far as the graph alone lets one tell."""

from urllib.parse import quote

from gpu_server.protocol import Missing

_REGISTRY = "https://api.comfy.org/comfy-nodes/{}/node"
"""ComfyUI's registry: answers which pack has a class; 404 for its own nodes and unknown ones."""

_PACKS = (
    ("Florence2", "comfyui-florence2"),
    ("DownloadAndLoadFlorence2", "comfyui-florence2"),
    ("Sam2", "comfyui-segment-anything-2"),
    ("DownloadAndLoadSAM2", "comfyui-segment-anything-2"),
    ("VHS_", "comfyui-videohelpersuite"),
    ("GrowMaskWithBlur", "comfyui-kjnodes"),
    ("ImageResizeKJ", "comfyui-kjnodes"),
    ("IPAdapter", "comfyui_ipadapter_plus"),
)
"""Beginning of a class name to the registry's id of the pack that has it."""

_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
}
"""Input to ComfyUI's folder, whatever the node."""

_FOLDERS_OF_CLASSES = {
    "CLIPVisionLoader": "clip_vision",
    "UpscaleModelLoader": "upscale_models",
    "LatentUpscaleModelLoader": "latent_upscale_models",
    "ModelPatchLoader": "model_patches",
    "PhotoMakerLoader": "photomaker",
    "AudioEncoderLoader": "audio_encoders",
    "LoadBackgroundRemovalModel": "background_removal",
}

_MODEL_FILE = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".pkl")


def names_a_model(value: object) -> bool:
    """Tell a model's file name from another choice."""
    return isinstance(value, str) and value.lower().endswith(_MODEL_FILE)


def missing_class(name: str, *, packs: str, oldest: str | None) -> Missing:
    """Describe a node class that is not there; `packs` and `oldest` as its manifest has them."""
    known = packs or next((pack for start, pack in _PACKS if name.startswith(start)), "")
    if known:
        return Missing(kind="node", name=name, detail=f"custom nodes: {known}")
    if oldest is not None:
        return Missing(kind="node", name=name, detail=f"needs ComfyUI {oldest} or newer")
    return Missing(
        kind="node",
        name=name,
        url=_REGISTRY.format(quote(name, safe="")),
        detail="of a custom pack, which the address names (ComfyUI-Manager: Install Missing Custom "
        "Nodes), or of a newer ComfyUI",
    )


def missing_file(class_type: str, key: str, name: str) -> Missing:
    """Describe a model file a graph names and no manifest knows."""
    folder = _FOLDERS_OF_CLASSES.get(class_type) or _FOLDERS.get(key)
    if folder is None and key.startswith("clip_name"):
        folder = "text_encoders"
    where = f"models/{folder}" if folder else f"the models folder that {class_type} reads"
    return Missing(kind="model", name=name, directory=folder, detail=f"put it into {where}")
