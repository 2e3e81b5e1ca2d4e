"""What a parameter's absence or value does to a graph: unset, drop, bypass, items, append."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.workflow import ParamError, Workflow, WorkflowError, check
from gpu_server.workflow.graph import links
from gpu_server.workflow.manifest import Change
from gpu_server.workflow.surgery import apply_changes
from tests.support.recordings import made

Graph = dict[str, dict[str, Any]]

INFO: dict[str, Any] = {
    "LoadImage": {
        "input": {"required": {"image": [["example.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "Mix": {
        "input": {
            "required": {"first": ["IMAGE"]},
            "optional": {"second": ["IMAGE"], "third": ["IMAGE"]},
        },
        "output": ["IMAGE"],
    },
    "Paint": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "text": ["STRING", {}],
                "strength": ["INT", {"min": 1, "max": 100}],
                "width": ["INT", {"min": 16, "max": 4096, "step": 16}],
            }
        },
        "output": ["IMAGE"],
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
    "Size": {"input": {}, "output": ["INT"]},
}


def graph() -> Graph:
    """Three pictures mixed, painted over and saved."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "4": {
            "class_type": "Mix",
            "inputs": {"first": ["1", 0], "second": ["2", 0], "third": ["3", 0]},
        },
        "5": {
            "class_type": "Paint",
            "inputs": {"image": ["4", 0], "text": "a mug", "strength": 5, "width": ["6", 0]},
        },
        "6": {"class_type": "Size", "inputs": {}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}},
    }


def workflow(params: dict[str, Any], nodes: Graph | None = None) -> Workflow:
    manifest = {
        "manifest": 1,
        "tool": "mix",
        "title": "Mix",
        "params": params,
        "fixed": {"7.filename_prefix": "jobs/{run_id}/x"},
        "outputs": {"images": {"node": "7", "kind": "image"}},
    }
    return made(nodes or graph(), manifest)


def bound(
    params: dict[str, Any],
    values: dict[str, Any] | None = None,
    files: dict[str, list[str]] | None = None,
) -> Any:
    return workflow(params).bind(values or {}, run_id="r", object_info=INFO, uploads=files)


FACES: dict[str, Any] = {
    "upload": "image",
    "items": [
        {"bind": "1.image"},
        {"bind": "2.image", "absent": {"unset": ["4.second"], "drop": ["2"]}},
        {"bind": "3.image", "absent": {"unset": ["4.third"], "drop": ["3"]}},
    ],
}
STRENGTH: dict[str, Any] = {"bind": "5.strength", "when": {"equals": 1, "bypass": ["5"]}}
MODE: dict[str, Any] = {"when": [{"equals": "mixed"}, {"equals": "plain", "bypass": ["4"]}]}


def test_an_absent_file_unsets_the_link_and_drops_the_loader() -> None:
    param = {"upload": "image", "bind": "2.image", "absent": {"unset": ["4.second"], "drop": ["2"]}}
    without = bound({"picture": param}).graph
    assert "second" not in without["4"]["inputs"]
    assert "2" not in without
    there = bound({"picture": param}, files={"picture": ["jobs/r/0-0.png"]}).graph
    assert there["4"]["inputs"]["second"] == ["2", 0]
    assert there["2"]["inputs"]["image"] == "jobs/r/0-0.png"


def test_an_empty_list_of_files_is_an_absent_one() -> None:
    assert "2" not in bound({"faces": FACES}, files={"faces": []}).graph
    with pytest.raises(ParamError) as refused:
        bound({"faces": FACES | {"required": True}}, files={"faces": []})
    assert refused.value.code == "missing_param"


@pytest.mark.parametrize(
    ("count", "linked"),
    [(1, {"first"}), (2, {"first", "second"}), (3, {"first", "second", "third"})],
)
def test_a_list_of_files_fills_its_places_in_order(count: int, linked: set[str]) -> None:
    names = [f"jobs/r/0-{n}.png" for n in range(count)]
    made_of = bound({"faces": FACES}, files={"faces": names}).graph
    assert set(made_of["4"]["inputs"]) == linked
    assert [made_of[str(n + 1)]["inputs"]["image"] for n in range(count)] == names


def test_more_files_than_places_are_refused() -> None:
    with pytest.raises(ParamError, match="at most 3 files"):
        bound({"faces": FACES}, files={"faces": ["a.png"] * 4})


def test_files_in_a_chain_repeat_the_group_and_none_bypass_it() -> None:
    nodes = graph()
    nodes["4"]["inputs"] = {"first": ["1", 0], "second": ["2", 0]}
    chain = {"nodes": ["2", "4"], "links": {"4:0": "4.first"}, "set": {"2.image": "."}}
    more = workflow({"more": {"upload": "image", "chain": chain | {"max_items": 3}}}, nodes)

    def expanded(*names: str) -> Graph:
        return more.bind({}, run_id="r", object_info=INFO, uploads={"more": names}).graph

    assert expanded()["5"]["inputs"]["image"] == ["1", 0]
    three = expanded("a.png", "b.png", "c.png")
    assert [three[n]["inputs"]["image"] for n in ("2", "2_2", "2_3")] == ["a.png", "b.png", "c.png"]
    assert three["4_3"]["inputs"] == {"first": ["4_2", 0], "second": ["2_3", 0]}
    assert three["5"]["inputs"]["image"] == ["4_3", 0]
    with pytest.raises(ParamError, match="at most 3"):
        expanded(*["a.png"] * 4)


def test_a_value_may_bypass_the_node_it_would_have_gone_to() -> None:
    plain = bound({"strength": STRENGTH}, {"strength": 1})
    assert plain.graph["7"]["inputs"]["images"] == ["4", 0]
    assert plain.params["strength"] == 1
    assert bound({"strength": STRENGTH}, {"strength": 2}).graph["5"]["inputs"]["strength"] == 2
    assert bound({"strength": STRENGTH}).params["strength"] == 5


def test_the_value_that_bypasses_need_not_suit_the_node() -> None:
    param = {"bind": "5.strength", "when": {"equals": 0, "bypass": ["5"]}}
    assert "5" not in bound({"strength": param}, {"strength": 0}).graph


def test_true_is_not_the_value_one() -> None:
    with pytest.raises(ParamError):
        bound({"strength": STRENGTH}, {"strength": True})


def test_a_parameter_of_cases_alone_takes_their_values_only() -> None:
    assert "4" in bound({"mode": MODE}, {"mode": "mixed"}).graph
    assert "4" not in bound({"mode": MODE}, {"mode": "plain"}).graph
    with pytest.raises(ParamError, match="must be one of mixed, plain"):
        bound({"mode": MODE}, {"mode": "wild"})


def test_the_case_that_changes_nothing_is_the_default() -> None:
    assert workflow({"mode": MODE}).defaults == {"mode": "mixed"}
    assert bound({"mode": MODE}).params == {"mode": "mixed"}


def test_what_may_be_absent_has_no_default_to_send_along() -> None:
    param = {"bind": "5.text", "absent": {"bypass": ["5"]}}
    assert workflow({"text": param}).defaults == {}


def test_a_seed_without_a_place_is_drawn_and_reported() -> None:
    assert isinstance(bound({"seed": {"seed": True}}).params["seed"], int)
    assert bound({"seed": {"seed": True}}, {"seed": 7}).params == {"seed": 7}
    for wrong in ("7", -1, 2**53, True, 1.5):
        with pytest.raises(ParamError):
            bound({"seed": {"seed": True}}, {"seed": wrong})


def test_texts_are_added_to_one_another_in_the_manifests_order() -> None:
    params: dict[str, Any] = {
        "prompt": {"bind": "5.text"},
        "style": {"bind": {"to": "5.text", "append": True, "map": {"clay": ", made of clay"}}},
        "word": {"bind": {"to": "5.text", "append": True, "template": " [{value}]"}},
    }
    given_: dict[str, Any] = {"word": "X", "style": "clay", "prompt": "a cup"}
    assert bound(params, given_).graph["5"]["inputs"]["text"] == "a cup, made of clay [X]"
    assert bound(params, {"word": "X"}).graph["5"]["inputs"]["text"] == "a mug [X]"
    assert workflow(params).defaults == {"prompt": "a mug"}


def test_a_value_may_take_the_place_of_a_link() -> None:
    params = {"width": {"bind": {"to": "5.width", "over_link": True}}}
    assert bound(params).graph["5"]["inputs"]["width"] == ["6", 0]
    assert bound(params, {"width": 512}).graph["5"]["inputs"]["width"] == 512
    assert workflow(params).defaults == {}
    with pytest.raises(ParamError):
        bound(params, {"width": 513})


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ({"bind": "5.text", "absent": {"unset": ["4.fourth"]}}, "params.it.unset"),
        ({"bind": "5.text", "absent": {"unset": ["9.first"]}}, "9.first"),
        ({"bind": "5.text", "absent": {"drop": ["9"]}}, "params.it"),
        ({"bind": "5.text", "absent": {"bypass": ["9"]}}, "params.it"),
        ({"bind": "5.text", "absent": {"drop": ["2"]}}, "params.it.drop"),
        ({"bind": "5.text", "absent": {"drop": ["7"]}}, "params.it"),
        ({"bind": "5.text", "absent": {"bypass": ["7"]}}, "params.it"),
        ({"bind": "5.text", "absent": {"drop": ["2"], "bypass": ["4"]}}, "params.it.drop"),
        ({"bind": "5.text", "required": True, "absent": {"bypass": ["5"]}}, "params.it"),
        ({"bind": "5.strength", "when": {"equals": 5, "bypass": ["5"]}}, "params.it.when"),
        ({"bind": "5.strength", "when": {"bypass": ["5"]}}, "params.it.when"),
        ({"when": [{"equals": "a"}, {"equals": "a"}]}, "params.it"),
        ({"upload": "image", "bind": "2.image", "when": {"equals": "a"}}, "params.it"),
        ({"items": [{"bind": "2.image"}]}, "params.it"),
        ({"upload": "image", "bind": "2.image", "items": [{"bind": "3.image"}]}, "params.it"),
        ({"upload": "image", "items": [{"bind": "2.picture"}]}, "2.picture"),
        ({"when": {"equals": "a"}, "limits": {"minimum": 1}}, "params.it"),
        ({"bind": {"to": "5.strength", "append": True}}, "5.strength"),
        ({"bind": {"to": "5.text", "append": True, "scale": 2}}, "params.it.bind"),
        ({"bind": {"to": "5.text", "over_link": True}}, "5.text"),
        ({"bind": "5.width"}, "5.width"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_when_it_is_read(
    param: dict[str, Any], place: str
) -> None:
    with pytest.raises(WorkflowError) as refused:
        workflow({"it": param})
    assert refused.value.place.startswith(place)


def test_nodes_of_a_chain_are_moved_by_the_chain_alone() -> None:
    chain = {"nodes": ["2", "4"], "links": {"4:0": "4.first"}, "set": {"2.image": "."}}
    more = {"upload": "image", "chain": chain}
    for change in ({"bypass": ["4"]}, {"unset": ["4.second"], "drop": ["2"]}):
        with pytest.raises(WorkflowError, match="belongs to a chain"):
            workflow({"more": more, "it": {"bind": "5.text", "absent": change}})
    with pytest.raises(WorkflowError, match="a chain enters"):
        workflow({"more": more, "it": {"bind": "5.text", "absent": {"unset": ["4.first"]}}})


def test_a_text_is_not_set_again_after_something_was_added_to_it() -> None:
    params = {"style": {"bind": {"to": "5.text", "append": True}}, "prompt": {"bind": "5.text"}}
    with pytest.raises(WorkflowError, match="added to before"):
        workflow(params)


def test_a_link_is_no_way_around_the_rule_for_files_and_models() -> None:
    nodes = graph()
    nodes["1"]["inputs"]["image"] = ["6", 0]
    params = {"it": {"bind": {"to": "1.image", "over_link": True}}}
    with pytest.raises(WorkflowError, match="names a file"):
        workflow(params, nodes)


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ({"bind": "5.text", "absent": {"unset": ["4.first"]}}, "4.first"),
        ({"when": [{"equals": "a"}, {"equals": "b", "unset": ["5.image"]}]}, "5.image"),
        ({"upload": "image", "items": [{"bind": "1.image", "absent": {"bypass": ["1"]}}]}, "4.fi"),
    ],
)
def test_a_change_that_opens_a_required_input_makes_the_workflow_not_ready(
    param: dict[str, Any], place: str
) -> None:
    found = check(workflow({"it": param}), INFO)
    assert [m.kind for m in found] == ["invalid"]
    assert found[0].name.startswith(place)


def test_a_workflow_with_every_operation_is_ready() -> None:
    params: dict[str, Any] = {
        "faces": FACES,
        "strength": STRENGTH,
        "mode": MODE,
        "width": {"bind": {"to": "5.width", "over_link": True}},
        "style": {"bind": {"to": "5.text", "append": True}},
    }
    assert check(workflow(params), INFO) == []


def test_nodes_that_go_together_go_the_reader_first() -> None:
    nodes = graph()
    nodes["2"] = {"class_type": "Mix", "inputs": {}}
    nodes["4"]["inputs"] = {"first": ["2", 0], "second": ["3", 0]}
    for order in (["2"], ["4"]), (["4"], ["2"]):
        result = {i: {**n, "inputs": dict(n["inputs"])} for i, n in nodes.items()}
        apply_changes(result, [Change(bypass=tuple(each)) for each in order], INFO)
        # Node 4 passes on what it reads first, node 2, which has nothing to pass on.
        assert "image" not in result["5"]["inputs"]


# --- any combination


@st.composite
def _grown(draw: st.DrawFn) -> Graph:
    """A graph in which each node reads some of the earlier ones, and the last is saved."""
    size = draw(st.integers(2, 8))
    nodes: Graph = {}
    for number in range(size):
        earlier = [str(n) for n in range(number)]
        names = draw(st.sets(st.sampled_from(["first", "second", "third"]))) if earlier else set()
        inputs = {name: [draw(st.sampled_from(earlier)), 0] for name in sorted(names)}
        nodes[str(number)] = {"class_type": "Mix", "inputs": inputs}
    last = {"images": [str(size - 1), 0], "filename_prefix": "x"}
    return nodes | {"save": {"class_type": "SaveImage", "inputs": last}}


@st.composite
def _changes(draw: st.DrawFn) -> tuple[Graph, list[dict[str, list[str]]]]:
    """A graph and changes that tidy up after themselves, as the static check asks."""
    nodes = draw(_grown())
    inner = sorted(set(nodes) - {"save"})
    found: list[dict[str, list[str]]] = []
    for _ in range(draw(st.integers(1, 4))):
        # What is saved must stay: nothing may be dropped that the output itself reads.
        free = sorted(set(inner) - {nodes["save"]["inputs"]["images"][0]})
        drop = draw(st.sets(st.sampled_from(free), max_size=2)) if free else set[str]()
        places = [(n, name) for n, name, _, _ in links(nodes) if n != "save"]
        extra = draw(st.sets(st.sampled_from(places), max_size=2)) if places else set[Any]()
        needed = {(n, name) for n, name, s, _ in links(nodes) if s in drop and n not in drop}
        bypass = draw(st.sets(st.sampled_from(inner), max_size=3)) - drop
        found.append(
            {
                "unset": sorted(f"{n}.{name}" for n, name in needed | extra),
                "drop": sorted(drop),
                "bypass": sorted(bypass),
            }
        )
    return nodes, found


@settings(deadline=None)
@given(_changes(), st.integers(0, 15))
def test_no_combination_of_changes_leaves_a_link_to_nowhere(
    drawn: tuple[Graph, list[dict[str, list[str]]]], chosen: int
) -> None:
    nodes, changes = drawn
    cases = {
        f"p{n}": {"when": [{"equals": "off"}, {"equals": "on", **change}]}
        for n, change in enumerate(changes)
    }
    manifest = {
        "manifest": 1,
        "tool": "mix",
        "title": "Mix",
        "params": cases,
        "fixed": {"save.filename_prefix": "jobs/{run_id}/x"},
        "outputs": {"images": {"node": "save", "kind": "image"}},
    }
    values: dict[str, Any] = {name: "on" for n, name in enumerate(cases) if chosen >> n & 1}
    result = made(nodes, manifest).bind(values, run_id="r", object_info=INFO).graph
    assert "save" in result
    assert all(source in result for _, _, source, _ in links(result))


@given(_changes())
def test_the_order_of_changes_does_not_matter(
    drawn: tuple[Graph, list[dict[str, list[str]]]],
) -> None:
    nodes, raw = drawn
    changes = [Change.model_validate(change) for change in raw]
    results: list[Graph] = []
    for order in permutations(changes):
        result = {i: {**n, "inputs": dict(n["inputs"])} for i, n in nodes.items()}
        apply_changes(result, order, INFO)
        results.append(result)
    assert all(result == results[0] for result in results)
