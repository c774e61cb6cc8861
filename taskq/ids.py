"""Task ids and the slots that they carry.

An id is 16 bytes, a UUIDv8 (RFC 9562): 48 bits of Unix milliseconds, version 8, 12 bits of slot, variant 2, 62 random bits.  So ids sort by time,
and any id names its slot without a look-up.  Clients make them; sixteen zero bytes ask the broker to make one.

    slot = CRC-32(queue name in UTF-8 + "/" + partition in decimal) mod 4096        (CRC-32 as in zlib, PNG and Ethernet)
"""

from __future__ import annotations

import random
from struct import unpack_from
from zlib import crc32

SLOTS = 4096
ID_BYTES = 16
TOKEN_BYTES = 8
NIL = bytes(ID_BYTES)


def slot_of_queue(queue: str, partition: int = 0) -> int:
    """The slot, 0…4095, that owns this partition of the queue."""
    return crc32(f"{queue}/{partition}".encode()) % SLOTS


def make_id(now_ms: int, slot: int, rng: random.Random) -> bytes:
    """A new id for the slot; `now_ms` is broker time (WELCOME tells the difference to the local clock)."""
    value = now_ms << 80 | (0x8000 | slot) << 64 | 1 << 63 | rng.getrandbits(62)
    return value.to_bytes(ID_BYTES, "big")


def make_ids(now_ms: int, slot: int, rng: random.Random, count: int) -> bytes:
    """`count` new ids in one block, at a fifth of what they cost one by one."""
    if count == 1:
        return make_id(now_ms, slot, rng)
    variant = int.from_bytes(b"\x80\0\0\0\0\0\0\0" * count, "big")
    mask = int.from_bytes(b"\x3f\xff\xff\xff\xff\xff\xff\xff" * count, "big")
    tails = (rng.getrandbits(64 * count) & mask | variant).to_bytes(8 * count, "big")
    return (now_ms << 16 | 0x8000 | slot).to_bytes(8, "big").join([b"", *split(tails, 8)])


def slot_of_id(task_id: bytes) -> int:
    return (task_id[6] & 0x0F) << 8 | task_id[7]


def of_one_slot(block: bytes) -> bool:
    """Whether the ids of a block all have the same slot, which their bytes 6 and 7 tell at once."""
    return len(set(block[7::ID_BYTES])) <= 1 and len({byte & 0x0F for byte in block[6::ID_BYTES]}) <= 1


def ms_of_id(task_id: bytes) -> int:
    return int.from_bytes(task_id[:6], "big")


def is_valid(task_id: bytes) -> bool:
    """True for a UUIDv8 of ours (right length, version and variant)."""
    return len(task_id) == ID_BYTES and task_id[6] >> 4 == 8 and task_id[8] >> 6 == 2


def split(block: bytes, size: int) -> list[bytes]:
    """Cut a block of ids (size 16) or tokens (size 8) into its members; what is left over at the end is none."""
    return list(unpack_from(f"{size}s" * (len(block) // size), block))
