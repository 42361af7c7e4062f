"""Files damaged at random: bits turned over, pieces cut off, blanked, doubled or put elsewhere."""

import random


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes than `data`."""
    while True:
        found, at = bytearray(data), rng.randrange(len(data))
        size = rng.randrange(1, 65)
        match rng.randrange(6):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                del found[at:]
            case 2:
                found[at : at + size] = bytes(len(found[at : at + size]))
            case 3:
                found[at:at] = rng.randbytes(size)
            case 4:
                del found[at : at + size]
            case 5:
                piece = found[at : at + size]
                del found[at : at + size]
                found[rng.randrange(len(found) + 1) : 0] = piece
        if found != data:
            return bytes(found)
