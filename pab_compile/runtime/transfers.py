"""Transfers: what is cached waits in the memory of the host, and comes back before it is needed.

Everything here begins a copy and returns. The copies run on a stream of their own, in order, beside
the computation. A tensor that came back must be waited for (``Parcel.receive``).
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch


class Parcel(Protocol):
    """One tensor in the memory of the host."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the memory of the host."""
        ...

    def request(self) -> None:
        """Begin to copy it back to the device, unless this has begun."""
        ...

    def receive(self) -> torch.Tensor:
        """The tensor on the device, whole for all that the caller computes from now on."""
        ...


class Transfers(Protocol):
    """Sends tensors of one device to the host."""

    def send(self, tensor: torch.Tensor) -> Parcel:
        """Begin to copy a tensor to the host. Nobody may write to it from now on."""
        ...


@functools.cache
def transfers_of(device: torch.device) -> Transfers | None:
    """What sends tensors of a device to the host; None where the host has no other memory."""
    return CudaTransfers(device) if device.type == "cuda" else None


class CudaTransfers:
    """Transfers of a CUDA device, to pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def send(self, tensor: torch.Tensor) -> Parcel:
        """Begin to copy a tensor to the host, once what computes it is done."""
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given away before the copy is done
        return _CudaParcel(host, tensor.device, self._stream)


class _CudaParcel:
    def __init__(self, host: torch.Tensor, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = host
        self._device = device
        self._stream = stream
        self._coming: tuple[torch.Tensor, torch.cuda.Event] | None = None

    @property
    def num_bytes(self) -> int:
        return self._host.numel() * self._host.element_size()

    def request(self) -> None:
        if self._coming is None:
            with torch.cuda.stream(self._stream):  # in order: behind the copy to the host
                tensor = self._host.to(self._device, non_blocking=True)
                done = torch.cuda.Event()
                done.record(self._stream)
            self._coming = tensor, done

    def receive(self) -> torch.Tensor:
        self.request()
        assert self._coming is not None
        (tensor, done), self._coming = self._coming, None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        tensor.record_stream(current)
        return tensor
