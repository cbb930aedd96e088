"""Which outputs a change can reach, and copies into padded inputs."""

from __future__ import annotations

from typing import Any

from .jit import jit


@jit
def list_all(count: int, pixels: Any) -> int:
    """pixels[:count] = 0, 1, 2, ...; returns count."""
    for p in range(count):
        pixels[p] = p
    return count


@jit
def list_changed(changed: Any, pixels: Any) -> int:
    """List the pixels whose uint8 mark is not 0. Returns their number."""
    count = 0
    for p in range(len(changed)):
        pixels[count] = p
        count += changed[p] != 0
    return count


@jit
def mark_flipped(diff: Any, s: Any, changed: Any) -> None:
    """changed uint8[h * w] = whether any word of the input pixel flipped; diff as in bitpack.diff_into_padded."""
    for y in range(s.h):
        for x in range(s.w):
            at = ((y + s.pt) * s.wp + s.pl + x) * s.words
            flipped = False
            for word in range(s.words):
                flipped |= diff[at + word] != 0
            changed[y * s.w + x] = flipped


@jit
def list_windows(changed: Any, s: Any, touched: Any, pixels: Any) -> int:
    """List the output pixels whose window holds a changed input pixel. Returns their number.

    changed : uint8[h * w].  touched : uint8[h * wo] scratch.  A dilated window counts as solid, which can
    only recompute an output that stays the same.  Cost: one read of `changed` for each column of a kernel
    row, on rows with any change, then kH reads an output.
    """
    reach_y, reach_x = s.dh * (s.kh - 1) + 1, s.dw * (s.kw - 1) + 1
    for y in range(s.h):
        row = changed[y * s.w : (y + 1) * s.w]
        out = touched[y * s.wo : (y + 1) * s.wo]
        out[:] = 0
        if not row.any():
            continue
        for kx in range(reach_x):
            # The outputs whose tap kx is inside the image.
            first = max(0, (s.pl - kx + s.sw - 1) // s.sw)
            last = min(s.wo - 1, (s.w - 1 + s.pl - kx) // s.sw)
            for ox in range(first, last + 1):
                out[ox] |= row[ox * s.sw + kx - s.pl]
    count = 0
    for oy in range(s.ho):
        top = oy * s.sh - s.pt
        for ox in range(s.wo):
            seen = 0
            for y in range(max(0, top), min(s.h, top + reach_y)):
                seen |= touched[y * s.wo + ox]
            pixels[count] = oy * s.wo + ox
            count += seen != 0
    return count


@jit
def copy_into_padded(x: Any, stride: int, s: Any, padded: Any) -> None:
    """Copy an input into its padded form, whose border stays as it is.

    x : [h * w * stride], the first `words` elements of a pixel are its value (floats or packed bits).
    """
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        for column in range(s.w):
            source = (y * s.w + column) * stride
            for c in range(s.words):
                padded[at + column * s.words + c] = x[source + c]


@jit
def copy_changed_into_padded(x: Any, stride: int, s: Any, changed: Any, padded: Any) -> int:
    """`copy_into_padded` of the pixels marked in `changed` (uint8[h * w]). Returns their number."""
    count = 0
    for y in range(s.h):
        at = ((y + s.pt) * s.wp + s.pl) * s.words
        for column in range(s.w):
            if changed[y * s.w + column]:
                count += 1
                source = (y * s.w + column) * stride
                for c in range(s.words):
                    padded[at + column * s.words + c] = x[source + c]
    return count
