"""Text of small compiled programs."""

from __future__ import annotations


def hlo(*lines: str, before: str = "") -> str:
    """A module whose entry has the parameter %p, bfloat16 (8, 4), and these instructions."""
    body = "\n".join(f"  {line}" for line in ("%p = bf16[8,4]{1,0} parameter(0)", *lines))
    return f"HloModule test\n\n{before}\n\nENTRY %main (p: bf16[8,4]) -> bf16[8,4] {{\n{body}\n}}\n"
