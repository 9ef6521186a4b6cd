// Products with a matrix S of random signs that is nowhere stored:
//   out = factor x S^T, x (N, D), out (N, K)        transposed: out = factor x S, x (N, K), out (N, D)
// The sign of S[j, d] is bit d % 32 of word d / 32 % 4 of Philox at the counter (d / 128, j, stream): it
// depends on neither shapes, threads nor devices.
//
// Operations: 2 N D K for the product, which bounds it from some 16 rows on; 10 rounds of Philox make 128
// signs, in all lanes at once, and a sign becomes a number by a shift, a mask and an or. Bytes: x is read
// once for each 128 columns of out, and out is written once.
//
// A task owns 96 rows by 128 columns of out. It runs along the depth 256 at a time: rows packed, signs made
// as the panels that the product reads, both of which stay in the second-level cache.
#pragma once
#include "../philox.h"
#include "images.inl"
#include "parallel.h"
#include "products.inl"

namespace decoct {
namespace DECOCT_ISA {

typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint64_t Products __attribute__((vector_size(2 * kBytes)));

constexpr int64_t kSigns = 128;  // of one counter, and columns of a task
constexpr int kSignWords = kSigns / 32;

template <class T>
struct ProjectionScratch {
  T *rows, *signs, *sums;
  uint32_t* words;

  explicit ProjectionScratch(Arena& arena) {
    rows = arena.take<T>(kTileHeight * kDepth);
    signs = arena.take<T>(kDepth * kSigns);
    sums = arena.take<T>(kTileHeight * kSigns);
    words = arena.take<uint32_t>(kDepth * kSignWords);
  }
};

template <class T>
static int64_t projection_bytes() {
  Arena arena{nullptr};
  ProjectionScratch<T> scratch(arena);
  return arena.used;
}

// words[q * kDepth + k]: word q of block `block` of row j + k of S, for `count` rows.
DECOCT_INLINE void make_words(const RandomProjectionArguments& a, int64_t block, int64_t j, int64_t count,
                              uint32_t* words) {
  constexpr int lanes = kBytes / 4;
  Words lane;
  for (int l = 0; l < lanes; ++l) lane[l] = (uint32_t)l;
  for (int64_t k = 0; k < count; k += lanes) {
    Words c[4] = {Words{} + (uint32_t)block, lane + (uint32_t)(j + k), Words{} + (uint32_t)a.stream,
                  Words{} + (uint32_t)(a.stream >> 32)};
    philox(c, a.seed, [](uint32_t m, Words w) {
      return __builtin_convertvector(__builtin_convertvector(w, Products) * (uint64_t)m >> 32, Words);
    });
    for (int q = 0; q < kSignWords; ++q) std::memcpy(words + q * kDepth + k, &c[q], sizeof c[q]);
  }
}

// 1 or -1 in each lane, by the highest bit of each.
template <class T>
DECOCT_INLINE vec<T> signed_ones(ivec<T> bits) {
  return (vec<T>)((bits & (ivec<T>)splat(T(-0.))) | (ivec<T>)splat(T(1)));
}

template <class T>
DECOCT_INLINE ivec<T> widened_words(const uint32_t* words) {
  typedef uint32_t Few __attribute__((vector_size(4 * width<T>)));
  Few few;
  std::memcpy(&few, words, sizeof few);
  return __builtin_convertvector(few, ivec<T>);
}

// signs (kDepth, kSigns): S^T from (d, j) on, for the product with rows of x; d a multiple of kSigns.
template <class T>
static void signs_by_columns(const RandomProjectionArguments& a, int64_t j, int64_t d, int64_t depth,
                             const ProjectionScratch<T>& s) {
  constexpr int top = 8 * sizeof(T) - 1;
  for (int64_t begin = 0; begin < depth; begin += kSigns) {
    make_words(a, (d + begin) / kSigns, j, kSigns, s.words);
    const int64_t end = depth - begin < kSigns ? depth - begin : kSigns;
    for (int64_t k = 0; k < end; ++k)
      for (int64_t v = 0; v < kSigns; v += width<T>) {
        const ivec<T> word = widened_words<T>(s.words + k / 32 * kDepth + v);
        store(s.signs + (begin + k) * kSigns + v, signed_ones<T>(word << (int)(top - k % 32)));
      }
  }
}

// signs (kDepth, kSigns): S from (j, d) on, for the transposed product; d a multiple of kSigns.
template <class T>
static void signs_by_rows(const RandomProjectionArguments& a, int64_t j, int64_t d, int64_t depth,
                          const ProjectionScratch<T>& s) {
  constexpr int top = 8 * sizeof(T) - 1;
  ivec<T> lane{};
  using Word = decltype(+lane[0]);  // not a reference, as which bits of the next word would be read
  for (int l = 0; l < width<T>; ++l) lane[l] = l;
  make_words(a, d / kSigns, j, depth, s.words);
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t v = 0; v < kSigns; v += width<T>) {
      const ivec<T> word = ivec<T>{} + (Word)s.words[v / 32 * kDepth + k];
      store(s.signs + k * kSigns + v, signed_ones<T>(word << ((int)(top - v % 32) - lane)));
    }
}

template <class T>
static void run_random_projection(const RandomProjectionArguments& a, const Execution& e) {
  const int64_t rows = a.x.rows, depth = a.x.columns, columns = a.out.columns;
  const int64_t row_blocks = ceil_div(rows, kTileHeight), column_blocks = ceil_div(columns, kSigns);
  const double work = (double)rows * depth * columns;
  const int threads = work < (1 << 20) ? 1 : e.threads;
  for_tasks(row_blocks * column_blocks, threads, [&](int64_t task, int worker) {
    Arena arena{(char*)e.workspace + worker * projection_bytes<T>()};
    const ProjectionScratch<T> s(arena);
    const int64_t i = task / column_blocks * kTileHeight, j = task % column_blocks * kSigns;
    const int64_t count = rows - i < kTileHeight ? rows - i : kTileHeight;
    std::memset(s.sums, 0, count * kSigns * sizeof(T));
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t part = depth - k < kDepth ? depth - k : kDepth;
      for (int64_t r = 0; r < count; ++r)
        copy_numbers(s.rows + r * kDepth,
                     (const char*)a.x.data + ((i + r) * a.x.stride + k) * element_bytes(a.x.dtype), a.x.dtype,
                     part);
      a.transposed ? signs_by_rows(a, k, j, part, s) : signs_by_columns(a, j, k, part, s);
      add_product<T>(count, part, s.rows, kDepth, 1, s.signs, kSigns, s.sums);
    }
    const int64_t kept = columns - j < kSigns ? columns - j : kSigns;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < kept; ++c)
        ((T*)a.out.data)[(i + r) * a.out.stride + j + c] = (T)a.factor * s.sums[r * kSigns + c];
  });
}

}  // namespace DECOCT_ISA
}  // namespace decoct
