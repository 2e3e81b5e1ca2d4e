"""A cache that keeps what was used last."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Lru(Generic[Key, Value]):
    """At most so many values, by key; the one unused for longest gives way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Look one up; it counts as used now."""
        try:
            self._kept.move_to_end(key)
            return self._kept[key]
        except KeyError:
            # also where another thread took it out in between
            return None

    def keep(self, key: Key, value: Value) -> None:
        """Remember one as the one used last."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
