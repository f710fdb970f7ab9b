"""Whether the containers of a msgpack value fit the limits, told from its headers before anything is built.

A header of five bytes makes an unpacker allocate a list of 100,000 items, so a thousand of them, one inside
the other, would cost 800 MB before anything is refused. Small messages can not, and few have 64 large headers
to begin with: those are not looked at, so an ordinary frame costs four scans for a byte.

This is a bound on work, not a validation: what fits here may still be no msgpack at all.
"""

from typing import Final

from swamp_proto.limits import FRAME_DEPTH_MAX, FRAME_ITEMS_MAX, KIB

_HARMLESS: Final = 4 * KIB
_LARGE_HEADERS: Final = (b"\xdc", b"\xdd", b"\xde", b"\xdf")
_CONTAINERS: Final = {0xDC: 1, 0xDD: 1, 0xDE: 2, 0xDF: 2}  # values per item
_SIZED: Final = frozenset({0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})  # bytes and text: the number is a length
_WIDTHS: Final = {
    0xC0: 0,
    0xC2: 0,
    0xC3: 0,
    0xCA: 4,
    0xCB: 8,
    0xC4: 1,
    0xC5: 2,
    0xC6: 4,
    0xD9: 1,
    0xDA: 2,
    0xDB: 4,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}


def fits(data: bytes) -> bool:
    """Whether `data` nests at most `FRAME_DEPTH_MAX` containers of at most `FRAME_ITEMS_MAX` items."""
    # Looking for a byte that is not there is ten times faster than counting it.
    if (
        len(data) <= _HARMLESS
        or sum(data.count(one) for one in _LARGE_HEADERS if one in data) <= FRAME_DEPTH_MAX
    ):
        return True
    outer: list[int] = []  # of each open container, how many values follow the one that is being read
    rest, at, size = 1, 0, len(data)
    while True:
        while rest == 0:
            if not outer:
                return True
            rest = outer.pop()
        if at >= size:
            return False
        head = data[at]
        rest -= 1
        at += 1
        if head <= 0x7F or head >= 0xE0:
            continue
        if 0xA0 <= head <= 0xBF:
            at += head & 0x1F
            continue
        if head <= 0x9F:
            count = (head & 0x0F) * (2 if head <= 0x8F else 1)
        else:
            width = _WIDTHS.get(head)
            if width is None:
                return False
            field = int.from_bytes(data[at : at + width])
            at += width
            if head not in _CONTAINERS:
                at += field if head in _SIZED else 0
                continue
            if field > FRAME_ITEMS_MAX:
                return False
            count = field * _CONTAINERS[head]
        outer.append(rest)
        rest = count
        if len(outer) > FRAME_DEPTH_MAX:
            return False
