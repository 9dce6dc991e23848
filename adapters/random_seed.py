"""Seeds for random streams, from a training's position."""

from __future__ import annotations

import hashlib
import struct


def mix(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on every number."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
