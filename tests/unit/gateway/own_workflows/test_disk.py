"""An own workflow reads no file that did not come with the call, and writes to no other folder."""

from typing import Any

import pytest

from gateway.errors import InvalidParameters
from gateway.own_workflows.making import Made, make, stored
from gateway.own_workflows.reading import read_graph
from gpu_server.workflow import ParamError, Workflow, check

Json = dict[str, Any]

INFO: Json = {
    "LoadImage": {
        "input": {"required": {"image": [["a.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "LoadTwo": {
        "input": {
            "required": {"left": [["a.png"], {"image_upload": True}]},
            "optional": {"right": [["a.png"], {"image_upload": True}]},
        },
        "output": ["IMAGE"],
    },
    "Grows": {
        "input": {
            "required": {
                "how": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "plain", "inputs": {}},
                            {
                                "key": "file",
                                "inputs": {
                                    "required": {"image": [["a.png"], {"image_upload": True}]}
                                },
                            },
                        ]
                    },
                ]
            }
        },
        "output": ["IMAGE"],
    },
    "Blend": {
        "input": {"required": {"one": ["IMAGE", {}], "two": ["IMAGE", {}]}},
        "output": ["IMAGE"],
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
}


def graph(loader: str = "LoadImage", **inputs: Any) -> Json:
    held = inputs or {"image": "../../x.png"}
    return {
        "1": {"class_type": loader, "inputs": held, "_meta": {"title": "Loader"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def made(sent: Json, manifest: Json, info: Json | None = INFO) -> Made:
    return make("mine", read_graph(sent), manifest, info)


def codes(sent: Json, manifest: Json, info: Json | None = INFO) -> set[tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        made(sent, manifest, info)
    return {(one.field, one.code) for one in caught.value.errors}


@pytest.mark.parametrize("info", [INFO, None])
def test_an_optional_picture_leaves_nothing_of_the_graphs_own(info: Json | None) -> None:
    where = ("graph.1.inputs.image", "optional_file")
    upload = {"upload": "image", "bind": "1.image"}
    assert codes(graph(), {"params": {"picture": upload}}, info) == {where}
    made(graph(), {"params": {"picture": upload | {"required": True}}}, info)
    # what goes instead has nothing to do with it
    apart: Json = graph() | {"7": {"class_type": "Blend", "inputs": {"note": "none"}}}
    absent = {"absent": {"bypass": ["7"]}}
    assert codes(apart, {"params": {"picture": upload | absent}}, info) == {where}


def test_an_optional_picture_is_refused_where_its_absence_is_seen_to_read_on() -> None:
    sent: Json = graph() | {
        "9": {"class_type": "Blend", "inputs": {"one": ["1", 0], "two": ["1", 0]}}
    }
    sent["2"]["inputs"]["images"] = ["9", 0]
    optional = {"upload": "image", "bind": "1.image", "absent": {"bypass": ["9"]}}
    assert codes(sent, {"params": {"picture": optional}}) == {("graph", "workflow_invalid")}


def test_a_run_that_would_still_read_the_graphs_own_file_asks_for_the_picture() -> None:
    sent: Json = graph() | {
        "9": {"class_type": "Blend", "inputs": {"one": ["1", 0], "two": ["1", 0]}}
    }
    sent["2"]["inputs"]["images"] = ["9", 0]
    optional = {"upload": "image", "bind": "1.image", "absent": {"bypass": ["9"]}}
    workflow = made(sent, {"params": {"picture": optional}}, None).workflow
    with pytest.raises(ParamError, match="picture is required"):
        workflow.bind({}, run_id="r", object_info=INFO)
    bound = workflow.bind({}, run_id="r", object_info=INFO, uploads={"picture": ["sent.png"]})
    assert bound.graph["1"]["inputs"]["image"] == "sent.png"


def test_an_optional_picture_may_take_its_node_out() -> None:
    sent: Json = graph() | {
        "5": {"class_type": "LoadImage", "inputs": {"image": "b.png"}},
        "9": {"class_type": "Blend", "inputs": {"one": ["5", 0], "two": ["1", 0]}},
    }
    sent["2"]["inputs"]["images"] = ["9", 0]
    params = {
        "base": {"upload": "image", "bind": "5.image", "required": True},
        "over": {"upload": "image", "bind": "1.image", "absent": {"bypass": ["9"]}},
    }
    workflow = made(sent, {"params": params}).workflow
    bound = workflow.bind({}, run_id="r", object_info=INFO, uploads={"base": ["sent.png"]})
    assert set(bound.graph) == {"2", "5"}


@pytest.mark.parametrize("info", [INFO, None])
@pytest.mark.parametrize("address", ["1.image", "title:Loader.image"])
def test_what_is_fixed_names_no_file(address: str, info: Json | None) -> None:
    params = {"picture": {"upload": "image", "required": True, "bind": "1.image"}}
    manifest = {"params": params, "fixed": {address: "../../x.png"}}
    assert codes(graph(), manifest, info) == {("graph.1.inputs.image", "fixed_file")}


@pytest.mark.parametrize("info", [INFO, None])
def test_no_other_parameter_names_a_file(info: Json | None) -> None:
    mapped = {"bind": {"to": "1.image", "map": {"one": "../../x.png", "two": "../../y.png"}}}
    picture = {"upload": "image", "required": True, "bind": "1.image"}
    for params in ({"which": mapped}, {"picture": picture, "which": mapped}):
        found = codes(graph(image="../../x.png"), {"params": params}, info)
        assert found == {("graph.1.inputs.image", "bound_file")}


def test_each_of_several_files_comes_with_the_call() -> None:
    sent: Json = graph("LoadTwo", left="a.png", right="../../x.png")
    left = {"upload": "image", "required": True, "bind": "1.left"}
    assert codes(sent, {"params": {"left": left}}) == {("graph.1.inputs.right", "unmarked_file")}
    made(sent, {"params": {"left": left, "right": left | {"bind": "1.right"}}})
    # one that is not there is not read
    made(graph("LoadTwo", left="a.png"), {"params": {"left": left}})


def test_marks_say_which_of_several_files_they_mean() -> None:
    sent: Json = graph("LoadTwo", left="a.png", right="b.png")
    sent["1"]["_meta"]["title"] = "input: picture"
    assert codes(sent, {}) == {("graph.1", "bad_mark")}
    sent["1"]["_meta"]["title"] = "input: left, other.right"
    params = made(sent, {}).workflow.manifest.params
    assert {name: param.upload for name, param in params.items()} == {
        "left": "image",
        "other": "image",
    }


def test_a_file_behind_another_choice_of_a_combo_counts() -> None:
    sent: Json = graph("Grows", **{"how": "plain", "how.image": "../../x.png"})
    assert codes(sent, {}) == {("graph.1.inputs.how.image", "unmarked_file")}


def test_a_file_named_by_a_link_is_refused() -> None:
    sent: Json = graph(image=["3", 0]) | {
        "3": {"class_type": "Says", "inputs": {"text": "../../x.png"}}
    }
    assert codes(sent, {}, None) == {("graph.1.inputs.image", "unmarked_file")}


def test_what_was_taken_while_nobody_knew_is_looked_at_once_its_classes_are_known() -> None:
    kept = made(graph("LoadTwo", left="a.png"), {}, None)
    (missing,) = check(stored("mine", kept.graph, kept.manifest), INFO)
    assert (missing.kind, missing.name) == ("invalid", "1.left")
    assert "ComfyUI's own disk" in (missing.detail or "")


PREFIXES: list[Json] = [
    {"params": {"to": {"bind": {"to": "2.filename_prefix", "map": {"a": "../a"}}}}},
    {"params": {"to": {"upload": "image", "required": True, "bind": "2.filename_prefix"}}},
    {"params": {"to": {"upload": "image", "items": [{"bind": "2.filename_prefix"}]}}},
    {
        "params": {
            "to": {
                "chain": {
                    "nodes": ["4"],
                    "links": {"4:0": "4.images"},
                    "set": {"4.filename_prefix": "."},
                    "choices": {".": "loras"},
                }
            }
        }
    },
    {"params": {"to": {"when": [{"equals": "a", "unset": ["2.filename_prefix"]}]}}},
]


@pytest.mark.parametrize("manifest", PREFIXES)
def test_no_parameter_moves_the_folder_of_a_run(manifest: Json) -> None:
    sent: Json = graph()
    sent["1"] = {"class_type": "EmptyImage", "inputs": {"width": 64}}
    saver = {"images": ["1", 0], "filename_prefix": "y"}
    sent["4"] = {"class_type": "SaveImage", "inputs": saver}
    assert codes(sent, manifest, None) == {("params.to", "workflow_invalid")}


def test_what_is_fixed_moves_no_folder_by_whatever_address() -> None:
    sent: Json = graph()
    sent["1"] = {"class_type": "EmptyImage", "inputs": {"width": 64}}
    sent["2"]["_meta"] = {"title": "Saver"}
    given = "jobs/{run_id}/../../elsewhere"
    fixed = {"2.filename_prefix": given, "title:Saver.filename_prefix": given}
    workflow: Workflow = made(sent, {"fixed": fixed}, None).workflow
    assert workflow.manifest.fixed == {"2.filename_prefix": "jobs/{run_id}/2"}
