import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.loop import TURN, Stuck, VirtualLoop, spawn
from tests.simulation.process import Process


def new_loop(seed: int = 0, max_steps: int = 10_000) -> VirtualLoop:
    return VirtualLoop(random.Random(seed), scheduler="random", max_steps=max_steps)


def order_of_ten(seed: int) -> list[int]:
    seen: list[int] = []

    async def one(n: int) -> None:
        for _ in range(3):
            await TURN
        seen.append(n)

    async def main() -> None:
        await asyncio.gather(*(one(n) for n in range(10)))

    new_loop(seed).run(main())
    return seen


def test_a_seed_always_gives_the_same_order_and_another_seed_another_one() -> None:
    assert order_of_ten(1) == order_of_ten(1)
    assert len({tuple(order_of_ten(seed)) for seed in range(20)}) > 15


def test_time_advances_only_when_nothing_is_ready_and_costs_no_real_time() -> None:
    loop = new_loop()
    times: list[float] = []

    async def main() -> None:
        for _ in range(5):
            await TURN
        times.append(loop.time())
        await asyncio.sleep(3600)
        times.append(loop.time())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        times.append(loop.time())

    loop.run(main())
    assert times == [0, 3600, 3610]


def in_a_process(story: Callable[[VirtualLoop, Process], Coroutine[Any, Any, None]]) -> None:
    loop = new_loop()
    process = Process("p")

    async def main() -> None:
        await story(loop, process)

    try:
        loop.run(main())
    finally:
        process.kill()
        process.bury()
    assert loop.errors == []


def test_a_killed_process_never_runs_again_not_even_its_finally_blocks() -> None:
    seen: list[str] = []

    async def story(loop: VirtualLoop, process: Process) -> None:
        async def child() -> None:
            try:
                await asyncio.sleep(5)
            finally:
                seen.append("child finally")

        async def parent() -> None:
            children = [asyncio.create_task(child()) for _ in range(3)]
            try:
                await asyncio.gather(*children)
            finally:
                seen.append("parent finally")

        spawn(loop, process, parent(), "parent")
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(100)
        assert seen == []

    in_a_process(story)


def test_a_process_dies_exactly_at_the_turn_it_is_told_to() -> None:
    turns: list[int] = []

    async def story(loop: VirtualLoop, process: Process) -> None:
        process.crash_at = 4

        async def count() -> None:
            for n in range(10):
                turns.append(n)
                await TURN

        spawn(loop, process, count(), "count")
        await asyncio.sleep(1)
        assert process.state == "dead"

    in_a_process(story)
    assert turns == [0, 1, 2]


def test_a_frozen_process_goes_on_where_it_was_once_thawed() -> None:
    times: list[float] = []

    async def story(loop: VirtualLoop, process: Process) -> None:
        async def sleeper() -> None:
            await asyncio.sleep(5)
            times.append(loop.time())

        spawn(loop, process, sleeper(), "sleeper")
        await asyncio.sleep(1)
        process.freeze()
        await asyncio.sleep(30)
        assert times == []
        process.thaw(loop)
        await asyncio.sleep(1)

    in_a_process(story)
    assert times == [31]


def test_a_world_where_nothing_can_happen_any_more_is_reported_instead_of_hanging() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="nothing will ever happen"):
        new_loop().run(main())


def test_a_world_that_never_comes_to_rest_is_reported() -> None:
    async def main() -> None:
        while True:
            await TURN

    with pytest.raises(Stuck, match="no end after 100 steps"):
        new_loop(max_steps=100).run(main())


def test_blocking_work_is_run_at_a_later_turn_without_a_thread() -> None:
    async def main() -> str:
        return await asyncio.to_thread(lambda: "done")

    assert new_loop().run(main()) == "done"
