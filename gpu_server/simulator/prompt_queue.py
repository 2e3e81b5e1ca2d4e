"""ComfyUI's queue and history: in memory only, lost with the process."""

import heapq
import threading
from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import Any, NamedTuple

Item = tuple[float, str, Any, Any, list[str]]
"""number, prompt_id, prompt, extra_data, output node ids: the form `/queue` shows."""

MAX_HISTORY = 10_000
_SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")


class Verdict(NamedTuple):
    """How a prompt ended."""

    success: bool
    messages: list[tuple[str, dict[str, Any]]]
    outputs: dict[str, Any]
    meta: dict[str, Any]


class PromptQueue:
    """Pending prompts in a heap, running ones, and the history of finished ones."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._changed = changed
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        # Plain tuples on purpose: two items with equal number and id make the heap compare the
        # prompts, which raises. ComfyUI breaks in the same way.
        self._pending: list[Item] = []
        self._running: dict[int, Item] = {}
        self._hidden: dict[int, Item] = {}
        self._history: dict[str, dict[str, Any]] = {}
        self._tickets = count()
        self._flags: dict[str, bool] = {}

    def put(self, item: Item) -> None:
        """Add a prompt; may raise `TypeError` and still have added it."""
        with self._lock:
            heapq.heappush(self._pending, item)
            self._changed(self.remaining())
            self._wake.notify()

    def take(self, closed: Callable[[], bool]) -> tuple[int, Item] | None:
        """Wait for the next prompt and mark it running; None when flags were set or closed."""
        with self._wake:
            while not self._pending:
                if closed() or self._flags:
                    return None
                self._wake.wait()
            if closed():
                return None
            item = heapq.heappop(self._pending)
            ticket = next(self._tickets)
            self._running[ticket] = item
            self._changed(self.remaining())
            return ticket, item

    def remember(self, ticket: int, verdict: Verdict) -> None:
        """Write the history entry of a running prompt; `KeyError` when it was lost."""
        with self._lock:
            item = self._running[ticket] if ticket in self._running else self._hidden.pop(ticket)
            if len(self._history) > MAX_HISTORY:
                del self._history[next(iter(self._history))]
            extra_data = {key: value for key, value in item[3].items() if key not in _SECRETS}
            # The same id again overwrites its entry and keeps its place.
            self._history[item[1]] = {
                "prompt": [item[0], item[1], item[2], extra_data, item[4]],
                "outputs": verdict.outputs,
                "status": {
                    "status_str": "success" if verdict.success else "error",
                    "completed": verdict.success,
                    "messages": verdict.messages,
                },
                "meta": verdict.meta,
            }

    def forget_running(self, ticket: int) -> None:
        """Take a prompt off the running ones."""
        with self._lock:
            if self._running.pop(ticket, None) is not None:
                self._changed(self.remaining())

    def hide_running(self, ticket: int) -> None:
        """List a finished prompt nowhere until its history entry is written."""
        with self._lock:
            self._hidden[ticket] = self._running.pop(ticket)
            self._changed(self.remaining())

    def wake(self) -> None:
        """Let the worker look around."""
        with self._lock:
            self._wake.notify_all()

    def remaining(self) -> int:
        """Count running and pending prompts."""
        return len(self._pending) + len(self._running)

    def listing(self) -> dict[str, list[Item]]:
        """Return what `/queue` shows; pending ones in heap order."""
        with self._lock:
            running = list(self._running.values())
            return {"queue_running": running, "queue_pending": list(self._pending)}

    def is_running(self, prompt_id: object) -> bool:
        """Tell whether this prompt runs now."""
        with self._lock:
            return any(item[1] == prompt_id for item in self._running.values())

    def clear(self) -> None:
        """Drop everything pending."""
        with self._lock:
            self._pending = []
            self._changed(self.remaining())

    def delete(self, prompt_ids: Iterable[object]) -> None:
        """Drop pending prompts by id, one for each id given."""
        with self._lock:
            for prompt_id in prompt_ids:
                for index, item in enumerate(self._pending):
                    if item[1] == prompt_id:
                        del self._pending[index]
                        heapq.heapify(self._pending)
                        self._changed(self.remaining())
                        break

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Return one finished prompt by its id, or nothing."""
        with self._lock:
            entry = self._history.get(prompt_id)
            return {} if entry is None else {prompt_id: entry}

    def histories(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """Return finished prompts, oldest first; a negative offset means the newest ones."""
        with self._lock:
            if offset < 0:
                offset = len(self._history) - max_items if max_items is not None else 0
            start = max(0, offset)
            # ComfyUI tests the limit after adding, so that 0 and less give one entry.
            stop = None if max_items is None else start + max(1, max_items)
            return dict(islice(self._history.items(), start, stop))

    def forget(self, prompt_ids: Iterable[str]) -> None:
        """Drop history entries."""
        with self._lock:
            for prompt_id in prompt_ids:
                self._history.pop(prompt_id, None)

    def forget_all(self) -> None:
        """Drop the whole history."""
        with self._lock:
            self._history = {}

    def lose_everything(self) -> None:
        """Forget running, pending and finished prompts, as a restart does."""
        with self._lock:
            self._pending, self._running, self._hidden = [], {}, {}
            self._history, self._flags = {}, {}
            self._changed(0)
            self._wake.notify_all()

    def set_flag(self, name: str) -> None:
        """Ask the worker to free something before its next prompt."""
        with self._lock:
            self._flags[name] = True
            self._wake.notify()

    def take_flags(self) -> set[str]:
        """Return and clear what was asked."""
        with self._lock:
            flags, self._flags = set(self._flags), {}
            return flags
