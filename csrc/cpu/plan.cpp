#include "plan.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>

namespace decoct {
namespace {

constexpr int64_t kUnit = kBlockUnit, kChunk = kChunkRows;
constexpr int64_t kMostBlocks = 64;                // along one side where rounds keep tasks apart
constexpr int64_t kMostStrips = 16;                // slabs that share a symmetric term
constexpr int64_t kEnoughTasks = 48;               // a dense cross block is split until there are so many
constexpr int64_t kSlabBytes = int64_t{16} << 20;  // at most, for all slabs of one side of a segment

int64_t element_size(DType rows) {
  return rows == DType::float64 ? 8 : 4;
}

int64_t cross_block_rows(int64_t rows) {
  return rows <= 32 * kUnit ? kUnit : 2 * kUnit;
}

// Accumulators of one side.
int64_t slab_bytes(const Sizes& s, int64_t rows) {
  return std::max<int64_t>(rows * (s.dim + 16) * element_size(s.rows), 1);
}

// Where both sides accumulate: tasks in turn on the same rows pass them from core to core, so that blocks are
// as large as leaves enough of them.
int64_t block_rows(int64_t rows) {
  const int64_t least = rows <= 16 * kUnit ? kUnit : 2 * kUnit;
  return std::max(least, ceil_div(ceil_div(rows, kMostBlocks), kUnit) * kUnit);
}

// Slabs for a symmetric term of so many rows, or 0 where fewer than that would fit than rounds have tasks.
int strip_slabs(int64_t rows, int64_t slab_bytes) {
  const int64_t strips = ceil_div(rows, kUnit);
  const int64_t slabs = std::min({strips, kMostStrips, kSlabBytes / slab_bytes});
  return slabs >= std::min<int64_t>(8, strips / 2) ? (int)slabs : 0;
}

struct Builder {
  std::vector<Task> tasks;
  std::vector<int32_t> rounds;  // of each task
  int32_t chunks = 0;

  void add(int64_t round, TaskKind kind, int64_t segment, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
           int64_t slot, int flags) {
    tasks.push_back(
        {kind, (int32_t)segment, (int32_t)i0, (int32_t)i1, (int32_t)j0, (int32_t)j1, (int32_t)slot, flags});
    rounds.push_back((int32_t)round);
  }

  void add_chunks(int64_t round, TaskKind kind, int64_t segment, int64_t rows, int flags,
                  int32_t first_slot) {
    for (int64_t i = 0; i < rows; i += kChunk)
      add(round, kind, segment, i, std::min(i + kChunk, rows), 0, 0, first_slot++, flags);
  }

  std::vector<int32_t> pack(const Sizes& sizes) {
    std::vector<int32_t> order(tasks.size());
    for (size_t t = 0; t < order.size(); ++t) order[t] = (int32_t)t;
    std::stable_sort(order.begin(), order.end(), [&](int32_t p, int32_t q) { return rounds[p] < rounds[q]; });
    std::vector<int32_t> starts;
    for (size_t t = 0; t < order.size(); ++t)
      if (t == 0 || rounds[order[t]] != rounds[order[t - 1]]) starts.push_back((int32_t)t);
    ScheduleHeader header{};
    header.version = kScheduleVersion;
    header.need = sizes.need;
    header.terms = sizes.terms;
    header.tasks = (int32_t)tasks.size();
    header.rounds = (int32_t)starts.size();
    header.chunks = chunks;
    header.kept_mebibytes = (int32_t)std::min<int64_t>(sizes.cost_budget >> 20, INT32_MAX);
    starts.push_back((int32_t)tasks.size());
    std::vector<int32_t> schedule(sizeof header / 4 + starts.size() + tasks.size() * (sizeof(Task) / 4));
    header.words = (int32_t)schedule.size();
    int32_t* out = schedule.data();
    std::memcpy(out, &header, sizeof header);
    out += sizeof header / 4;
    std::memcpy(out, starts.data(), starts.size() * 4);
    out += starts.size();
    for (int32_t t : order) {
      std::memcpy(out, &tasks[t], sizeof(Task));
      out += sizeof(Task) / 4;
    }
    return schedule;
  }
};

enum Round : int64_t { kFirst, kAnchor, kPack, kCalibrate, kCross };

void add_sums(Builder& builder, const Sizes& s, int64_t c, const SegmentRule& rule) {
  const bool on_x = s.need & (kNeedX | kNeedA), on_y = s.need & (kNeedY | kNeedB);
  int64_t symmetric_round = kCross + 1;
  if (s.terms & kTermXY) {
    const int64_t rows = rule.rows_are_x ? rule.n : rule.m, cols = rule.rows_are_x ? rule.m : rule.n;
    const bool row_side = rule.rows_are_x ? on_x : on_y, column_side = rule.rows_are_x ? on_y : on_x;
    const int flags =
        (rule.rows_are_x ? kOnX : kColumnsX) | (row_side ? kRowSide : 0) | (column_side ? kColumnSide : 0);
    if (!column_side) {
      const int64_t height = cross_block_rows(rows),
                    width = ceil_div(ceil_div(cols, rule.splits), kUnit) * kUnit;
      for (int64_t i = 0; i < rows; i += height)
        for (int64_t j = 0; j < cols; j += width)
          builder.add(kCross, TaskKind::block, c, i, std::min(i + height, rows), j, std::min(j + width, cols),
                      j / width, flags);
    } else {
      // Both sides accumulate: a Latin square, in each round every row block meets a column block of its own.
      const int64_t height = block_rows(rows), width = block_rows(cols);
      const int64_t order = std::max(ceil_div(rows, height), ceil_div(cols, width));
      for (int64_t i = 0; i * height < rows; ++i)
        for (int64_t j = 0; j * width < cols; ++j)
          builder.add(kCross + (i + j) % order, TaskKind::block, c, i * height,
                      std::min((i + 1) * height, rows), j * width, std::min((j + 1) * width, cols), 0, flags);
      symmetric_round = kCross + order;
    }
  }
  for (int term : {kTermXX, kTermYY}) {
    if (!(s.terms & term)) continue;
    const bool wanted = term == kTermXX ? on_x : on_y;
    const int64_t rows = term == kTermXX ? rule.n : rule.m;
    const int64_t strips = wanted ? term == kTermXX ? rule.x_strips : rule.y_strips : 0;
    for (int64_t k = 0; k < strips; ++k)
      builder.add(symmetric_round, TaskKind::strips, c, 0, strips, 0, 0, k, term == kTermXX ? kOnX : 0);
    if (strips) continue;
    const int64_t size = block_rows(rows), blocks = ceil_div(rows, size);
    const int64_t order =
        blocks | 1;  // round (i + j) mod order: every block has one partner in it, or itself
    for (int64_t i = 0; i < blocks; ++i)
      for (int64_t j = i; j < blocks; ++j) {
        const int flags = (term == kTermXX ? kOnX | kColumnsX : 0) | (wanted ? kRowSide : 0) |
                          (wanted && i != j ? kColumnSide : 0);
        builder.add(symmetric_round + (wanted ? (i + j) % order : 0), TaskKind::block, c, i * size,
                    std::min((i + 1) * size, rows), j * size, std::min((j + 1) * size, rows), 0, flags);
      }
  }
}

// Rows of one side against everything they meet: no two tasks share a row.
void add_one_sided(Builder& builder, int64_t c, int64_t rows, int flags) {
  const int64_t height = cross_block_rows(rows);
  for (int64_t i = 0; i < rows; i += height)
    builder.add(kCross, TaskKind::block, c, i, std::min(i + height, rows), 0, 0, 0, flags);
}

}  // namespace

SegmentRule segment_rule(const Sizes& s, int64_t c) {
  SegmentRule rule{};
  rule.n = s.x_offsets[c + 1] - s.x_offsets[c];
  rule.m = s.y_offsets[c + 1] - s.y_offsets[c];
  rule.empty = rule.n == 0 || rule.m == 0;
  rule.splits = 1;
  rule.rows_are_x = true;
  if (s.op == Op::matvec) {
    rule.y_is_columns = true;
    return rule;
  }
  if (s.op == Op::hvp) {
    rule.x_is_columns = rule.y_is_columns = true;
    return rule;
  }
  double pairs = 0;
  if (s.terms & kTermXX) pairs += 0.5 * (double)rule.n * (double)rule.n;
  if (s.terms & kTermXY) pairs += (double)rule.n * (double)rule.m;
  if (s.terms & kTermYY) pairs += 0.5 * (double)rule.m * (double)rule.m;
  const double work = pairs * (double)(s.dim + 32);
  // Of many segments one that is not far above the mean may be a single task, whatever its size: scratch is
  // then for each thread, not for each segment.
  const double mean_rows = (double)(s.x_offsets[s.segments] + s.y_offsets[s.segments]) / (double)s.segments;
  const bool usual = s.segments >= 64 && (double)(rule.n + rule.m) <= 2 * mean_rows;
  rule.whole = work <= (1 << 22) || (s.segments >= 8 && work <= (1 << 27)) || usual;
  const bool on_x = s.need & (kNeedX | kNeedA), on_y = s.need & (kNeedY | kNeedB);
  const int64_t larger = std::max(rule.n, rule.m), smaller = std::min(rule.n, rule.m);
  rule.streamed = rule.whole && rule.n >= rule.m && !on_x && !(s.terms & kTermXX);
  if (rule.streamed || on_x == on_y || (rule.whole && larger >= 2 * smaller))
    rule.rows_are_x = rule.n >= rule.m;  // only the smaller cloud is transposed
  else
    rule.rows_are_x = on_x;  // the differentiated side accumulates in its own rows
  const bool cross = s.terms & kTermXY;
  rule.x_is_columns = (s.terms & kTermXX) || (cross && !rule.rows_are_x);
  rule.y_is_columns = (s.terms & kTermYY) || (cross && rule.rows_are_x);
  if (!rule.whole && on_x && (s.terms & kTermXX)) rule.x_strips = strip_slabs(rule.n, slab_bytes(s, rule.n));
  if (!rule.whole && on_y && (s.terms & kTermYY)) rule.y_strips = strip_slabs(rule.m, slab_bytes(s, rule.m));
  if (!rule.whole && cross && !(rule.rows_are_x ? on_y : on_x)) {
    const int64_t rows = rule.rows_are_x ? rule.n : rule.m, cols = rule.rows_are_x ? rule.m : rule.n;
    const int64_t slab = slab_bytes(s, rows);
    const int64_t wanted =
        ceil_div(kEnoughTasks, std::max<int64_t>(ceil_div(rows, cross_block_rows(rows)), 1));
    const int64_t splits = std::max<int64_t>(1, std::min({wanted, cols / (4 * kUnit), kSlabBytes / slab}));
    // Whole units a split: the last ones may be empty.
    rule.splits = (int)std::max<int64_t>(1, ceil_div(cols, ceil_div(ceil_div(cols, splits), kUnit) * kUnit));
  }
  return rule;
}

Plan plan(const Sizes& s) {
  check_sizes(s);
  Builder builder;
  if (s.op == Op::rows) return {builder.pack(s), 0};
  if (s.op == Op::sinkhorn) {
    Plan result{builder.pack(s), 0};
    result.workspace_bytes = workspace_bytes(s, result.schedule.data(), (int64_t)result.schedule.size());
    return result;
  }
  std::vector<std::pair<int64_t, int64_t>> whole;
  for (int64_t c = 0; c < s.segments; ++c) {
    const SegmentRule rule = segment_rule(s, c);
    if (rule.empty) continue;
    if (rule.whole) {
      whole.emplace_back(-(rule.n + rule.m) * std::min(rule.n, rule.m), c);
      continue;
    }
    const int32_t x_slot = builder.chunks, y_slot = x_slot + (int32_t)ceil_div(rule.n, kChunk);
    builder.chunks = y_slot + (int32_t)ceil_div(rule.m, kChunk);
    for (auto [round, kind] : {std::pair{kFirst, TaskKind::centre}, std::pair{kPack, TaskKind::pack}}) {
      builder.add_chunks(round, kind, c, rule.n, kOnX, x_slot);
      builder.add_chunks(round, kind, c, rule.m, 0, y_slot);
    }
    builder.add(kAnchor, TaskKind::anchor, c, 0, 0, 0, 0, x_slot, 0);
    builder.add(kCalibrate, TaskKind::calibrate, c, 0, 0, 0, 0, x_slot, 0);
    if (s.op == Op::sums) {
      add_sums(builder, s, c, rule);
      if (s.need & (kNeedX | kNeedA)) builder.add_chunks(INT32_MAX, TaskKind::finish, c, rule.n, kOnX, 0);
      if (s.need & (kNeedY | kNeedB)) builder.add_chunks(INT32_MAX, TaskKind::finish, c, rule.m, 0, 0);
    } else {
      if (s.op == Op::matvec || (s.need & (kNeedX | kNeedA))) add_one_sided(builder, c, rule.n, kOnX);
      if (s.op == Op::hvp && (s.need & (kNeedY | kNeedB))) add_one_sided(builder, c, rule.m, 0);
    }
  }
  std::stable_sort(whole.begin(), whole.end());  // largest first: the last to end is small
  for (auto [size, c] : whole) builder.add(kFirst, TaskKind::whole, c, 0, 0, 0, 0, 0, 0);
  Plan result;
  const int64_t tasks = (int64_t)builder.tasks.size();
  if (tasks > INT32_MAX / 8)
    throw std::invalid_argument("plan: too many tasks for one call; split the segments");
  result.schedule = builder.pack(s);
  result.workspace_bytes = workspace_bytes(s, result.schedule.data(), (int64_t)result.schedule.size());
  return result;
}

}  // namespace decoct
