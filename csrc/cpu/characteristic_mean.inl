// Weighted means of cos t_ij and sin t_ij over the rows i of every segment, t_ij = <x_i, f_j>, and
// derivatives.
//
//   value    cosine_sj = sum_i w_i cos t_ij                sine_sj = sum_i w_i sin t_ij
//   grad     with bars C and S, p = S cos t - C sin t, q = C cos t + S sin t and P = w p:
//            d x_i = sum_j P_ij f_j      d f_j = sum_i P_ij x_i      d w_i = sum_j q_ij
//   second   with tangents u, v, h of x, f, w, tau_ij = <u_i, f_j> + <x_i, v_j> and G = h p - w q tau:
//            d C_sj = sum_i h_i cos t - w_i tau sin t      d S_sj = sum_i h_i sin t + w_i tau cos t
//            d x_i = sum_j G_ij f_j + P_ij v_j             d f_j = sum_i G_ij x_i + P_ij u_i
//            d w_i = sum_j p_ij tau_ij
//
// x (N, D), f (F, D). Each sum of products is one matrix product of 2 N F D operations: value 1; grad 1, and
// 1 for each of x and f; second 1, 1 for each tangent, and up to 2 for each of x and f. Beside them a sine
// and a cosine of each pair, some 40 instructions a vector. Bytes: of x and f what the products' panels and
// strips take from cache; each is copied at most once for every way in which a product reads it.
//
// Where the caller keeps the products t of a value, grad does not compute them again.
//
// A panel of 576 rows by 960 frequencies is worked on at a time, in three steps that tasks share out: tiles
// of scores, in which sine and cosine are taken, weights left in place of the scores and sums over rows and
// columns formed; the products of the weights with the rows and with the frequencies, of which a task owns
// rows and columns of the result; and the sums of the tiles' sums. So no two tasks add into the same memory,
// all orders are fixed by shapes alone, and of all pairs only one panel (2 MiB in float) is ever in memory.
#pragma once
#include "images.inl"
#include "parallel.h"
#include "products.inl"
#include "trigonometry.h"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kPanelRows = 6 * kTileHeight, kPanelColumns = 960;
constexpr int64_t kPanelPitch = kPanelColumns + 16;   // not a multiple of 2 KiB
constexpr int64_t kProductColumns = 192;              // of a task of the second step
constexpr int64_t kParallelPairs = int64_t{1} << 15;  // times D
constexpr int64_t kWholeBytes = 16 << 20;             // of x that is copied as a whole

DECOCT_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Rows of a matrix, or a result; stride in elements of T.
template <class T>
struct Points {
  T* data;
  int64_t stride;
};

// Rows as products with weights read them: strips of one panel's columns, zero past D, each with all of the
// rows one after the other. Long rows themselves would be a new page for every vector.
template <class T>
struct Strips {
  T* data;
  int64_t rows;

  T* at(int64_t row, int64_t d) const { return data + (d / panel<T> * rows + row) * panel<T>; }
};

template <class T>
struct CharacteristicLayout {
  int64_t stride;   // of rows that are copied
  Points<T> x, f;   // copies
  bool x_is_whole;  // all of x is copied, once
  Strips<T> x_strips, f_strips, x_tangents, f_tangents;
  T *panels, *tangent_panels;    // of the frequencies, for scores
  Points<T> x_sums, f_sums;      // of a result that is no place to add whole vectors to
  T *weights, *tangent_weights;  // P or G, and with tangents P
  double *sums, *tile_sums;  // over rows: (segments, 2, columns); (tiles, first or last segment, 2, columns)
  double *row_sums, *tile_row_sums;  // over columns: (N); (tile columns, rows)

  CharacteristicLayout(const CharacteristicArguments& a, Arena& arena) {
    stride = round_up(a.dim(), width<T>);
    if (fights(stride)) stride += width<T>;
    const int64_t rows = least(a.rows(), kPanelRows), columns = least(a.columns(), kPanelColumns);
    const bool second = a.op == CharacteristicOp::second, scored = !known(a);
    const auto points = [&](bool wanted, int64_t count) {
      return Points<T>{wanted ? arena.take<T>(count * stride) : nullptr, stride};
    };
    const auto strips = [&](bool wanted, int64_t count) {
      return Strips<T>{wanted ? arena.take<T>(count * round_up(a.dim(), panel<T>)) : nullptr, count};
    };
    const int64_t panels_size = round_up(columns, panel<T>) * a.dim();
    x_is_whole = a.rows() * stride * (int64_t)sizeof(T) <= kWholeBytes;
    x = points(scored, x_is_whole ? a.rows() : rows);
    f = points(scored && !is_of<T>(a.frequencies.dtype), columns);
    panels = scored ? arena.take<T>(panels_size) : nullptr;
    x_strips = strips(a.out_frequencies.data, rows);
    f_strips = strips(a.out_x.data, columns);
    x_tangents = strips(a.tangent_x.data && a.out_frequencies.data, rows);
    f_tangents = strips(a.tangent_frequencies.data && a.out_x.data, columns);
    tangent_panels = a.tangent_frequencies.data ? arena.take<T>(panels_size) : nullptr;
    x_sums = points(a.out_x.data && !direct(a.out_x), a.rows());
    f_sums = points(a.out_frequencies.data && !direct(a.out_frequencies), columns);
    weights = arena.take<T>(kPanelRows * kPanelPitch);
    tangent_weights = second ? arena.take<T>(kPanelRows * kPanelPitch) : nullptr;
    const bool over_rows = a.cosine.data || a.sine.data;
    sums = over_rows ? arena.take<double>(a.segments * 2 * kPanelColumns) : nullptr;
    tile_sums = over_rows ? arena.take<double>(kPanelRows / kTileHeight * 4 * kPanelColumns) : nullptr;
    row_sums = a.out_weights.data ? arena.take<double>(a.rows()) : nullptr;
    tile_row_sums =
        a.out_weights.data ? arena.take<double>(kPanelColumns / kTileColumns<T> * kPanelRows) : nullptr;
  }

  // Whether the products are the caller's.
  static bool known(const CharacteristicArguments& a) {
    return a.products.data && a.op == CharacteristicOp::grad;
  }

  // Whether rows this far apart want the same lines of a cache.
  static bool fights(int64_t row_stride) { return row_stride * (int64_t)sizeof(T) % 2048 == 0; }

  // Whether whole vectors may be added to where the caller wants the result.
  static bool direct(const Matrix& out) {
    return out.columns % width<T> == 0 && (out.rows <= 1 || out.stride == out.columns);
  }
};

template <class T>
static int64_t characteristic_bytes(const CharacteristicArguments& a) {
  Arena arena{nullptr};
  CharacteristicLayout<T>(a, arena);
  return arena.used;
}

template <class T>
class Characteristic {
 public:
  Characteristic(const CharacteristicArguments& arguments, const Execution& e)
      : a_(arguments), arena_{(char*)e.workspace}, s_(arguments, arena_) {
    const double work = (double)a_.rows() * a_.columns() * (a_.dim() + 32);
    threads_ = work < kParallelPairs * 32. ? 1 : e.threads;
    x_out_ = target(a_.out_x, s_.x_sums);
    second_ = a_.op == CharacteristicOp::second;
    known_ = CharacteristicLayout<T>::known(a_);
    copies_x_ = !known_ && (!is_of<T>(a_.x.dtype) || CharacteristicLayout<T>::fights(a_.x.stride));
  }

  void run() {
    if (x_out_.data) clear(x_out_, a_.rows());
    if (s_.row_sums) std::memset(s_.row_sums, 0, a_.rows() * sizeof(double));
    if (s_.x_is_whole) copy_x(0, a_.rows());
    for (j_ = 0; j_ < a_.columns(); j_ += kPanelColumns) {
      columns_ = least(a_.columns() - j_, kPanelColumns);
      begin_columns();
      for (i_ = 0; i_ < a_.rows(); i_ += kPanelRows) {
        rows_ = least(a_.rows() - i_, kPanelRows);
        run_panel();
      }
      end_columns();
    }
    if (s_.x_sums.data) copy_out(s_.x_sums, a_.out_x, 0, a_.rows());
    if (s_.row_sums)
      for (int64_t i = 0; i < a_.rows(); ++i)
        ((T*)a_.out_weights.data)[i * a_.out_weights.stride] = (T)s_.row_sums[i];
  }

 private:
  static constexpr int64_t kColumns = kTileColumns<T>;

  // ---- what goes into a panel, and what becomes of its columns

  Points<T> target(const Matrix& out, const Points<T>& sums) const {
    if (!out.data) return {nullptr, 0};
    return sums.data ? sums : Points<T>{(T*)out.data, out.columns};
  }

  void clear(const Points<T>& points, int64_t rows) const {
    for_tasks(ceil_div(rows, kTileHeight), threads_, [=](int64_t part, int) {
      const int64_t first = part * kTileHeight, count = least(rows - first, kTileHeight);
      std::memset(points.data + first * points.stride, 0, count * points.stride * sizeof(T));
    });
  }

  void copy_out(const Points<T>& sums, const Matrix& out, int64_t first, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy((T*)out.data + (first + i) * out.stride, sums.data + i * sums.stride,
                  out.columns * sizeof(T));
  }

  // Rows [first, first + count) of the source.
  static void pack(const Matrix& source, int64_t first, int64_t count, const Points<T>& to, int64_t at) {
    for (int64_t i = 0; i < count; ++i)
      copy_numbers(to.data + (at + i) * to.stride, row_of(source, first + i), source.dtype, source.columns);
  }

  static void pack(const Matrix& source, int64_t first, int64_t count, const Strips<T>& to, int64_t at) {
    const int64_t bytes = element_bytes(source.dtype);
    for (int64_t i = 0; to.data && i < count; ++i)
      for (int64_t d = 0; d < source.columns; d += panel<T>) {
        const int64_t columns = least(source.columns - d, panel<T>);
        T* out = to.at(at + i, d);
        copy_numbers(out, row_of(source, first + i) + d * bytes, source.dtype, columns);
        std::memset(out + columns, 0, (panel<T> - columns) * sizeof(T));
      }
  }

  static const char* row_of(const Matrix& m, int64_t row) {
    return (const char*)m.data + row * m.stride * element_bytes(m.dtype);
  }

  // Rows of the caller's from the first one on.
  static Points<const T> rows_of(const Matrix& m, int64_t first) {
    return {(const T*)row_of(m, first), m.stride};
  }

  // Rows [first, first + count) of x into its copy, where the caller's are no good as they are.
  void copy_x(int64_t first, int64_t count) const {
    if (!copies_x_) return;
    for_tasks(ceil_div(count, kTileHeight), threads_, [=](int64_t part, int) {
      const int64_t at = part * kTileHeight;
      pack(a_.x, first + at, least(count - at, kTileHeight), s_.x, at);
    });
  }

  // The panel's rows of x for scores.
  Points<const T> x_rows() const {
    if (!copies_x_) return rows_of(a_.x, i_);
    return {s_.x.data + (s_.x_is_whole ? i_ * s_.x.stride : 0), s_.x.stride};
  }

  void begin_columns() {
    f_out_ = target(a_.out_frequencies, s_.f_sums);
    if (a_.out_frequencies.data && !s_.f_sums.data) f_out_.data += j_ * f_out_.stride;
    if (f_out_.data) clear(f_out_, columns_);
    if (s_.sums) std::memset(s_.sums, 0, a_.segments * 2 * kPanelColumns * sizeof(double));
    for_tasks(ceil_div(columns_, panel<T>), threads_, [this](int64_t part, int) {
      const int64_t first = part * panel<T>, count = least(columns_ - first, panel<T>);
      pack(a_.frequencies, j_ + first, count, s_.f_strips, first);
      pack(a_.tangent_frequencies, j_ + first, count, s_.f_tangents, first);
      Points<const T> rows = rows_of(a_.frequencies, j_);
      if (s_.f.data) {
        pack(a_.frequencies, j_ + first, count, s_.f, first);
        rows = {s_.f.data, s_.f.stride};
      }
      if (s_.panels) pack_panels(rows.data, rows.stride, columns_, a_.dim(), s_.panels, part, part + 1);
      if (!s_.tangent_panels) return;
      rows = rows_of(a_.tangent_frequencies, j_);
      pack_panels(rows.data, rows.stride, columns_, a_.dim(), s_.tangent_panels, part, part + 1);
    });
  }

  void end_columns() {
    if (s_.f_sums.data) copy_out(s_.f_sums, a_.out_frequencies, j_, columns_);
    if (!s_.sums) return;
    for (int64_t s = 0; s < a_.segments; ++s)
      for (int part = 0; part < 2; ++part) {
        const Matrix& out = part ? a_.sine : a_.cosine;
        const double* sums = s_.sums + (2 * s + part) * kPanelColumns;
        for (int64_t j = 0; j < columns_; ++j) ((T*)out.data)[s * out.stride + j_ + j] = (T)sums[j];
      }
  }

  // ---- a panel

  void run_panel() {
    const int64_t tile_rows = ceil_div(rows_, kTileHeight), tile_columns = ceil_div(columns_, kColumns);
    if (!s_.x_is_whole) copy_x(i_, rows_);
    const auto pack_strips = [this](int64_t r, int) {
      const int64_t first = r * kTileHeight, count = least(rows_ - first, kTileHeight);
      pack(a_.x, i_ + first, count, s_.x_strips, first);
      pack(a_.tangent_x, i_ + first, count, s_.x_tangents, first);
    };
    if (s_.x_strips.data) for_tasks(tile_rows, threads_, pack_strips);
    for_tasks(tile_rows * tile_columns, threads_,
              [=](int64_t task, int) { run_tile(task / tile_columns, task % tile_columns); });
    const int64_t chunks = ceil_div(a_.dim(), kProductColumns);
    const int64_t of_x = x_out_.data ? tile_rows * chunks : 0;
    const int64_t of_f = f_out_.data ? ceil_div(columns_, kTileHeight) * chunks : 0;
    for_tasks(of_x + of_f, threads_, [=](int64_t task, int) {
      if (task < of_x)
        add_to_rows(task / chunks * kTileHeight, task % chunks * kProductColumns);
      else
        add_to_columns((task - of_x) / chunks * kTileHeight, (task - of_x) % chunks * kProductColumns);
    });
    if (s_.sums) add_tile_sums(tile_rows);
    if (s_.row_sums)
      for (int64_t c = 0; c < tile_columns; ++c)
        for (int64_t i = 0; i < rows_; ++i) s_.row_sums[i_ + i] += s_.tile_row_sums[c * kPanelRows + i];
  }

  // The segment of a row: the last one that begins there or before.
  int64_t segment_of(int64_t row) const {
    int64_t low = 0, high = a_.segments;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (a_.offsets[middle] <= row ? low : high) = middle;
    }
    return low;
  }

  // use(segment, begin, end) for the pieces of segments among rows [begin, end) of x.
  template <class Use>
  void over_pieces(int64_t begin, int64_t end, Use use) const {
    for (int64_t s = segment_of(begin), i = begin; i < end; ++s) {
      const int64_t stop = least(a_.offsets[s + 1], end);
      if (stop > i) use(s, i, stop);
      i = stop;
    }
  }

  void run_tile(int64_t r, int64_t c) const {
    const int64_t i0 = r * kTileHeight, i1 = least(i0 + kTileHeight, rows_);
    const int64_t j0 = c * kColumns, j1 = least(j0 + kColumns, columns_);
    T* t = s_.weights + i0 * kPanelPitch + j0;
    const Points<const T> x = x_rows();
    if (known_)
      copy_products(t, i0, i1, j0, j1);
    else
      scores(x.data, x.stride, a_.dim(), s_.panels, t, i0, i1, j0, j1, false, kPanelPitch);
    if (a_.products.data && !known_) keep_products(t, i0, i1, j0, j1);
    if (second_) {
      T* tau = s_.tangent_weights + i0 * kPanelPitch + j0;
      const int64_t bytes = round_up(j1 - j0, width<T>) * sizeof(T);
      for (int64_t i = 0; i < i1 - i0; ++i) std::memset(tau + i * kPanelPitch, 0, bytes);
      const Points<const T> along = rows_of(a_.tangent_x, i_);
      if (a_.tangent_x.data)
        scores(along.data, along.stride, a_.dim(), s_.panels, tau, i0, i1, j0, j1, true, kPanelPitch);
      if (s_.tangent_panels)
        scores(x.data, x.stride, a_.dim(), s_.tangent_panels, tau, i0, i1, j0, j1, true, kPanelPitch);
    }
    over_pieces(i_ + i0, i_ + i1, [&](int64_t s, int64_t begin, int64_t end) {
      Piece piece{};
      piece.segment = s;
      piece.begin = begin - i_;
      piece.end = end - i_;
      piece.j0 = j0;
      piece.j1 = j1;
      // The pieces in the middle are whole segments, the others may have parts in other tiles.
      if (s_.sums && (begin == i_ + i0 || end == i_ + i1))
        piece.sums = tile_sums(r, begin != i_ + i0) + j0;
      else if (s_.sums)
        piece.sums = s_.sums + s * 2 * kPanelColumns + j0;
      if (s_.row_sums) piece.row_sums = s_.tile_row_sums + c * kPanelRows;
      run_piece(piece);
    });
  }

  T* products_at(int64_t i, int64_t j) const {
    return (T*)a_.products.data + (i_ + i) * a_.columns() + j_ + j;
  }

  void keep_products(const T* t, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    for (int64_t i = i0; i < i1; ++i)
      std::memcpy(products_at(i, j0), t + (i - i0) * kPanelPitch, (j1 - j0) * sizeof(T));
  }

  void copy_products(T* t, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const int64_t padding = round_up(j1 - j0, width<T>) - (j1 - j0);
    for (int64_t i = i0; i < i1; ++i, t += kPanelPitch) {
      std::memcpy(t, products_at(i, j0), (j1 - j0) * sizeof(T));
      std::memset(t + (j1 - j0), 0, padding * sizeof(T));
    }
  }

  double* tile_sums(int64_t tile, bool last) const {
    return s_.tile_sums + (2 * tile + last) * 2 * kPanelColumns;
  }

  void add_tile_sums(int64_t tiles) const {
    for (int64_t r = 0; r < tiles; ++r) {
      const int64_t i0 = i_ + r * kTileHeight, i1 = least(i0 + kTileHeight, i_ + rows_);
      over_pieces(i0, i1, [&](int64_t s, int64_t begin, int64_t end) {
        if (begin != i0 && end != i1) return;
        const double* from = tile_sums(r, begin != i0);
        double* to = s_.sums + s * 2 * kPanelColumns;
        for (int part = 0; part < 2; ++part)
          for (int64_t j = 0; j < columns_; ++j)
            to[part * kPanelColumns + j] += from[part * kPanelColumns + j];
      });
    }
  }

  // ---- sine and cosine of a piece of a tile

  struct Piece {
    int64_t segment, begin, end, j0, j1;  // rows and columns within the panel
    double *sums, *row_sums;              // over its rows, at j0; over its columns, of the tile
  };

  void run_piece(const Piece& p) const {
    switch (a_.op) {
      case CharacteristicOp::value:
        return run_piece_as<CharacteristicOp::value>(p);
      case CharacteristicOp::grad:
        return run_piece_as<CharacteristicOp::grad>(p);
      default:
        return run_piece_as<CharacteristicOp::second>(p);
    }
  }

  void copy_bar(const Matrix& bar, const Piece& p, T* to) const {
    std::memset(to, 0, kColumns * sizeof(T));
    if (bar.data)
      std::memcpy(to, (const T*)bar.data + p.segment * bar.stride + j_ + p.j0, (p.j1 - p.j0) * sizeof(T));
  }

  static T number(const Matrix& m, int64_t i) { return m.data ? ((const T*)m.data)[i * m.stride] : T(0); }

  template <CharacteristicOp Kind>
  void run_piece_as(const Piece& p) const {
    constexpr bool value = Kind == CharacteristicOp::value, second = Kind == CharacteristicOp::second;
    T sums[2][kColumns] = {}, bars[2][kColumns];
    if constexpr (!value) {
      copy_bar(a_.bar_cosine, p, bars[0]);
      copy_bar(a_.bar_sine, p, bars[1]);
    }
    for (int64_t i = p.begin; i < p.end; ++i) {
      T* row = s_.weights + i * kPanelPitch + p.j0;
      T* tangents = second ? s_.tangent_weights + i * kPanelPitch + p.j0 : nullptr;
      const vec<T> w = splat(number(a_.weights, i_ + i));
      const vec<T> h = splat(second ? number(a_.tangent_weights, i_ + i) : T(0));
      vec<T> total = {};
      for (int64_t j = 0; j < p.j1 - p.j0; j += width<T>) {
        const SineCosine<T> at = sine_cosine<T>(load(row + j));
        if constexpr (value) {
          store(sums[0] + j, load(sums[0] + j) + w * at.cosine);
          store(sums[1] + j, load(sums[1] + j) + w * at.sine);
          continue;
        }
        const vec<T> by_cosine = load(bars[0] + j), by_sine = load(bars[1] + j);
        const vec<T> slope = by_sine * at.cosine - by_cosine * at.sine;
        const vec<T> level = by_cosine * at.cosine + by_sine * at.sine;
        if constexpr (!second) {
          store(row + j, w * slope);
          total += level;
          continue;
        }
        const vec<T> tau = load(tangents + j);
        store(sums[0] + j, load(sums[0] + j) + (h * at.cosine - w * tau * at.sine));
        store(sums[1] + j, load(sums[1] + j) + (h * at.sine + w * tau * at.cosine));
        store(row + j, h * slope - w * tau * level);
        store(tangents + j, w * slope);
        total += slope * tau;
      }
      if (p.row_sums) p.row_sums[i] = sum_lanes<T>(total);
    }
    if (!p.sums) return;
    for (int part = 0; part < 2; ++part)
      for (int64_t j = 0; j < p.j1 - p.j0; ++j) p.sums[part * kPanelColumns + j] = sums[part][j];
  }

  // ---- weights times points

  // out[:, d0:] += A points[:, d0:], A (count x depth) by two strides.
  void add_chunk(int64_t count, int64_t depth, const T* weights, int64_t row, int64_t step,
                 const Strips<T>& points, const Points<T>& out, int64_t d0) const {
    const int64_t end = least(d0 + kProductColumns, round_up(a_.dim(), width<T>));
    for (int64_t k = 0; k < depth; k += kDepth)
      for (int64_t d = d0; d < end; d += panel<T>)
        product<T>(count, vectors_for<T>(end - d), least(depth - k, kDepth), weights + k * step, row, step,
                   points.at(k, d), panel<T>, out.data + d, out.stride, true);
  }

  static Points<T> from(const Points<T>& points, int64_t row) {
    return {points.data + row * points.stride, points.stride};
  }

  void add_to_rows(int64_t row, int64_t d0) const {
    const int64_t count = least(rows_ - row, kTileHeight), at = row * kPanelPitch;
    const Points<T> out = from(x_out_, i_ + row);
    add_chunk(count, columns_, s_.weights + at, kPanelPitch, 1, s_.f_strips, out, d0);
    if (s_.f_tangents.data)
      add_chunk(count, columns_, s_.tangent_weights + at, kPanelPitch, 1, s_.f_tangents, out, d0);
  }

  void add_to_columns(int64_t column, int64_t d0) const {
    const int64_t count = least(columns_ - column, kTileHeight);
    const Points<T> out = from(f_out_, column);
    add_chunk(count, rows_, s_.weights + column, 1, kPanelPitch, s_.x_strips, out, d0);
    if (s_.x_tangents.data)
      add_chunk(count, rows_, s_.tangent_weights + column, 1, kPanelPitch, s_.x_tangents, out, d0);
  }

  const CharacteristicArguments& a_;
  Arena arena_;
  const CharacteristicLayout<T> s_;
  int threads_;
  bool second_, known_, copies_x_;                  // known_: the products are
  Points<T> x_out_, f_out_{};                       // f_out_: from the first of the columns on
  int64_t i_ = 0, j_ = 0, rows_ = 0, columns_ = 0;  // of the panel
};

}  // namespace DECOCT_ISA
}  // namespace decoct
