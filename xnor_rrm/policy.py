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
#: Rows: a word of padded input compared and listed; a byte of table; a vector of outputs updated; a row.
WORD, TABLE_BYTE, VECTOR, ROW = 7.0, 0.07, 200.0, 0.85


def rows_limit(step: Any) -> int:
    """Most flips of a frame for which the rows kernel should be the faster; step as the plan lays it out."""
    bit_macs = int(step["ho"] * step["wo"] * step["cout"]) * int(step["kh"] * step["kw"] * step["cin"])
    padded_words, table_bytes = int(step["hp"] * step["wp"] * step["words"]), 8 * int(step["table_size"])
    spare = bit_macs / DENSE_BIT_MACS - WORD * padded_words - TABLE_BYTE * table_bytes
    # A flip lies under kH / sH output rows, and there under the tiles whose columns reach it.
    tile_columns = (int(step["tile"]) - 1) * int(step["sw"]) + int(step["kw"])
    vectors_a_tile = max(1, int(step["out_words"]) // 8)
    rows = int(step["kh"]) / int(step["sh"]) * tile_columns / int(step["tile"] * step["sw"]) * vectors_a_tile
    vectors = int(step["ho"]) * -(-int(step["wo"]) // int(step["tile"])) * vectors_a_tile
    # Each row dirties one more vector, until all are dirty.
    few, many = spare / ((VECTOR + ROW) * rows), (spare - VECTOR * vectors) / (ROW * rows)
    return max(0, int(max(few, many)))
