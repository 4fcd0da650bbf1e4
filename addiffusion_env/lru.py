"""A least-recently-used cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Keeps at most ``capacity`` values; the least recently used one is evicted first.

    >>> cache = LruCache(2)
    >>> for key in "aba": cache[key] = key.upper()
    >>> cache["c"] = "C"
    >>> cache.get("a"), cache.get("b"), "c" in cache
    ('A', None, True)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._items

    def __setitem__(self, key: Hashable, value: Value) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        while len(self._items) > self.capacity:
            self._items.popitem(last=False)

    def get(self, key: Hashable) -> Value | None:
        """The value of ``key``, which becomes the most recently used, or ``None``."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def clear(self) -> None:
        """Removes all values."""
        self._items.clear()
