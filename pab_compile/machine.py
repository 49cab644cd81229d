"""Machines: the rate of the devices and of the links between them, as predictions take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A connection between devices.

    Attributes:
        seconds: latency of a collective.
        bytes_per_second: bandwidth of one device, in one direction.
    """

    seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class Machine:
    """Devices in nodes.

    Attributes:
        flops_per_second: rate of one device, over whole steps of a model.
        inside: link between the devices of a node.
        across: link between nodes.
        node_size: devices per node.
        call_seconds: shortest time of a call of the model, on any number of devices.
    """

    flops_per_second: float
    inside: Link = Link(20e-6, 300e9)
    across: Link = Link(40e-6, 40e9)
    node_size: int = 8
    call_seconds: float = 0.0

    def seconds(self, num_collectives: float, sent: float, num_ranks: int) -> float:
        """The seconds of collectives.

        Args:
            num_collectives: how many run.
            sent: bytes that one device sends in them.
            num_ranks: number of devices.
        """
        if num_ranks == 1:
            return 0.0
        near = (min(num_ranks, self.node_size) - 1) / (num_ranks - 1)
        latency = (self.inside if near == 1 else self.across).seconds
        return num_collectives * latency + max(
            sent * near / self.inside.bytes_per_second,
            sent * (1 - near) / self.across.bytes_per_second,
        )

    def passing_seconds(self, num_collectives: float, sent: float, num_ranks: int) -> float:
        """The seconds of collectives in which every device sends to the next one of its ring.

        Args:
            num_collectives: how many run.
            sent: bytes that one device sends in them.
            num_ranks: number of devices. In more than one node, some device sends to another node.
        """
        link = self.inside if num_ranks <= self.node_size else self.across
        return num_collectives * link.seconds + sent / link.bytes_per_second
