"""Mutants of norms and inner products of per-sample gradients."""

from mutant import asan, plain, tsan

SQUARES, GRAM = "image_squares.cuh", "image_gram.cuh"
PLAIN, LINEAR, FEW = (f"samples:samples {name} 0 highest" for name in ("plain", "linear", "few"))
GROUPS = "samples:samples groups 0 highest"

MUTANTS = [
    plain(
        "samples: norms of all outputs but a tile's last ones",
        SQUARES,
        "n < Tile::kN; ++n",
        "n < Tile::kN - 1; ++n",
        "image_squares",
        PLAIN,
    ),
    plain(
        "samples: norms are those of the first tile",
        SQUARES,
        "tile < tiles; ++tile",
        "tile < 1; ++tile",
        "image_squares",
        GROUPS,
    ),
    plain(
        "samples: every norm is the first image's",
        SQUARES,
        "image * tiles + tile].weight",
        "tile].weight",
        "image_squares",
        PLAIN,
    ),
    plain(
        "samples: gradients of one position count twice",
        SQUARES,
        "total += d * a;",
        "total += 2 * d * a;",
        "image_squares",
        LINEAR,
    ),
    plain(
        "samples: patches of one position run over the image's edge",
        SQUARES,
        "if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;",
        "if (y >= p.height || x >= p.width) continue;",
        "image_squares",
        "samples:samples corner 0 highest",
    ),
    plain(
        "samples: inner products without the bias",
        GRAM,
        "const T one = p.bias ? T(1) : T(0);",
        "const T one = T(0);",
        "image_gram",
        FEW,
    ),
    plain(
        "samples: inner products of one position count twice",
        GRAM,
        "total[m][n][e] += (patches",
        "total[m][n][e] = T(2) * (patches",
        "image_gram",
        FEW,
    ),
    plain(
        "samples: the half below the diagonal is left out",
        GRAM,
        "if (p.self && j > i) p.gram",
        "if (p.self && j < i) p.gram",
        "image_gram",
        FEW,
    ),
    plain(
        "samples: parts of a row's products are left out",
        GRAM,
        "split < splits; ++split",
        "split < splits - 1; ++split",
        "image_gram",
        PLAIN,
    ),
    plain(
        "samples: biases do not go with the tiles",
        GRAM,
        "A::point(A::weight((T)of_thread));",
        "A::point(A::weight((T)0));",
        "image_gram",
        PLAIN,
    ),
    asan(
        "samples: rows beyond the last image are read",
        GRAM,
        "places[k] >= 0 && first + row < images;",
        "places[k] >= 0;",
        "image_gram",
        FEW,
    ),
    asan(
        "samples: inner products beyond the last one are written",
        GRAM,
        "if (row + i < p.n && column + j < p.m) use",
        "if (row + i < p.n) use",
        "image_gram",
        FEW,
    ),
    tsan(
        "samples: no barrier before places of numbers are read",
        GRAM,
        "    sync_block();\n    load_numbers<A, Tile::kRows>",
        "    load_numbers<A, Tile::kRows>",
        "image_gram",
        FEW,
    ),
    tsan(
        "samples: no barrier before a step's products",
        GRAM,
        "    sync_block();\n    // Numbers of the next step",
        "    // Numbers of the next step",
        "image_gram",
        FEW,
    ),
]
