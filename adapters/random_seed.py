"""Seeds for random streams, from where a training stands."""

from __future__ import annotations

import hashlib
import struct


def mix(*numbers: int) -> int:
    """Return 63 bits that any change of a number changes, for seeding a random stream."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
