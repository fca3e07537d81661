"""Protocol-buffer messages as bytes: as much of the wire format as a trace needs.

A message is its fields, one after the other: a key, number and wire type in one varint, then the
value.  Whole numbers are varints, floats eight bytes, texts and messages their length and bytes.
"""

from __future__ import annotations

import struct

Value = int | float | str | bytes
_VARINT, _EIGHT_BYTES, _WITH_LENGTH = 0, 1, 2


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of these (number, value) pairs; a message inside another is its bytes.

    Whole numbers must not be negative.
    """
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | _EIGHT_BYTES) + struct.pack("<d", value)
    body = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _WITH_LENGTH) + varint(len(body)) + body


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
