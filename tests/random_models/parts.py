"""Parts of blocks: MLPs, modulation, and residuals in all their spellings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .spec import OF_OWN_TOKENS, WITHOUT_A_GATE, Spec

Tensor = torch.Tensor
MIXTURES = ("mixture", "top", "shared", *OF_OWN_TOKENS)


def chosen(x: Tensor) -> Tensor:
    """Which tokens of ``[..., tokens, channels]`` a mask keeps, ``[tokens, 1]``."""
    return (torch.arange(x.shape[-2]) % 3 != 1)[:, None]


class Mlp(nn.Module):
    """An MLP of ``[..., channels]``; its last projection apart.

    Args:
        spec: of the model.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, width = spec, spec.channels
        self.form = spec.mlp
        count = 2 if self.form in MIXTURES else 1
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(count))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(count))
        if self.form == "swiglu":
            self.gate = nn.Linear(width, 2 * width)
        elif self.form == "geglu of one":
            self.ups = nn.ModuleList([nn.Linear(width, 4 * width)])
        elif self.form == "convolution":
            self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        elif self.form == "row":
            self.depthwise = nn.Conv1d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        elif count > 1:
            self.router = nn.Linear(width, count)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens ``[b, s, c]`` or ``[b, t, h, w, c]``."""
        if self.form in ("mixture", "top"):
            return self._mixture(x)
        if self.form == "shared":
            return self.downs[0](F.gelu(self.ups[0](x))) + self._mixture(x)
        if self.form == "chunked":
            return torch.cat([self.downs[0](self.hidden(part)) for part in x.chunk(2, 1)], 1)
        if self.form in OF_OWN_TOKENS:
            return self._of_own_tokens(x.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)
        return self.downs[0](self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What the last projection reads."""
        h = self.ups[0](x)
        if self.form in ("gelu", "chunked"):
            return F.gelu(h, approximate="tanh")
        if self.form == "squared":
            return F.relu(h).square()
        if self.form == "swiglu":
            return F.silu(self.gate(x)) * h
        if self.form == "geglu of one":
            one, other = h.chunk(2, -1)
            return one * F.gelu(other)
        spec = self.spec
        if self.form == "convolution":
            grid = F.silu(h).reshape(-1, spec.height, spec.width, h.shape[-1])
            return self.depthwise(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(h.shape)
        rows = F.silu(h).reshape(len(h), -1, h.shape[-1]).transpose(1, 2)
        return self.depthwise(rows).transpose(1, 2).reshape(h.shape)

    def _mixture(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.form == "top":
            best, index = weights.topk(1, -1)
            weights = torch.zeros_like(weights).scatter(-1, index, best)
        out = torch.zeros_like(x)
        for number, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            out = out + weights[..., number : number + 1] * down(F.silu(up(x)))
        return out

    def _of_own_tokens(self, x: Tensor) -> Tensor:
        """Every expert computes half of the tokens ``[b, s, c]``, those of its largest weights."""
        weights = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        count = max(1, x.shape[1] // 2)
        for number, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            best, index = weights[..., number].topk(count, 1)
            if self.form == "scattered":
                index = index[..., None].expand(-1, -1, x.shape[-1])
                made = best[..., None] * down(F.silu(up(x.gather(1, index))))
                out = out.scatter_add(1, index, made)
                continue
            rows = (index + x.shape[1] * torch.arange(len(x))[:, None]).flatten()
            made = best.flatten()[:, None] * down(F.silu(up(x.flatten(0, 1)[rows])))
            out = out.flatten(0, 1).index_add(0, rows, made).view(x.shape)
        return out


class Residual(nn.Module):
    """Adds a branch to its stream.

    Args:
        spec: of the model.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.form, self.norm = spec.residual, spec.norm
        if self.form in WITHOUT_A_GATE:
            self.weight = nn.Parameter(torch.randn(spec.channels, spec.channels) / 3)
        if self.norm == "scaled":
            self.scale = nn.Parameter(torch.rand(spec.channels) + 0.5)

    def forward(self, x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        """The model's own spelling of ``plus(x, addend(last(y), gate))``."""
        form = self.form
        if form == "addcmul":
            y = self._scaled(y)
            return torch.addcmul(x, y, torch.ones_like(y) if gate is None else gate)
        if form == "addcmul in place":
            return x.addcmul_(self._scaled(y), torch.ones_like(y) if gate is None else gate)
        if form == "addmm":
            out = torch.addmm(x.flatten(0, -2), y.flatten(0, -2), self.weight)
            return out.view(x.shape)
        if form == "baddbmm":
            weight = self.weight.expand(len(x), -1, -1)
            return torch.baddbmm(x.flatten(1, -2), y.flatten(1, -2), weight).view(x.shape)
        y = y if gate is None else gate * y
        y = self._scaled(y)
        if form == "sub":
            return x - y
        if form == "swapped":
            return y + x
        if form == "alpha":
            return torch.add(x, y, alpha=0.5)
        if form == "lerp":
            return torch.lerp(x, y, 0.3)
        if form == "in place":
            x += y
            return x
        if form == "float32 sum":
            return (x.float() + y.float()).to(x.dtype)
        if form == "views":
            return (x.unflatten(-1, (2, -1)) + y.unflatten(-1, (2, -1))).flatten(-2)
        if form == "halved":
            return (x + y) / 2**0.5
        if form == "where":
            return x + torch.where(chosen(x), y, 0.5 * y)
        if form == "where of sums":
            return torch.where(chosen(x), x + y, x - y)
        return self._rarer(x, y)

    def _rarer(self, x: Tensor, y: Tensor) -> Tensor:
        form = self.form
        if form == "addcdiv":
            return torch.addcdiv(x, y, torch.full_like(y[..., :1], 2.0))
        if form == "scaled in place":
            return x.mul_(0.9).add_(y)
        if form == "negative":
            return x - (-y)
        if form == "stacked":
            return torch.stack([x, y]).sum(0)
        if form == "parts":
            return torch.cat([x[:, :1] + y[:, :1], x[:, 1:] + y[:, 1:]], 1)
        if form == "parts in place":
            x[:, 1:] += y[:, 1:]
            x[:, :1] += y[:, :1]
            return x
        if form == "dropout":
            return x + F.dropout(y, 0.1, self.training)
        if form == "filled":
            return x + y.masked_fill(~chosen(y), 0.0)
        if form == "promoted":
            return (x + y.float()).to(x.dtype)
        return x + y  # also a float32 stream

    def _scaled(self, y: Tensor) -> Tensor:
        return y * self.scale if self.norm == "scaled" else y

    def last(self, y: Tensor) -> Tensor:
        """What belongs to the branch itself: a projection that is fused with the sum."""
        return y @ self.weight if self.form in WITHOUT_A_GATE else y

    def addend(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """What is added to the stream."""
        y = self._scaled(y if gate is None else gate * y)
        if self.form == "where":
            return torch.where(chosen(y), y, 0.5 * y)
        if self.form == "where of sums":
            return torch.where(chosen(y), y, -y)
        if self.form == "filled":
            return y.masked_fill(~chosen(y), 0.0)
        factor = {"alpha": 0.5, "lerp": 0.3, "halved": 0.5**0.5, "addcdiv": 0.5}.get(self.form, 1.0)
        return -y if self.form == "sub" else factor * y

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The sum."""
        x = x * {"lerp": 0.7, "halved": 0.5**0.5, "scaled in place": 0.9}.get(self.form, 1.0)
        return (x + added).to(x.dtype)
