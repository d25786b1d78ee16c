"""Steering by a feature: the direction of a decoder row, added to the output of a block."""

from __future__ import annotations

from typing import Literal

Positions = Literal["all", "generated"]
