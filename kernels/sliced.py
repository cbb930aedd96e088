"""Bit-sliced state: a binary layer that only a sign reads, kept as bit planes of the compared number.

With N set bits under a window, A[c] of them where the weight of channel c is +1, and W[c] weights +1,

    mismatches[c] = N + W[c] - 2 A[c]

so the sign's comparison (threshold.py) is one of halves, q[c] = W[c] + 1 - limit[c]:

    mismatches[c] < limit[c]   <=>   T[c] >= N // 2 + (N odd or q[c] odd),     T[c] = A[c] - q[c] // 2

A flip changes A by what the rows kernel counts, T += P_r - P_f, and N by one: no channel leaves its plane.
Adding the counts is a ripple of full adders; the comparison is the borrow of a subtraction that goes along,
and its last bit is the packed sign. T - N // 2 lies within n / 2 + 1 of 0 for n bits under a window, so that
arithmetic modulo 2^planes is exact with a sign above that.

Layout: for each tile of the rows kernel (row_table.py) and each of its vectors `planes` vectors, lowest
first, and one of q's parities, which the class of the pixel decides. Beside it N, one uint64 a pixel, rows
`wo + 8` apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import inline, jit
from .planes import add_seven, bit_plane, borrow, majority, store_planes, xor3
from .simd import get, load, popcount, put, shift_right, splat, store

#: Most bits under a window for which T is computed from uint16 sums modulo 2^16.
MAX_SLICED_BITS = 32000


def count_planes(window_bits: int) -> int:
    """Planes of T, at least the eight of the rows kernel's counts."""
    return max(8, (window_bits // 2 + 2).bit_length() + 1)


def can_slice(step: Any) -> bool:
    """Whether the layer of this STEP can be kept in planes."""
    return bool(step["kh"] * step["kw"] * step["cin"] <= MAX_SLICED_BITS)


def state_sizes(step: Any) -> tuple[int, int]:
    """Words of (planes, set bits N) of a layer; step with `tile` and `planes` set."""
    tiles = int(step["ho"]) * -(-int(step["wo"]) // int(step["tile"])) * max(1, int(step["out_words"]) // 8)
    return tiles * (int(step["planes"]) + 1) * 8, int(step["ho"]) * (int(step["wo"]) + 8)


def sign_tables(weight: Any, limits: Any, inverted: Any, step: Any) -> tuple[Any, Any, Any]:
    """What the comparison adds to the sums, q's parities, and the last inversion.

    weight : uint64[Cout, kH, kW, Cw].  limits : uint16[classes, lanes].  inverted : uint64[words].
    Returns uint16[classes, lanes] limit - 1 + parity; uint64[classes, out_words]; uint64[max(8, out_words)],
    all bits inverted again and repeated for every pixel of a tile.
    """
    ones = np.zeros(limits.shape[1], np.int64)
    ones[: len(weight)] = np.bitwise_count(weight).sum(axis=(1, 2, 3), dtype=np.int64)
    odd = (ones + 1 - limits.astype(np.int64)) % 2
    added = (limits.astype(np.int64) - 1 + odd).astype(np.uint16)
    parities = np.packbits(odd.astype(np.uint8), axis=-1, bitorder="little").view(np.uint64)
    words = np.zeros(int(step["out_words"]), np.uint64)
    words[: len(inverted)] = inverted
    return added, parities, ~np.tile(words, max(1, 8 // len(words)))


@jit
def slice_sums(
    sums: Any,
    s: Any,
    added: Any,
    parities: Any,
    classes: Any,
    padded: Any,
    diff: Any,
    starts: Any,
    segment_at: Any,
    halves: Any,
    state: Any,
    ones: Any,
) -> None:
    """Make the state of the last frame's sums.

    sums : uint16[ho * wo * lanes], mismatches.  added, parities : `sign_tables`.
    classes : int64[ho * wo], or empty where all pixels are alike.
    padded, diff : uint64[hp * wp * words]; the last frame is padded ^ diff.
    halves : uint16[512] scratch, the T of a tile.

    Of spare channels T becomes 0, which is below every N // 2 + odd: their bits are 0.
    Bound by reading the sums and writing the state: two fifths of computing the sums of 64 channels at
    56x56 (48 us), a twenty-fifth of those of 512 at 7x7 (4 us).
    """
    lanes, words, wo, tile, planes = s.lanes, s.out_words, s.wo, s.tile, s.planes
    vectors, at = max(1, words // 8), 0
    words_a_vector = min(8, words)
    for y in range(s.ho):
        for x0 in range(0, wo, tile):
            for x in range(x0, min(x0 + tile, wo)):
                put(ones, y * (wo + 8) + x, _count_set_bits(padded, diff, s, starts, segment_at, y * wo + x))
            for vector in range(vectors):
                for pixel in range(min(tile, wo - x0)):
                    x = x0 + pixel
                    p = y * wo + x
                    window = splat(np.uint16(get(ones, y * (wo + 8) + x)))
                    of_class = get(classes, p) if len(classes) else 0
                    to = pixel * words
                    for word in range(vector * 8, vector * 8 + words_a_vector):
                        put(state, at + 8 * planes + to, get(parities, of_class * words + word))
                        for lane in (word * 64, word * 64 + 32):
                            twice = (
                                window + load(added, of_class * lanes + lane) - load(sums, p * lanes + lane)
                            )
                            store(halves, to * 64 + lane % 64, shift_right(twice, 1))
                        to += 1
                    spare = pixel * words * 64 - vector * 512
                    for lane in range(max(s.cout, vector * 512), min(lanes, vector * 512 + 512)):
                        put(halves, spare + lane, np.uint16(0))  # what their sums are is nobody's concern
                store_planes(state, at, planes, halves)
                at += (planes + 1) * 8


@inline
def _count_set_bits(padded: Any, diff: Any, s: Any, starts: Any, segment_at: Any, p: Any) -> Any:
    """Set bits under the window of pixel p in the frame before the flips."""
    count = np.uint64(0)
    for segment in range(s.segments):
        at = get(starts, p) + get(segment_at, segment)
        for element in range(at, at + s.run):
            count += popcount(get(padded, element) ^ get(diff, element))
    return count


@inline
def add_and_compare(state: Any, at: int, planes: int, delta: Any, numbers: Any) -> Any:
    """Add counts to the T at `at`; a bit is 1 where T then is below N // 2 + (N odd or q odd).

    delta : eight planes of an integer with a sign, one less than what is added.  numbers : uint64 N by lane.
    """
    below = load(state, at + 8 * planes) | bit_plane(numbers, 0)
    carry, below = add_seven(state, at, delta, numbers, below)
    sign = delta[7]
    negative = below
    for plane in range(7, planes):
        old = load(state, at + 8 * plane)
        total = xor3(old, sign, carry)
        carry = majority(old, sign, carry)
        store(state, at + 8 * plane, total)
        negative = total ^ below  # N // 2 has no bit in the highest plane
        below = borrow(total, bit_plane(numbers, plane + 1), below)
    return negative
