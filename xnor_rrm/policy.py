"""When a binary layer's frame goes to the rows kernel, and when to the dense one.

Both give the same bits, so the choice is about time alone: a linear cost model of each, in nanoseconds,
with constants fitted to a whole network on real video (state and tables come from memory, not from the
nearest cache). Dense work is proportional to bit-MACs; the rows kernel pays for looking at its input, for
each vector of outputs, for fetching its table, and for each row it adds.
"""

from __future__ import annotations

from typing import Any

#: Dense: bit-MACs a nanosecond.
DENSE_BIT_MACS = 1050.0
#: Rows: a word of padded input compared and listed; a vector of outputs updated; a byte of table; a row.
WORD, VECTOR, TABLE_BYTE, ROW = 7.0, 200.0, 0.17, 0.85


def rows_limit(step: Any) -> int:
    """Most flips of a frame for which the rows kernel should be the faster; step as the plan lays it out."""
    outputs = int(step["ho"] * step["wo"])
    vectors_a_tile = max(1, int(step["out_words"]) // 8)
    tiles = int(step["ho"]) * -(-int(step["wo"]) // int(step["tile"]))
    window_bits = int(step["kh"] * step["kw"] * step["cin"])
    dense = outputs * int(step["cout"]) * window_bits / DENSE_BIT_MACS
    fixed = (
        WORD * int(step["hp"] * step["wp"] * step["words"])
        + VECTOR * tiles * vectors_a_tile
        + TABLE_BYTE * 8 * int(step["table_size"])
    )
    # A flip lies under kH / sH output rows, and there under the tiles whose columns reach it.
    tile_columns = (int(step["tile"]) - 1) * int(step["sw"]) + int(step["kw"])
    tiles_a_flip = int(step["kh"]) / int(step["sh"]) * tile_columns / int(step["tile"] * step["sw"])
    return max(0, int((dense - fixed) / (ROW * tiles_a_flip * vectors_a_tile)))
