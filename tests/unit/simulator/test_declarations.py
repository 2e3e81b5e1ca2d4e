"""Node classes are declared as a real ComfyUI declares them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_server.simulator.folders import Folders
from gpu_server.simulator.nodes import NODE_CLASSES

from .client import Json

DATA = Path(__file__).parents[2] / "data"
BOUNDS = ("default", "min", "max", "step")
FILE_CHOICES = ("model_name", "bg_removal_name")


def recordings() -> Iterator[tuple[str, Json]]:
    """What two versions said about each class."""
    for kind in ("object_info", "more_nodes"):
        for path in sorted(DATA.glob(f"{kind}_*.json")):
            yield from json.loads(path.read_text()).items()


RECORDED: dict[str, list[Json]] = {}
for name, said in recordings():
    RECORDED.setdefault(name, []).append(said)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"), lambda: ())


def differences(ours: Json, theirs: Json) -> list[str]:
    """What one class says otherwise than the recording of a real server."""
    found: list[str] = []
    if ours["output"] != theirs["output"]:
        found.append(f"output {ours['output']} is {theirs['output']}")
    if ours["output_node"] != theirs["output_node"]:
        found.append("output_node")
    for group in ("required", "optional"):
        mine, real = ours["input"].get(group, {}), theirs["input"].get(group, {})
        if group == "required" and set(mine) != set(real):
            found.append(f"{group}: {set(mine) ^ set(real)}")
        found += [f"{group}: there is no {name}" for name in set(mine) - set(real)]
        for key in set(mine) & set(real):
            found += [f"{key}: {text}" for text in inputs_differ(key, mine[key], real[key])]
    return found


def inputs_differ(key: str, mine: list[Any], real: list[Any]) -> Iterator[str]:
    kind, real_kind = mine[0], real[0]
    options, real_options = (each[1] if len(each) > 1 else {} for each in (mine, real))
    if isinstance(kind, list) or isinstance(real_kind, list):
        # An empty list was one of files, which differ from server to server.
        if not isinstance(kind, list) or not isinstance(real_kind, list):
            yield f"{kind} is {real_kind}"
        elif real_kind and not set(kind) <= set(real_kind) and key not in {"vae_name", "model"}:
            yield f"{set(kind) - set(real_kind)} cannot be chosen"
        return
    if kind != real_kind:
        yield f"{kind} is {real_kind}"
        return
    for bound in BOUNDS:
        if kind in {"INT", "FLOAT", "STRING", "BOOLEAN"} and options.get(bound) != real_options.get(
            bound
        ):
            yield f"{bound} {options.get(bound)} is {real_options.get(bound)}"
    if kind == "COMBO" and real_options["options"] and key not in FILE_CHOICES:
        extra = set(options["options"]) - set(real_options["options"])
        if extra:
            yield f"{extra} cannot be chosen"
    if kind == "COMFY_DYNAMICCOMBO_V3":
        yield from branches_differ(options["options"], real_options["options"])


def branches_differ(mine: list[Json], real: list[Json]) -> Iterator[str]:
    known = {branch["key"]: branch["inputs"] for branch in real}
    for branch in mine:
        theirs = known.get(branch["key"])
        if theirs is None:
            yield f"{branch['key']} cannot be chosen"
            continue
        required, theirs_required = branch["inputs"]["required"], theirs.get("required", {})
        if set(required) != set(theirs_required):
            yield f"{branch['key']}: {set(required) ^ set(theirs_required)}"
        for key in set(required) & set(theirs_required):
            yield from inputs_differ(key, required[key], theirs_required[key])


@pytest.mark.parametrize("name", sorted(set(RECORDED) & set(NODE_CLASSES)))
def test_a_class_is_declared_as_some_recorded_version_declares_it(
    folders: Folders, name: str
) -> None:
    ours = json.loads(json.dumps(NODE_CLASSES[name].describe(folders)))
    found = [differences(ours, theirs) for theirs in RECORDED[name]]
    assert [] in found, found


def test_most_classes_are_recorded() -> None:
    assert len(set(NODE_CLASSES) - set(RECORDED)) < 12


def test_every_recorded_class_exists_here() -> None:
    assert set(RECORDED) <= set(NODE_CLASSES)
