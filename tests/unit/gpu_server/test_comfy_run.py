"""One followed run, fed with events by hand."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.comfy.failures import RunCancelled, RunFailed, verdict
from gpu_server.comfy.run import (
    ComfyFile,
    Finished,
    Followed,
    Produced,
    RunEvent,
    Started,
    Stepped,
    collect,
)

GRAPH: dict[str, dict[str, Any]] = {
    "3": {"class_type": "KSampler", "inputs": {"steps": 2}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    "10": {"class_type": "PreviewAny", "inputs": {}},
}
IMAGE = {"images": [{"filename": "a.png", "subfolder": "t", "type": "output"}]}
TEXT = {"text": ["a caption"]}
OUTPUTS = {"9": IMAGE, "10": TEXT}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("execution_start", {}),
    ("execution_cached", {"nodes": []}),
    ("progress_state", {"nodes": {"10": {"state": "running", "value": 0, "max": 1}}}),
    ("executing", {"node": "10", "display_node": "10"}),
    ("executed", {"node": "10", "display_node": "10", "output": TEXT}),
    ("executing", {"node": "3"}),
    ("progress", {"node": "3", "value": 1, "max": 2}),
    ("progress", {"node": "3", "value": 2, "max": 2}),
    ("executing", {"node": "9"}),
    ("executed", {"node": "9", "display_node": "9", "output": IMAGE}),
    ("execution_success", {}),
    ("executing", {"node": None}),
]


def entry(kind: str = "success", **fields: Any) -> dict[str, Any]:
    return {"status": {"status_str": kind, "messages": []}, "outputs": OUTPUTS, **fields}


def conclude(run: Followed, history: dict[str, Any]) -> None:
    run.conclude(history, verdict(history))


async def told(run: Followed) -> list[RunEvent]:
    """Everything up to the end."""
    events: list[RunEvent] = []
    while not events or not isinstance(events[-1], Finished):
        events.append(await run.next())
    return events


def followed() -> Followed:
    return Followed("run", GRAPH, 60)


async def test_events_become_a_stream_that_ends_with_the_history() -> None:
    run = followed()
    ends = [run.heard(kind, data) for kind, data in EVENTS]
    assert ends == [False] * (len(EVENTS) - 1) + [True]
    conclude(run, entry())
    events = await told(run)
    assert isinstance(events[0], Started)
    assert [each.node for each in events if isinstance(each, Produced)] == ["10", "9"]


async def test_progress_nobody_has_read_yet_is_replaced_by_newer() -> None:
    run = followed()
    for step in range(1000):
        run.heard("progress", {"node": "3", "value": step, "max": 1000})
    assert isinstance(await run.next(), Started)
    step = await run.next()
    assert isinstance(step, Stepped)
    assert step.step == 999


@given(heard=st.lists(st.sampled_from(EVENTS), max_size=30), late=st.booleans())
def test_whatever_was_missed_repeated_or_late_each_output_is_told_once(
    *, heard: list[tuple[str, dict[str, Any]]], late: bool
) -> None:
    async def play() -> list[RunEvent]:
        run = followed()
        for kind, data in heard:
            run.heard(kind, data)
        conclude(run, entry())
        if late:
            for kind, data in heard:
                run.heard(kind, data)
        return await told(run)

    events = asyncio.run(play())
    assert [each for each in events if isinstance(each, Started)] == events[:1]
    assert sorted(each.node for each in events if isinstance(each, Produced)) == ["10", "9"]


async def test_the_first_end_counts() -> None:
    run = followed()
    conclude(run, entry())
    run.fail(RunFailed("transient", "lost", "too late"))
    conclude(run, entry())
    assert [type(each) for each in await told(run)] == [Started, Produced, Produced, Finished]


async def failure_of(run: Followed) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await told(run)
    return caught.value


async def test_a_failure_comes_after_what_was_produced() -> None:
    run = followed()
    run.heard("executed", {"node": "10", "output": TEXT})
    history = entry("error")
    history["status"]["messages"] = [["execution_error", {"node_type": "KSampler"}]]
    conclude(run, history)
    assert isinstance(await run.next(), Started)
    assert isinstance(await run.next(), Produced)
    assert (await failure_of(run)).failure.code == "execution_failed"


async def test_interrupted_is_cancelled_only_if_it_was_asked_for() -> None:
    history = entry("error")
    history["status"]["messages"] = [["execution_interrupted", {}]]
    run = followed()
    conclude(run, history)
    assert (await failure_of(run)).failure.code == "interrupted"
    run = followed()
    run.cancel_asked = True
    conclude(run, history)
    with pytest.raises(RunCancelled):
        await told(run)


async def test_a_run_missing_everywhere_is_judged_by_what_was_heard() -> None:
    run = followed()
    run.give_up()
    assert (await failure_of(run)).failure.code == "lost"
    run = followed()
    for kind, data in EVENTS:
        run.heard(kind, data)
    run.give_up()
    assert isinstance((await told(run))[-1], Finished)
    run = followed()
    run.heard("execution_error", {"node_type": "KSampler", "exception_type": "KeyError"})
    run.give_up()
    assert (await failure_of(run)).failure.code == "execution_failed"


async def test_a_blocked_branch_heard_last_is_no_verdict() -> None:
    run = followed()
    run.heard("execution_error", {"exception_type": "ExecutionBlocked"})
    run.give_up()
    assert (await failure_of(run)).failure.code == "lost"


async def test_an_output_of_a_node_made_at_run_time_belongs_to_its_maker() -> None:
    run = followed()
    run.heard("executed", {"node": "9.0.0.1", "display_node": "9", "output": IMAGE})
    conclude(run, entry(outputs={"9.0.0.1": IMAGE}, meta={"9.0.0.1": {"display_node": "9"}}))
    (produced,) = [each for each in await told(run) if isinstance(each, Produced)]
    assert (produced.node, produced.files[0].node) == ("9", "9")


async def test_a_second_follower_takes_over_from_the_first() -> None:
    run = followed()
    run.abandon()
    with pytest.raises(RuntimeError):
        await run.next()
    assert not run.concluded


def test_every_dict_with_a_filename_is_a_file_and_strings_are_text() -> None:
    files, texts = collect(
        "7",
        {
            "images": [{"filename": "v.mp4", "subfolder": "a/b", "type": "output"}],
            "animated": [True],
            "gifs": [{"filename": "g.gif", "type": "temp", "frame_rate": 8}],
            "3d": [{"filename": "m.glb"}],
            "text": ["one", "two"],
            "result": ["mesh/c.glb", None],
            "empty": [],
            "odd": "not a list",
        },
    )
    assert texts == ("one", "two")
    assert [(file.key, file.filename, file.subfolder, file.type) for file in files] == [
        ("images", "v.mp4", "a/b", "output"),
        ("gifs", "g.gif", "", "temp"),
        ("3d", "m.glb", "", "output"),
    ]
    assert files[0] == ComfyFile(
        node="7", key="images", index=0, filename="v.mp4", subfolder="a/b", type="output"
    )


async def test_an_output_without_ui_is_no_output() -> None:
    run = followed()
    run.heard("executed", {"node": "9", "output": None})
    conclude(run, entry(outputs={}))
    assert [type(each) for each in await told(run)] == [Started, Finished]
