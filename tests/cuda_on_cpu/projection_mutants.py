"""Mutants of random projections."""

from mutant import plain, tsan

FILE, UNIT = "random_projection.cuh", "random_projection"
ROWS = "projections:projection edges 0 highest"
DEEP = "projections:projection deep 0 highest"
TRANSPOSED = "projections:projection edges 0 highest transposed"

MUTANTS = [
    plain(
        "projection: signs of the next counter are those of this one",
        FILE,
        "const int block = begin / kSignsOfCounter;",
        "const int block = 0;",
        UNIT,
        DEEP,
    ),
    plain(
        "projection: every word of a counter is its first",
        FILE,
        "d / 32 % kWordsOfCounter];",
        "0];",
        UNIT,
        ROWS,
    ),
    plain(
        "projection: a tile's columns are the first tile's",
        FILE,
        "make(block % 2, t, block, first + t);",
        "make(block % 2, t, block, t);",
        UNIT,
        ROWS,
    ),
    plain(
        "projection: the stream's upper half is left out",
        FILE,
        "(uint32_t)(v.stream >> 32)};",
        "0u};",
        UNIT,
        ROWS,
    ),
    plain("projection: the factor is left out", FILE, "= v.factor * sum;", "= sum;", UNIT, ROWS),
    plain(
        "projection: transposed steps have the first one's signs",
        FILE,
        "first / kSignsOfCounter, begin + t);",
        "first / kSignsOfCounter, t);",
        UNIT,
        TRANSPOSED,
    ),
    tsan(
        "projection: signs are made where others read",
        FILE,
        "make(begin / kStep % 2, t,",
        "make(0, t,",
        UNIT,
        TRANSPOSED,
    ),
]
