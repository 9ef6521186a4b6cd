"""Bugs put into the CUDA kernels one at a time, and which check must catch each."""

from functools import partial
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # of csrc/cuda
    old: str  # found exactly once
    new: str
    units: str  # sources that are compiled again
    cases: str  # a group of kernels_test and, behind a colon, what the names of its cases contain
    check: str  # plain, asan (with undefined behaviour) or tsan


plain, asan, tsan = (partial(Mutant, check=check) for check in ("plain", "asan", "tsan"))

TF32, X3, BF16, DOUBLE = "pairs_tf32", "pairs_tf32x3", "pairs_bfloat16", "pairs_float64"
FUSED_CASES = "fused:fused gaussian D=33 high"
FUSED_SPLIT = "fused:split gaussian D=129 high"
X3_CASES = "fused:fused gaussian D=33 highest"
NARROW = "weights:weights gaussian D=257 high"
NEAR = "weights:weights split gaussian D=20 double"
SMALL = "small:small gaussian D=3 highest"
SMALL_SPLIT = "small:small split gaussian"
HVP = "hvp:hvp gaussian D=20 high given 15"
HVP_DOUBLE = "hvp:hvp gaussian D=20 double"
MATVEC = "matvec:matvec laplacian D=40 high columns 3"
SUMS, BANDWIDTH = "rows:D=3 sums", "rows:D=19 bandwidth"

BARRIERS = [
    tsan(
        "score: no barrier before a stage is overwritten",
        "score.cuh",
        "    wait_copies<kStages - 2>();\n    sync_block();\n",
        "    wait_copies<kStages - 2>();\n",
        TF32,
        NARROW,
    ),
    tsan(
        "fused: no barrier in the main loop",
        "fused.cuh",
        "    sync_block();\n    if (first + Tile::kColumns",
        "    if (first + Tile::kColumns",
        TF32,
        FUSED_CASES,
    ),
    tsan(
        "fused: no barrier between the warps that share rows",
        "fused.cuh",
        "    }\n    sync_block();\n  }\n  for (int at",
        "    }\n  }\n  for (int at",
        TF32,
        FUSED_CASES,
    ),
    tsan(
        "fused: no barrier after the slab is zeroed",
        "fused.cuh",
        "        touched = true;\n        sync_block();\n",
        "        touched = true;\n",
        TF32,
        FUSED_CASES,
    ),
    tsan(
        "product: no barrier before a stage is overwritten",
        "product.cuh",
        "    wait_copies<kStages - 2>();\n    sync_block();\n",
        "    wait_copies<kStages - 2>();\n",
        TF32,
        NARROW,
    ),
    tsan(
        "hvp: no barrier before a stage is overwritten",
        "hvp.cuh",
        "    wait_copies<0>();\n    sync_block();\n    if (at + 1",
        "    wait_copies<0>();\n    if (at + 1",
        TF32,
        HVP,
    ),
    tsan(
        "small: no barrier between the warps' sums",
        "small.cuh",
        "already\n      }\n    sync_block();\n",
        "already\n      }\n",
        "small",
        SMALL,
    ),
    tsan(
        "rows: no barrier before norms are added up",
        "rows.cuh",
        "  sync_block();\n  for (int r = 0; r < rows; ++r) {",
        "  for (int r = 0; r < rows; ++r) {",
        "rows",
        BANDWIDTH,
    ),
    tsan(
        "collect_rows: no barrier after the last sum",
        "pairs.cuh",
        "    shared[at] = total;\n  }\n  sync_block();\n",
        "    shared[at] = total;\n  }\n",
        TF32,
        FUSED_CASES,
    ),
    tsan(
        "block_sum: no barrier before the warps' sums are read",
        "reduce.cuh",
        "shared[warp_index()] = value;\n  sync_block();\n",
        "shared[warp_index()] = value;\n",
        "rows",
        BANDWIDTH,
    ),
    tsan(
        "last_to_arrive: no barrier before the ticket is read",
        "reduce.cuh",
        "atomic_add(ticket, 1);\n  sync_block();\n",
        "atomic_add(ticket, 1);\n",
        "rows",
        SUMS,
    ),
    plain(
        "score: a barrier for some threads only",
        "score.cuh",
        "if (sync_block_any(near))",
        "if (near && sync_block_any(near))",
        TF32,
        NARROW,
    ),
    tsan(
        "near pairs: no sync_warp before they are unmarked",
        "near.cuh",
        "      sync_warp();\n      if (lane_index() == 0) {\n        *bits = 0;",
        "      if (lane_index() == 0) {\n        *bits = 0;",
        TF32,
        FUSED_CASES,
    ),
]

WAITS = [
    plain(
        "score: waits for a step too few",
        "score.cuh",
        "wait_copies<kStages - 2>",
        "wait_copies<kStages - 1>",
        TF32,
        NARROW,
    ),
    plain(
        "product: waits for a step too few",
        "product.cuh",
        "wait_copies<kStages - 2>",
        "wait_copies<kStages - 1>",
        TF32,
        NARROW,
    ),
    plain(
        "fused: waits for a tile too few",
        "fused.cuh",
        "    wait_copies<0>();\n    sync_block();\n    if",
        "    wait_copies<1>();\n    sync_block();\n    if",
        TF32,
        FUSED_CASES,
    ),
    plain("small: no wait", "small.cuh", "    wait_copies<0>();\n", "", "small", SMALL),
]

BOUNDS = [
    plain(
        "fragments: rows of a tile one too far",
        "arithmetic.cuh",
        "tile + (m * 16 + lane % 16) * stride",
        "tile + (m * 16 + lane % 16 + 1) * stride",
        TF32,
        FUSED_CASES,
    ),
    asan(
        "collect_rows: shared index one too far",
        "pairs.cuh",
        "row + m * 16 + h * 8 + g;\n      shared[at] = k;",
        "row + m * 16 + h * 8 + g + 1;\n      shared[at] = k;",
        TF32,
        NARROW,
    ),
    asan(
        "fused: takes one number too few for near sums",
        "fused.cuh",
        "shared.take<double>(Tile::kRows)",
        "shared.take<double>(Tile::kRows - 1)",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "small: launched with less shared memory than it takes",
        "small.cuh",
        "2 * kWarps * kSmallRows * 8 + kWarps",
        "kWarps * kSmallRows * 8 + kWarps",
        "small",
        SMALL,
    ),
    asan(
        "finish: a result one row too far",
        "finish.cuh",
        "weights[row * out.weight_stride] = (T)k",
        "weights[(row + 1) * out.weight_stride] = (T)k",
        "rows",
        SMALL,
    ),
    asan(
        "rows: a weight one row too far",
        "rows.cuh",
        "side.source_weights[i * side.weight_stride]",
        "side.source_weights[(i + 1) * side.weight_stride]",
        "rows",
        SMALL,
    ),
    asan(
        "rows: four elements at the end of a row",
        "problem.cuh",
        "!s.quads || column + 4 > dim",
        "!s.quads",
        "rows",
        BANDWIDTH,
    ),
    asan(
        "rows: vectors longer than they are",
        "rows.cuh",
        "e < columns ? rounded",
        "e <= columns ? rounded",
        "rows",
        MATVEC,
    ),
    asan(
        "segment sums: one row more",
        "rows.cuh",
        "int i = chunk.row_begin; i < chunk.row_end;",
        "int i = chunk.row_begin; i <= chunk.row_end;",
        "rows",
        SUMS,
    ),
]

GUARDS = [
    plain(
        "tiles: one row more",
        "tile.cuh",
        "inside && row + r < rows",
        "inside && row + r <= rows",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "tiles: columns past the end of a row",
        "tile.cuh",
        "const bool inside = column + d < columns;",
        "const bool inside = true;",
        TF32,
        NARROW,
    ),
    plain(
        "weights: one column more",
        "weigh.cuh",
        "inside = at < q.column_end - j;",
        "inside = at <= q.column_end - j;",
        TF32,
        FUSED_SPLIT,
    ),
    plain(
        "small: one column more",
        "small.cuh",
        "first + j < q.column_end ?",
        "first + j <= q.column_end ?",
        "small",
        SMALL_SPLIT,
    ),
    tsan(
        "product: rows that are not there",
        "product.cuh",
        "if (i >= rows || d >= columns) continue;",
        "if (d >= columns) continue;",
        TF32,
        NARROW,
    ),
    plain(
        "finish: the last slab left out",
        "finish.cuh",
        "split < slabs; ++split)\n",
        "split + 1 < slabs; ++split)\n",
        "rows",
        SMALL_SPLIT,
    ),
]

BLOCKS = [
    tsan(
        "values: blocks add to one number without atomics",
        "pairs.cuh",
        "p.partials[task.value] = q.coefficient * value;",
        "p.partials[p.segments[task.segment].first_value] += q.coefficient * value;",
        "small",
        SMALL,
    ),
    tsan(
        "last_to_arrive: the ticket is no atomic",
        "reduce.cuh",
        "atomic_add(ticket, 1)",
        "(*ticket)++",
        "rows",
        SUMS,
    ),
    tsan(
        "last_to_arrive: no fence before the ticket",
        "reduce.cuh",
        "int* shared) {\n  fence();\n",
        "int* shared) {\n",
        "rows",
        SUMS,
    ),
    plain(
        "last_to_arrive: nobody is the last",
        "reduce.cuh",
        "*shared == blocks - 1",
        "*shared == blocks",
        "rows",
        SUMS,
    ),
]

ARITHMETIC = [
    plain(
        "fragments: halves of the left operand swapped",
        "arithmetic.cuh",
        "stride + k + lane / 16 * kPiece<P>);",
        "stride + k + (1 - lane / 16) * kPiece<P>);",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "fragments: words of the right operand swapped",
        "arithmetic.cuh",
        "b[n][0] = words[0];\n    b[n][1] = words[1];",
        "b[n][0] = words[1];\n    b[n][1] = words[0];",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "fragments: weights swapped",
        "arithmetic.cuh",
        "left[m][1] = as_bits(weights[m][k][2]);\n          left[m][2] = as_bits(weights[m][k][1]);",
        "left[m][1] = as_bits(weights[m][k][1]);\n          left[m][2] = as_bits(weights[m][k][2]);",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "fragments: bfloat16 pairs of weights swapped",
        "arithmetic.cuh",
        "pack_bfloat16(w[0], w[1])",
        "pack_bfloat16(w[1], w[0])",
        BF16,
        "fused:fused gaussian D=33 medium",
    ),
    plain(
        "fragments: bfloat16 columns read the first half of k twice",
        "arithmetic.cuh",
        "tile + lane % 16 * stride",
        "tile + lane % 8 * stride",
        BF16,
        "fused:fused gaussian D=33 medium",
    ),
    plain(
        "3xTF32: no big times small",
        "arithmetic.cuh",
        "    multiply_tf32(sums, a, b_small);\n",
        "",
        X3,
        X3_CASES,
    ),
    plain(
        "3xTF32: no small times big",
        "arithmetic.cuh",
        "    multiply_tf32(sums, a_small, b);\n",
        "",
        X3,
        X3_CASES,
    ),
    plain(
        "3xTF32: the small part is the number",
        "arithmetic.cuh",
        "small = as_bits(value - as_float(big));",
        "small = as_bits(value);",
        X3,
        X3_CASES,
    ),
    plain(
        "bandwidth: divided by the number of rows",
        "rows.cuh",
        "(norms - squares / count) / (count - 1)",
        "(norms - squares / count) / count",
        "rows",
        BANDWIDTH,
    ),
]

PAIRS = [
    plain(
        "pairs of a point and itself stay in the tile",
        "near.cuh",
        "s[m][n][e] = far;",
        "(void)far;",
        X3,
        "fused:fused alike",
    ),
    plain(
        "pairs of a point and itself are left out",
        "pairs.cuh",
        "near_sums[row] = met ?",
        "near_sums[row] = met && false ?",
        X3,
        "fused:fused laplacian D=33 highest",
    ),
    plain(
        "pairs of a point and itself are marked",
        "near.cuh",
        "if (q.same && q.row_begin + i == first + j) continue;",
        "",
        X3,
        "fused:fused laplacian D=33 highest",
    ),
    plain(
        "near pairs are not marked",
        "near.cuh",
        "      atomic_or(q.near_bits",
        "      if (false) atomic_or(q.near_bits",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "near pairs stay in the tile",
        "weigh.cuh",
        "            if (close) counted.v[v] = 0;\n",
        "",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "near pairs are not unmarked",
        "near.cuh",
        "        *bits = 0;\n",
        "",
        DOUBLE,
        NEAR,
    ),
    plain(
        "near pairs: the slab is not zeroed",
        "fused.cuh",
        "          q.slab[at] = 0;\n",
        "          ;\n",
        TF32,
        FUSED_CASES,
    ),
    plain(
        "near pairs: the slab is overwritten",
        "fused.cuh",
        "(touched ? q.slab[at] : 0)",
        "(touched ? 0 : 0)",
        X3,
        X3_CASES,
    ),
    plain(
        "near pairs are missing in products with weights",
        "product.cuh",
        "if (tiles == 0) continue;",
        "continue;",
        DOUBLE,
        NEAR,
    ),
    plain(
        "near pairs: their marks are not kept for the product",
        "near.cuh",
        "if (kept) kept[row * kNearWords + word] = left;",
        "if (kept) kept[row * kNearWords + word] = 0;",
        DOUBLE,
        NEAR,
    ),
    plain(
        "near pairs are missing in products with vectors",
        "score.cuh",
        "if (q.kernel) tile_weights[row",
        "if (false) tile_weights[row",
        TF32,
        MATVEC,
    ),
    plain(
        "hvp: no base weights",
        "hvp.cuh",
        "if (p.moving) store_weights",
        "if (false) store_weights",
        TF32,
        HVP,
    ),
    plain(
        "hvp: no product of the rows' tangents",
        "hvp.cuh",
        "      A::multiply_rows(change, x + tangents, pitch, y, pitch, kStep<Point>);\n",
        "",
        TF32,
        HVP,
    ),
    plain(
        "hvp: base weights of the other sign",
        "hvp.cuh",
        "jet.k1 * (q.scale * q.constants->turning)",
        "jet.k1 * -(q.scale * q.constants->turning)",
        DOUBLE,
        HVP_DOUBLE,
    ),
]

MUTANTS = BARRIERS + WAITS + BOUNDS + GUARDS + BLOCKS + ARITHMETIC + PAIRS
