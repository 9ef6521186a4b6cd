// The CUDA schedule. Tasks are cut so that each meets about as many pairs, however unequal the segments are,
// and that there are enough of them to fill a large device.
#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>

#include "transport_plan.h"
#include "workspace.h"

namespace decoct {
namespace cuda {
namespace {

constexpr int64_t kEnoughBlocks = 1024;               // of one launch, where the problem has so many tiles
constexpr int64_t kChunkRows = 16, kMostChunks = 64;  // of preparation, for one side of a segment

int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Rows of one side against columns of one side: a block of the pooled kernel matrix of a segment.
struct Block {
  int64_t segment, rows, columns;
  int flags;
};

class Builder {
 public:
  explicit Builder(const Sizes& sizes) : s_(sizes), path_(choose_path(sizes)) {
    for (int64_t c = 0; c < s_.segments; ++c) add_segment(c);
  }

  Plan build() {
    for (size_t c = 0; c < segments_.size(); ++c)
      if (segments_[c].n > 0 && segments_[c].m > 0) add_blocks((int64_t)c);
    add_launch(counted_, path_ == Path::small ? Stage::small : Stage::score, true);
    switch (path_) {
      case Path::small:
        add_launch(derived_, Stage::small, false);
        break;
      case Path::fused:
        add_launch(derived_, Stage::fused, false);
        break;
      case Path::weights:
        add_weight_launches();
        break;
    }
    number_values();
    if (s_.op == Op::sinkhorn)
      transport_ = TransportBuilder(s_, segments_).plan();
    else
      add_finish();
    return pack();
  }

 private:
  void add_segment(int64_t c) {
    SegmentPlan plan{};
    plan.x_begin = s_.x_offsets[c];
    plan.y_begin = s_.y_offsets[c];
    plan.n = (int32_t)(s_.x_offsets[c + 1] - plan.x_begin);
    plan.m = (int32_t)(s_.y_offsets[c + 1] - plan.y_begin);
    plan.first_chunk = (int32_t)chunks_.size();
    add_chunks(chunks_, c, plan.n, true);
    add_chunks(chunks_, c, plan.m, false);
    plan.chunks = (int32_t)chunks_.size() - plan.first_chunk;
    segments_.push_back(plan);
  }

  static void add_chunks(std::vector<Chunk>& chunks, int64_t c, int64_t rows, bool on_x) {
    const int64_t height = round_up(std::max(kChunkRows, ceil_div(rows, kMostChunks)), kChunkRows);
    for (int64_t i = 0; i < rows; i += height)
      chunks.push_back({(int32_t)c, on_x, (int32_t)i, (int32_t)std::min(i + height, rows)});
  }

  // Transport differentiates the sums of a plan, by points alone.
  bool wanted(bool on_x) const {
    if (s_.op == Op::matvec) return on_x;
    if (s_.op == Op::sinkhorn) return s_.need & (on_x ? kNeedX : kNeedY);
    return s_.need & (on_x ? kNeedX | kNeedA : kNeedY | kNeedB);
  }
  int derivatives(bool on_x) const {
    if (s_.op == Op::matvec) return s_.columns == 1 ? kRowSums : kGradient;
    if (s_.op == Op::sinkhorn) return kGradient | kRowSums;
    return (s_.need & (on_x ? kNeedX : kNeedY) ? kGradient : 0) |
           (s_.need & (on_x ? kNeedA : kNeedB) ? kRowSums : 0);
  }

  // Rows that accumulate meet the columns of every term; a term without such rows is only counted, a
  // symmetric one of these by its upper half.
  void add_blocks(int64_t c) {
    const int64_t n = segments_[c].n, m = segments_[c].m;
    const bool sums = s_.op == Op::sums;
    for (const bool on_x : {true, false}) {
      if (!wanted(on_x)) continue;
      const int64_t rows = on_x ? n : m;
      const int side = (on_x ? kRowsX : 0) | derivatives(on_x);
      const bool counts = sums && (!on_x || !wanted(false));
      if (s_.terms & kTermXY)
        derived_.push_back({c, rows, on_x ? m : n, side | (on_x ? 0 : kColumnsX) | (counts ? kCount : 0)});
      if (s_.terms & (on_x ? kTermXX : kTermYY))
        derived_.push_back({c, rows, rows, side | (on_x ? kColumnsX : 0) | (sums ? kCount : 0)});
    }
    if (!sums) return;
    if ((s_.terms & kTermXY) && !wanted(true) && !wanted(false))
      counted_.push_back({c, std::min(n, m), std::max(n, m), (n <= m ? kRowsX : kColumnsX) | kCount});
    for (const bool on_x : {true, false})
      if ((s_.terms & (on_x ? kTermXX : kTermYY)) && !wanted(on_x))
        counted_.push_back(
            {c, on_x ? n : m, on_x ? n : m, (on_x ? kRowsX | kColumnsX : 0) | kCount | kTwice});
  }

  // Few rows a segment would leave most of a square tile empty.
  Shape choose_shape(const std::vector<Block>& blocks) const {
    if (s_.op == Op::hvp || s_.rows == DType::float64) return Shape::medium;
    int64_t square = 0, narrow = 0;
    for (const Block& b : blocks) {
      square += round_up(b.rows, tile_rows(Shape::square));
      narrow += round_up(b.rows, tile_rows(Shape::narrow));
    }
    return square > 2 * narrow ? Shape::narrow : Shape::square;
  }

  struct Tile {
    int64_t rows, columns;
  };
  Tile tile_of(Stage stage, Shape shape) const {
    const int width = fused_width(s_.dim);
    if (stage == Stage::fused) return {kFusedRows, fused_columns(width)};
    if (stage == Stage::small) return {kSmallRows, kSmallColumns};
    return {tile_rows(shape), tile_columns(shape)};
  }

  // Columns of one task, so that all tasks meet about as many pairs.
  static int64_t task_columns(const std::vector<Block>& blocks, Tile tile) {
    double pairs = 0;
    for (const Block& b : blocks) pairs += (double)round_up(b.rows, tile.rows) * (double)b.columns;
    const double each = pairs / (double)(kEnoughBlocks * tile.rows);
    return round_up((int64_t)std::min(std::max(each, 4.0 * (double)tile.columns), 1e9), tile.columns);
  }

  void add_launch(const std::vector<Block>& blocks, Stage stage, bool counted) {
    if (blocks.empty()) return;
    const Shape shape = choose_shape(blocks);
    const Tile tile = tile_of(stage, shape);
    const int64_t width = task_columns(blocks, tile), first = (int64_t)tasks_.size();
    for (const Block& b : blocks) {
      const bool half = b.flags & kTwice;
      const int64_t slab = open_slabs(b);
      for (int64_t i = 0; i < b.rows; i += tile.rows) {
        const int64_t end = std::min(i + tile.rows, b.rows);
        if (half) add_task(b, i, end, i, end, 0, b.flags & ~kTwice);
        int64_t split = 0;
        for (int64_t j = half ? end : 0; j < b.columns; j += width, ++split)
          add_task(b, i, end, j, std::min(j + width, b.columns), counted ? 0 : slab + split * b.rows + i,
                   b.flags);
      }
      if (!counted) close_slabs(b, ceil_div(b.columns, width));
    }
    add_round(stage, shape, first, 0);
  }

  // Slabs of one side of a segment lie together: its blocks, which come one after another, take them in turn.
  int64_t open_slabs(const Block& b) {
    SegmentPlan& plan = segments_[b.segment];
    const bool on_x = b.flags & kRowsX;
    if ((on_x ? plan.x_slabs : plan.y_slabs) == 0) (on_x ? plan.x_slab : plan.y_slab) = (int32_t)slab_rows_;
    return slab_rows_;
  }
  void close_slabs(const Block& b, int64_t splits) {
    SegmentPlan& plan = segments_[b.segment];
    (b.flags & kRowsX ? plan.x_slabs : plan.y_slabs) += (int32_t)splits;
    if (!(b.flags & kRowsX) != !(b.flags & kColumnsX))
      (b.flags & kRowsX ? plan.x_cross_slabs : plan.y_cross_slabs) += (int32_t)splits;
    slab_rows_ += splits * b.rows;
    if (slab_rows_ > INT32_MAX)
      throw std::invalid_argument("plan: too many rows for one call; split the segments");
  }

  // Weights go through scratch: as many tasks at a time as fit there, then the products that use them.
  void add_weight_launches() {
    if (derived_.empty()) return;
    const Shape shape = choose_shape(derived_);
    const Tile tile = tile_of(Stage::score, shape);
    const int64_t fit = weight_tasks(s_, shape);
    std::vector<Task> products;
    int64_t first = (int64_t)tasks_.size();
    std::vector<std::pair<int64_t, int64_t>> product_rounds;
    // All blocks of a side run row tile by row tile, so that the products of one tile meet in one task. Those
    // of transport, each divided by sums of its own, do not meet.
    for (size_t k = 0; k < derived_.size();) {
      size_t last = k + 1;
      while (s_.op != Op::sinkhorn && last < derived_.size() &&
             derived_[last].segment == derived_[k].segment &&
             !((derived_[last].flags ^ derived_[k].flags) & kRowsX))
        ++last;
      const Block& b = derived_[k];
      const int64_t slab = open_slabs(b);
      for (int64_t i = 0; i < b.rows; i += tile.rows)
        for (size_t other = k; other < last; ++other)
          for (int64_t j = 0; j < derived_[other].columns; j += kWeightColumns) {
            if ((int64_t)tasks_.size() - first == fit) first = close_weights(shape, first, products);
            const int64_t columns = std::min(j + kWeightColumns, derived_[other].columns);
            add_task(derived_[other], i, std::min(i + tile.rows, b.rows), j, columns, slab + i,
                     derived_[other].flags);
            add_product(products, tasks_.back());
          }
      close_slabs(b, 1);
      k = last;
    }
    close_weights(shape, first, products);
  }

  void add_product(std::vector<Task>& products, const Task& score) const {
    const int32_t index = (int32_t)tasks_.size() - 1;
    if (!products.empty() && products.back().slab == score.slab) {
      products.back().value = index + 1;
      return;
    }
    products.push_back(score);
    products.back().col_begin = index;
    products.back().value = index + 1;
  }

  int64_t close_weights(Shape shape, int64_t first, std::vector<Task>& products) {
    scratch_shape_ = shape;
    scratch_tasks_ = std::max(scratch_tasks_, (int64_t)tasks_.size() - first);
    add_round(Stage::score, shape, first, 0);
    const int64_t at = (int64_t)tasks_.size();
    tasks_.insert(tasks_.end(), products.begin(), products.end());
    products.clear();
    add_round(Stage::product, shape, at, first);
    return (int64_t)tasks_.size();
  }

  void add_task(const Block& b, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t slab, int flags) {
    if (tasks_.size() > INT32_MAX / 16)
      throw std::invalid_argument("plan: too many tasks for one call; split the segments");
    tasks_.push_back(
        {(int32_t)b.segment, flags, (int32_t)i0, (int32_t)i1, (int32_t)j0, (int32_t)j1, (int32_t)slab, 0});
  }

  void add_round(Stage stage, Shape shape, int64_t first, int64_t scores) {
    rounds_.push_back({stage, shape, (int32_t)first, (int32_t)(tasks_.size() - first), (int32_t)scores, 0});
  }

  // Partial values of a segment lie together, in the order of its tasks.
  void number_values() {
    const auto each = [this](auto use) {
      for (const Round& r : rounds_)
        if (r.stage != Stage::product)
          for (int32_t t = r.first; t < r.first + r.count; ++t)
            if (tasks_[t].flags & kCount) use(tasks_[t]);
    };
    each([this](const Task& t) { ++segments_[t.segment].values; });
    for (SegmentPlan& plan : segments_) {
      plan.first_value = values_;
      values_ += plan.values;
      plan.values = 0;
    }
    each([this](Task& t) {
      SegmentPlan& plan = segments_[t.segment];
      t.value = plan.first_value + plan.values++;
    });
  }

  void add_finish() {
    if (s_.op == Op::rows) return;
    for (size_t c = 0; c < segments_.size(); ++c)
      for (const bool on_x : {true, false})
        if (wanted(on_x)) add_chunks(finish_, (int64_t)c, on_x ? segments_[c].n : segments_[c].m, on_x);
  }

  template <class T>
  static void append(std::vector<int32_t>& words, const std::vector<T>& items) {
    const size_t at = words.size();
    words.resize(at + items.size() * sizeof(T) / 4);
    if (!items.empty()) std::memcpy(words.data() + at, items.data(), items.size() * sizeof(T));
  }

  Plan pack() {
    Header h{};
    h.common.version = kCudaScheduleVersion;
    h.common.need = s_.need;
    h.common.terms = s_.terms;
    h.common.tasks = (int32_t)tasks_.size();
    h.common.rounds = (int32_t)rounds_.size();
    h.common.chunks = (int32_t)chunks_.size();
    h.path = (int32_t)path_;
    h.finish_chunks = (int32_t)finish_.size();
    h.values = values_;
    h.slab_rows = (int32_t)slab_rows_;
    h.scratch_tasks = (int32_t)scratch_tasks_;
    h.scratch_shape = (int32_t)scratch_shape_;
    h.common.kept_mebibytes = (int32_t)std::min<int64_t>(s_.cost_budget >> 20, INT32_MAX);
    h.terms = (int32_t)transport_.terms.size();
    h.kept_terms = transport_.kept_terms;
    h.transport_tasks = (int32_t)transport_.tasks.size();
    h.kept_tasks = transport_.kept_tasks;
    h.steps = (int32_t)transport_.steps.size();
    h.kept_rows = transport_.kept_rows;
    h.kept = transport_.kept;
    h.sums = transport_.sums;
    h.common.words = (int32_t)schedule_words(h, s_.segments);
    Plan plan;
    append(plan.schedule, std::vector<Header>{h});
    append(plan.schedule, rounds_);
    append(plan.schedule, segments_);
    append(plan.schedule, tasks_);
    append(plan.schedule, chunks_);
    append(plan.schedule, finish_);
    append(plan.schedule, transport_.terms);
    append(plan.schedule, transport_.tasks);
    append(plan.schedule, transport_.steps);
    plan.workspace_bytes = workspace_layout(s_, h).bytes;
    return plan;
  }

  const Sizes& s_;
  Path path_;
  std::vector<Block> counted_, derived_;  // blocks that are only counted; with rows that accumulate
  std::vector<SegmentPlan> segments_;
  std::vector<Chunk> chunks_, finish_;
  std::vector<Task> tasks_;
  std::vector<Round> rounds_;
  TransportPlan transport_;
  int64_t slab_rows_ = 0, scratch_tasks_ = 0;
  Shape scratch_shape_ = Shape::square;
  int32_t values_ = 0;
};

}  // namespace

Path choose_path(const Sizes& s) {
  const bool sums = s.op == Op::sums || s.op == Op::sinkhorn,
             plain = sums || (s.op == Op::matvec && s.columns == 1);
  if (plain && s.dim < (s.rows == DType::float64 ? kSmallDoubleDim : kSmallDim)) return Path::small;
  if (sums && s.rows != DType::float64 && s.dim <= kFusedDim) return Path::fused;
  return Path::weights;
}

}  // namespace cuda

Plan plan(const Sizes& sizes) {
  check_sizes(sizes);
  return cuda::Builder(sizes).build();
}

int64_t workspace_bytes(const Sizes& sizes, const int32_t* schedule, int64_t words) {
  const auto& header = *(const cuda::Header*)schedule;
  if (words < (int64_t)sizeof header / 4 || header.common.version != cuda::kCudaScheduleVersion ||
      header.common.words != words || header.common.need != sizes.need ||
      header.common.terms != sizes.terms || cuda::schedule_words(header, sizes.segments) != words)
    throw std::invalid_argument("schedule: made for another call");
  return cuda::workspace_layout(sizes, header).bytes;
}

}  // namespace decoct
