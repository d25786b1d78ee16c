"""How long a program would take, on paper: its FLOPs, memory traffic and messages over the maker's peak rates. Pure.

Between two bounds. `overlapped`: products, memory and messages all at once and each at its peak, so the slowest alone
counts. `in_turn`: one after the other. Nothing here was measured, and no program reaches a peak: a product of good
shape gets 70 to 90 % of it, and what is no product (top-k, softmax, gathers) is not in the FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from steerling_jax.train.aot.chips import Chip


@dataclass(frozen=True)
class Work:
    """Of one run on one device. flops: products, as compiled. memory: bytes of HBM. sent: bytes to other chips, of
    which `sent_between` to other slices. model_flops: what the mathematics needs."""

    flops: float
    memory: float
    sent: float
    sent_between: float
    model_flops: float


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds, and shares of the peak that `model_flops` would be (MFU)."""

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
        """What takes longest."""
        parts = {name: getattr(self, name) for name in ("compute", "memory", "links", "network")}
        return max(parts, key=lambda name: parts[name])


def estimate(work: Work, chip: Chip) -> TimeEstimate:
    """A device sends over all its links at once, each in one direction: half of the published rate, and a share of the
    chip's where a chip is two devices."""
    peak = chip.flops / chip.devices
    compute = work.flops / peak
    memory = work.memory / (chip.hbm_rate / chip.devices)
    links = (work.sent - work.sent_between) / (chip.link_rate / 2 / chip.devices)
    network = work.sent_between / (chip.network_rate / chip.devices)
    parts = (compute, memory, links, network)
    shares = (work.model_flops / peak / seconds if seconds else 0.0 for seconds in (max(parts), sum(parts)))
    return TimeEstimate(*parts, max(parts), sum(parts), *shares)
