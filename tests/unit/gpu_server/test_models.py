"""Which model files may be chosen, and whether ComfyUI looks into MODELS_PATH."""

from pathlib import Path
from typing import Any

from gpu_server.models import installed, models_path_trouble
from tests.support.recordings import object_info


def lying_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("loras/*")]


def listing(folder: Path) -> Any:
    """A ComfyUI that lists the LoRAs lying in a folder."""

    async def ask() -> dict[str, Any]:
        info = object_info("0.33.0")
        files = lying_in(folder)
        info["LoraLoader"]["input"]["required"]["lora_name"][0] = files
        return info

    return ask


def test_installed_files_are_listed_by_folder() -> None:
    assert installed(object_info("0.3.64")) == {
        "checkpoints": ["sd15.safetensors"],
        "loras": ["ink.safetensors", "style.safetensors"],
    }


def test_the_newer_way_to_write_a_combo_is_read_too() -> None:
    info = object_info("0.33.0")
    combo = ["COMBO", {"options": ["a.safetensors"]}]
    info["LoraLoader"]["input"]["required"]["lora_name"] = combo
    assert installed(info)["loras"] == ["a.safetensors"]


def test_a_comfyui_without_the_loaders_lists_nothing() -> None:
    assert installed({}) == {"checkpoints": [], "loras": []}


async def test_a_folder_comfyui_lists_is_no_trouble_and_is_left_clean(tmp_path: Path) -> None:
    assert await models_path_trouble(tmp_path, listing(tmp_path)) is None
    assert lying_in(tmp_path) == []


async def test_a_folder_comfyui_does_not_list_names_the_missing_line(tmp_path: Path) -> None:
    trouble = await models_path_trouble(tmp_path, listing(tmp_path / "elsewhere"))
    assert trouble is not None
    assert "extra_model_paths.yaml" in trouble
    assert f"base_path: {tmp_path}" in trouble
    assert lying_in(tmp_path) == []


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    trouble = await models_path_trouble(tmp_path / "missing", listing(tmp_path))
    assert trouble is not None
    assert "can't be written" in trouble
