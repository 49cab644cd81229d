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
        self._members = {item: [item] for item in self._order}  # of every leader

    def leader(self, item: Item) -> Item:
        """The first item of the group of an item."""
        top = item
        while self._leader[top] != top:
            top = self._leader[top]
        while self._leader[item] != top:  # so that the next walk is short
            self._leader[item], item = top, self._leader[item]
        return top

    def merge(self, items: Iterable[Item]) -> None:
        """Put the groups of some items together."""
        leaders = sorted({self.leader(item) for item in items}, key=self._order.__getitem__)
        for other in leaders[1:]:
            self._leader[other] = leaders[0]
            self._members[leaders[0]] += self._members.pop(other)

    def leaders(self) -> list[Item]:
        """The first item of every group, in order."""
        return list(self._members)

    def members(self, leader: Item) -> list[Item]:
        """The items of a group, in order."""
        return sorted(self._members[leader], key=self._order.__getitem__)
