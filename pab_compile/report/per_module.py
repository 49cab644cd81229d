"""What is said of each module that denoises: a dict that prints as its tables."""

from __future__ import annotations

from html import escape
from typing import Any, TypeVar

T = TypeVar("T")


class PerModule(dict[str, T]):
    """Role, such as ``transformer`` -> what is said of the module."""

    def __str__(self) -> str:
        """The texts of all, below their roles if there are several."""
        if len(self) == 1:
            return str(next(iter(self.values())))
        return "\n\n".join(f"{role}\n{value}" for role, value in self.items())

    def _repr_html_(self) -> str:
        """What notebooks show."""
        parts = [(role, _html(value)) for role, value in self.items()]
        if len(parts) == 1:
            return parts[0][1]
        return "".join(f"<h4>{escape(role)}</h4>{part}" for role, part in parts)


def _html(value: Any) -> str:
    return value._repr_html_()
