// The products that tiles of pairs are made of and end in: scores of rows with packed panels, and weights
// times rows.
#pragma once
#include "cloud.inl"

namespace decoct {
namespace DECOCT_ISA {

// tile (+)= points[i0:i1] panels[j0:j1]^T; j0 a multiple of the vectors' width.
template <class T>
static void scores(const T* points, int64_t stride, int64_t dim, const T* panels, T* tile, int64_t i0,
                   int64_t i1, int64_t j0, int64_t j1, bool add = false,
                   int64_t tile_stride = kTileColumns<T>) {
  if (dim == 0 && !add) std::memset(tile, 0, (i1 - i0) * tile_stride * sizeof(T));
  for (int64_t k = 0; k < dim; k += kDepth) {
    const int64_t depth = dim - k < kDepth ? dim - k : kDepth;
    for (int64_t j = j0, end; j < j1; j = end) {
      const int64_t within = j % panel<T>, first = j - within;
      end = first + panel<T> < j1 ? first + panel<T> : j1;
      product<T>(i1 - i0, vectors_for<T>(end - j), depth, points + i0 * stride + k, stride, 1,
                 panels + first * dim + k * panel<T> + within, panel<T>, tile + (j - j0), tile_stride,
                 add || k > 0);
    }
  }
}

// out (count x stride) += A (count x depth) points (depth x dim), A addressed by two strides.
template <class T>
static void add_product(int64_t count, int64_t depth, const T* a, int64_t a_row, int64_t a_step,
                        const T* points, int64_t stride, T* out) {
  // Shared out evenly: one vector of a last panel would not keep the units busy.
  const int64_t vectors = stride / width<T>, panels = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t v = p * vectors / panels, end = (p + 1) * vectors / panels, d = v * width<T>;
    product<T>(count, (int)(end - v), depth, a, a_row, a_step, points + d, stride, out + d, stride, true);
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
