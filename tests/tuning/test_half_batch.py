"""Half batches: half of a batch runs alone only where that gives what the whole batch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pab_compile.tuning.half_batch import HalfBatches

X, T, SIZE = torch.randn(4, 3), torch.arange(4.0), torch.tensor([8.0, 8.0])


class Calls:
    """A model that counts the rows that it computes."""

    def __init__(self, kind: str) -> None:
        self.kind, self.rows = kind, 0

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        if self.kind == "needs four rows":
            x = x.reshape(4, 3)
        mean = x.mean(0) if self.kind == "mixes rows" else 0
        return x * timestep[:, None] + size[0] + mean


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", ["by rows", "mixes rows", "needs four rows"])
def test_half_runs_alone_if_it_is_the_same(kind: str, which: int) -> None:
    model, halves = Calls(kind), HalfBatches()
    wanted = model(X, T, SIZE).chunk(2)[which]
    model.rows, calls = 0, []
    for _ in range(3):
        (found,), taken = halves.run(model, (X, T), {"size": SIZE}, len(X), which)
        torch.testing.assert_close(found, wanted)
        calls.append(taken)
    alone = kind == "by rows"
    assert calls == [1.5, 0.5, 0.5] if alone else [1.5, 1, 1]
    assert model.rows == (10 if alone else 14)


def test_calls_of_other_shapes_are_compared_anew() -> None:
    class Odd(Calls):
        def __call__(self, x: Any, timestep: Any, size: Any) -> torch.Tensor:
            self.kind = "mixes rows" if x.shape[1] == 5 else "by rows"
            return super().__call__(x, timestep, size)

    halves, wide = HalfBatches(), torch.randn(4, 5)
    model = Odd("")
    halves.run(model, (X, T, SIZE), {}, 4, 0)
    for _ in range(2):
        (found,), _ = halves.run(model, (wide, T, SIZE), {}, 4, 0)
        torch.testing.assert_close(found, model(wide, T, SIZE)[:2])
