"""One fault in one place of the library, and the tests that should notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A fault in one place of the library.

    Attributes:
        path: the source file.
        what: what no longer holds.
        old: text that occurs in the file exactly once.
        new: what takes its place.
        tests: files or folders of tests, the likeliest first.
    """

    path: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The source with the fault.

        Raises:
            ValueError: the text does not occur exactly once: the mutation is stale.
        """
        if (count := source.count(self.old)) != 1:
            raise ValueError(
                f"{self.path}: {self.old!r} occurs {count} times. Update the mutation."
            )
        return source.replace(self.old, self.new)
