// How transport is cut up (plan.cpp): terms, the blocks of pairs of a pass, and the chunks of a step.
#pragma once
#include <algorithm>
#include <vector>

#include "schedule.h"

namespace decoct::cuda {

struct TransportPlan {
  std::vector<Term> terms;
  std::vector<TransportTask> tasks;
  std::vector<StepChunk> steps;
  int32_t kept_terms = 0, kept_tasks = 0, kept_rows = 0;
  int64_t kept = 0, sums = 0;  // numbers
};

// Costs of terms of no more pairs than kKeptPairs are kept, as long as there is room for them: such a term
// takes one block about as long as the launches of a larger one's iterations.
constexpr int64_t kKeptPairs = 1 << 16, kKeptSide = 1024, kKeptBytes = int64_t{64} << 20;
constexpr int64_t kMostKeptRows = kKeptSide + kKeptPairs / kKeptSide;  // of both sides
constexpr int64_t kMostBands = 32;     // of rows, and of columns: slabs of sums are read once a step
constexpr int64_t kPassBlocks = 1024;  // of one pass, where the problem has so many tiles

class TransportBuilder {
 public:
  TransportBuilder(const Sizes& sizes, const std::vector<SegmentPlan>& segments)
      : s_(sizes), budget_(std::max(kKeptBytes, sizes.cost_budget) / (sizes.rows == DType::float64 ? 8 : 4)) {
    std::vector<Term> rest;
    for (size_t c = 0; c < segments.size(); ++c)
      for (int kind = 0; kind < kTermKinds; ++kind) add_term((int32_t)c, kind, segments[c], rest);
    plan_.kept_terms = (int32_t)plan_.terms.size();
    for (int32_t k = 0; k < plan_.kept_terms; ++k) add_kept_tasks(k);
    plan_.kept_tasks = (int32_t)plan_.tasks.size();
    for (const Term& term : rest) pairs_ += pairs_of(term);
    for (const Term& term : rest) {
      plan_.terms.push_back(term);
      add_tasks((int32_t)plan_.terms.size() - 1);
    }
  }

  const TransportPlan& plan() const { return plan_; }

 private:
  static int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
  static double pairs_of(const Term& t) {
    return (double)t.rows * t.columns * (t.rows_x == t.columns_x ? 0.5 : 1);
  }
  int64_t tile_height() const { return tile_rows(s_.rows == DType::float64 ? Shape::medium : Shape::square); }

  void add_term(int32_t segment, int kind, const SegmentPlan& plan, std::vector<Term>& rest) {
    constexpr int bits[] = {kTermXX, kTermXY, kTermYY};
    if (!(s_.terms & bits[kind]) || plan.n == 0 || plan.m == 0) return;
    Term term{};
    term.kept = -1;
    term.segment = segment;
    term.kind = kind;
    // Lanes own columns of kept costs: the longer side fills them better.
    term.rows_x = kind == 0 || (kind == 1 && plan.n < plan.m);
    term.columns_x = kind == 1 ? !term.rows_x : term.rows_x;
    term.rows = term.rows_x ? plan.n : plan.m;
    term.columns = term.columns_x ? plan.n : plan.m;
    const int64_t costs = (int64_t)term.rows * cost_pitch(term.columns);
    if ((int64_t)term.rows * term.columns > kKeptPairs || term.columns > kKeptSide ||
        plan_.kept + costs > budget_)
      return rest.push_back(term);
    term.kept = plan_.kept;
    plan_.kept += costs;
    plan_.kept_rows = std::max(plan_.kept_rows, term.rows + (kind == 1 ? term.columns : 0));
    plan_.terms.push_back(term);
  }

  void add_kept_tasks(int32_t index) {
    const Term& term = plan_.terms[index];
    for (int64_t i = 0; i < term.rows; i += tile_height())
      plan_.tasks.push_back({index, (int32_t)i, (int32_t)std::min<int64_t>(i + tile_height(), term.rows), 0,
                             term.columns, 0, -1, 0});
  }

  // Bands of rows times ranges of columns. Of a symmetric term the square blocks on the diagonal, whose sums
  // over rows are enough, and those above them.
  void add_tasks(int32_t index) {
    Term& term = plan_.terms[index];
    const bool symmetric = term.rows_x == term.columns_x;
    const int64_t n = term.rows, m = term.columns, unit = tile_height(),
                  columns = tile_columns(Shape::square);
    const int64_t height = round_up((n + kMostBands - 1) / kMostBands, unit);
    const double each = pairs_ / (double)(kPassBlocks * height);
    const int64_t least = std::max((m + kMostBands - 1) / kMostBands, 2 * columns);
    const int64_t width = round_up(std::max(least, (int64_t)std::min(each, 1e9)), columns);
    const auto add = [&](int64_t i, int64_t j0, int64_t j1, int64_t row_slab, int64_t column_slab) {
      plan_.tasks.push_back({index, (int32_t)i, (int32_t)std::min(i + height, n), (int32_t)j0,
                             (int32_t)std::min(j1, m), (int32_t)row_slab, (int32_t)column_slab, 0});
      term.row_slabs = std::max(term.row_slabs, (int32_t)row_slab + 1);
      term.column_slabs = std::max(term.column_slabs, (int32_t)column_slab + 1);
    };
    for (int64_t band = 0, i = 0; i < n; ++band, i += height) {
      if (symmetric) add(i, i, i + height, 0, -1);
      const int64_t begin = symmetric ? i + height : 0;
      for (int64_t j = begin; j < m; j += width) add(i, j, j + width, symmetric + (j - begin) / width, band);
    }
    term.row_sums = plan_.sums;
    term.column_sums = plan_.sums += (int64_t)term.row_slabs * n;
    plan_.sums += (int64_t)term.column_slabs * m;
    term.first_chunk = (int32_t)plan_.steps.size();
    add_steps(index, true, n);
    if (!symmetric) add_steps(index, false, m);
  }

  void add_steps(int32_t index, bool on_rows, int64_t rows) {
    for (int64_t i = 0; i < rows; i += kThreads) {
      plan_.steps.push_back({index, on_rows, (int32_t)i, (int32_t)std::min(i + kThreads, rows)});
      ++plan_.terms[index].chunks;
    }
  }

  const Sizes& s_;
  int64_t budget_;
  double pairs_ = 0;
  TransportPlan plan_;
};

}  // namespace decoct::cuda
