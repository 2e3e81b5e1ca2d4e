from typing import Any

import pytest

from gpu_server.comfy.failures import execution_failure, rejected, verdict

GRAPH = {"3": {"class_type": "KSampler", "inputs": {}}}


def refusal(kind: str, class_type: str = "KSampler", **info: Any) -> dict[str, Any]:
    error = {
        "type": kind,
        "message": "server text",
        "details": "/models/secret.safetensors",
        "extra_info": info,
    }
    return {
        "error": {"type": "prompt_outputs_failed_validation", "details": ""},
        "node_errors": {"3": {"errors": [error], "class_type": class_type}},
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            refusal(
                "value_not_in_list",
                "LoraLoader",
                input_name="lora_name",
                received_value="mine.safetensors",
                input_config=[["theirs.safetensors"], {}],
            ),
            ("fatal", "missing_model"),
        ),
        (
            refusal("value_not_in_list", input_name="sampler_name", received_value="eulr"),
            ("usage", "invalid_input"),
        ),
        (
            refusal(
                "value_smaller_than_min",
                input_name="steps",
                received_value=0,
                input_config=["INT", {"min": 1}],
            ),
            ("usage", "invalid_input"),
        ),
        (refusal("invalid_input_type", input_name="cfg"), ("usage", "invalid_input")),
        (refusal("required_input_missing", input_name="model"), ("fatal", "workflow_rejected")),
        (refusal("exception_during_validation"), ("fatal", "workflow_rejected")),
        (refusal("dependency_cycle"), ("fatal", "workflow_rejected")),
        (
            refusal(
                "custom_validation_failed",
                "LoadImage",
                input_name="image",
                received_value="runs/1/a.png",
            ),
            ("transient", "missing_input_file"),
        ),
        (refusal("custom_validation_failed"), ("usage", "invalid_input")),
        (refusal("something new"), ("usage", "invalid_input")),
        ({"error": {"type": "prompt_no_outputs"}}, ("fatal", "workflow_rejected")),
        ({"error": {"type": "something new"}}, ("fatal", "workflow_rejected")),
        ({}, ("fatal", "workflow_rejected")),
    ],
)
def test_a_refusal_is_told_by_whose_fault_it_is_and_never_in_the_servers_words(
    answer: dict[str, Any], expected: tuple[str, str]
) -> None:
    failure = rejected(answer, GRAPH).failure
    assert (failure.kind, failure.code) == expected
    for secret in ("secret", "server text", "theirs"):
        assert secret not in failure.model_dump_json()


def test_a_limit_and_the_value_received_are_told() -> None:
    answer = refusal(
        "value_smaller_than_min",
        input_name="steps",
        received_value=0,
        input_config=["INT", {"min": 1}],
    )
    assert rejected(answer, GRAPH).failure.message == (
        "input steps of 3 KSampler: 0 is below the minimum 1"
    )


def test_a_long_value_is_cut() -> None:
    answer = refusal("invalid_input_type", input_name="text", received_value="x" * 10_000)
    assert len(rejected(answer, GRAPH).failure.message) < 200


def test_of_several_faults_the_missing_model_is_told() -> None:
    answer = refusal("value_bigger_than_max", input_name="steps", received_value=10_001)
    model = {"input_name": "unet_name", "received_value": "flux.safetensors"}
    answer["node_errors"]["1"] = {
        "class_type": "UNETLoader",
        "errors": [{"type": "value_not_in_list", "extra_info": model}],
    }
    assert rejected(answer, GRAPH).failure.code == "missing_model"


@pytest.mark.parametrize(
    "error",
    [
        {"type": "invalid_prompt", "details": "Node ID '#3'"},
        {"type": "missing_node_type", "extra_info": {"node_id": "3", "class_type": "KSampler"}},
    ],
)
def test_an_unknown_class_is_named_from_our_own_graph(error: dict[str, Any]) -> None:
    failure = rejected({"error": error, "node_errors": {}}, GRAPH).failure
    assert failure.node == "3 KSampler"


@pytest.mark.parametrize(
    ("exception_type", "message", "expected"),
    [
        ("torch.OutOfMemoryError", "Allocation on device 0", ("transient", "out_of_memory")),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate",
         ("transient", "out_of_memory")),
        ("RuntimeError", "CUDA error: out of memory", ("transient", "out_of_memory")),
        ("MemoryError", "", ("transient", "out_of_memory")),
        ("PIL.UnidentifiedImageError", "cannot identify image file '/x'",
         ("usage", "unreadable_image")),
        ("KeyError", "'secret'", ("fatal", "execution_failed")),
    ],
)  # fmt: skip
def test_an_execution_error_is_told_by_what_can_be_done_about_it(
    exception_type: str, message: str, expected: tuple[str, str]
) -> None:
    data = {
        "node_id": "3",
        "node_type": "KSampler",
        "exception_type": exception_type,
        "exception_message": message,
    }
    failure = execution_failure([("execution_start", {}), ("execution_error", data)]).failure
    assert (failure.kind, failure.code) == expected
    assert failure.node == "3 KSampler"
    assert "secret" not in failure.message


def test_interrupted_and_failed_are_told_apart_by_the_last_message() -> None:
    status = {
        "status_str": "error",
        "messages": [["execution_start", {}], ["execution_interrupted", {"node_id": "3"}]],
    }
    failure = verdict({"status": status})
    assert failure is not None
    assert failure.failure.code == "interrupted"


def test_an_error_among_the_messages_of_a_success_is_none() -> None:
    status = {"status_str": "success", "messages": [["execution_error", {}]]}
    assert verdict({"status": status}) is None
    assert verdict({"status": None}) is None
