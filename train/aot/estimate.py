"""Estimates the time of a program: its FLOPs, memory traffic and communication over the published peak rates. Pure.

The estimate is two bounds. `overlapped`: all parts run at the same time, so the slowest one counts. `in_turn`: they run
one after the other. Nothing here was measured, and no program reaches a peak: a matrix product of good shape reaches 70
to 90 % of it, and operations that are not products (top-k, softmax, gathers) are not in the FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from steerling_jax.train.aot.chips import Chip


@dataclass(frozen=True)
class Work:
    """Work of one run on one device.

    flops: of products, as compiled. memory: bytes of HBM traffic.
    sent: bytes to other chips, `sent_between` of them to other slices.
    model_flops: what the mathematics needs.
    """

    flops: float
    memory: float
    sent: float
    sent_between: float
    model_flops: float


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds by part and in all; and the model FLOPs utilisation (MFU) at the two bounds, from 0 to 1."""

    compute: float
    memory: float
    links: float
    network: float
    overlapped: float
    in_turn: float
    share_overlapped: float
    share_in_turn: float

    @property
    def bound_by(self) -> str:
        """The part that takes longest."""
        parts = {name: getattr(self, name) for name in ("compute", "memory", "links", "network")}
        return max(parts, key=lambda name: parts[name])


def estimate(work: Work, chip: Chip) -> TimeEstimate:
    """The time of `work` on one device of `chip`.

    A device is assumed to send over all its links at the same time. That is half of the published rate, which counts
    both directions; and where a chip is two devices, each has half of the chip's rates.
    """
    peak = chip.flops / chip.devices
    compute = work.flops / peak
    memory = work.memory / (chip.hbm_rate / chip.devices)
    links = (work.sent - work.sent_between) / (chip.link_rate / 2 / chip.devices)
    network = work.sent_between / (chip.network_rate / chip.devices)
    parts = (compute, memory, links, network)
    shares = (work.model_flops / peak / seconds if seconds else 0.0 for seconds in (max(parts), sum(parts)))
    return TimeEstimate(*parts, max(parts), sum(parts), *shares)
