"""Groups: items that turn out to belong together (union-find)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Groups(Generic[Item]):
    """A partition of some items, each alone at first. The first item of a group leads it.

    Args:
        items: all items, in an order.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._order = {item: index for index, item in enumerate(items)}
        self._leader = {item: item for item in self._order}

    def leader(self, item: Item) -> Item:
        """The first item of the group of an item."""
        while self._leader[item] != item:
            item = self._leader[item]
        return item

    def merge(self, items: Iterable[Item]) -> None:
        """Put the groups of some items together."""
        leaders = sorted({self.leader(item) for item in items}, key=self._order.__getitem__)
        self._leader.update(dict.fromkeys(leaders, leaders[0]) if leaders else {})

    def leaders(self) -> list[Item]:
        """The first item of every group, in order."""
        return [item for item in self._order if self.leader(item) == item]

    def members(self, leader: Item) -> list[Item]:
        """The items of a group, in order."""
        return [item for item in self._order if self.leader(item) == leader]
