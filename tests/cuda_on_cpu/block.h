// What a thread of a block does in the emulation: it meets others at barriers and in warp collectives, takes
// shared memory and copies to it. What would hang or be undefined on a GPU is an error here.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"

namespace decoct::cuda {

struct Launch {
  int64_t blocks;
  int threads, shared_bytes;
  void* stream;
};

namespace emulation {

constexpr int kMaxThreads = 1024, kMaxArrays = 64, kMaxSharedBytes = 227 << 10;
// What the race checkers can tell apart, see launch.h, and how many fibers they hold.
constexpr int kMaxThreadsForRaces = 224, kMaxHistories = 4096;

// What a thread waits in, and the line of the kernel that called it.
struct Place {
  const char *action, *file;
  int line;
};

DECOCT_ENGINE bool same(const char* a, const char* b) {
  return a == b || std::strcmp(a, b) == 0;
}
DECOCT_ENGINE bool same(const Place& a, const Place& b) {
  return a.line == b.line && same(a.action, b.action) && same(a.file, b.file);
}

struct Copy {
  void* target;
  const void* source;
  int bytes, group;
  Place place;
};

enum class State { ready, waiting, exited };

struct Thread {
  Fiber fiber;
  State state = State::exited;
  Place place{};
  Copy* copies = nullptr;
  int copy_count = 0, copy_room = 0, groups = 0;
};

// A barrier of a block or a collective of a warp. What is left for the others has two places in turn: a fast
// thread may arrive at the next one before a slow one has read.
struct Meeting {
  Place place;
  int arrived, round;
  uint64_t left[2][32];
  char* order;  // two addresses
};

struct Array {
  void* data;
  int64_t bytes;
  int element;
};

struct Order {
  enum { forward, reverse, random } kind = forward;
  uint64_t state = 0;

  DECOCT_ENGINE uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

struct Engine {
  std::mutex mutex;
  Fiber launcher;
  Thread threads[kMaxThreads];
  Thread* current;
  Meeting block, warps[kMaxThreads / 32];
  Array arrays[kMaxArrays];
  int array_count, fiber_count;
  int64_t shared_used;
  Launch launch;
  int block_index, alive, turns[kMaxThreads];
  Order order;
  void (*call)(void*);
  void* data;
  bool failed, cancelled;
  std::exception_ptr error;
  char fences, done;  // addresses for the race checker
  char* orders;       // of all barriers of all blocks
  void* histories[kMaxHistories];
  int64_t history_count;
};

inline Engine engine;

struct Cancelled {};

inline int index_of(const Thread& thread) {
  return (int)(&thread - engine.threads);
}
inline std::string text(const Place& place) {
  const char* name = std::strrchr(place.file, '/');
  return std::string(place.action) + " at " + (name ? name + 1 : place.file) + ":" +
         std::to_string(place.line);
}
inline std::string text(const Thread& thread) {
  if (thread.state == State::exited) return "exited";
  return thread.state == State::waiting ? "in " + text(thread.place) : "can go on";
}

// Where the lanes of a warp are: "lanes 0-4,6-31 in shuffle_xor at kernel.h:12; lanes 5 exited".
inline std::string warp_state(int warp) {
  std::vector<std::string> states, lanes;
  for (int lane = 0, run = 0; lane < 32; ++lane) {
    const std::string state = text(engine.threads[32 * warp + lane]), name = std::to_string(lane);
    const size_t known = std::find(states.begin(), states.end(), state) - states.begin();
    if (known == states.size()) states.push_back(state), lanes.push_back("");
    const bool goes_on = lane && text(engine.threads[32 * warp + lane - 1]) == state;
    run = goes_on ? run + 1 : 0;
    std::string& list = lanes[known];
    if (run > 1) list.erase(list.rfind('-'));
    list += run ? "-" + name : list.empty() ? name : "," + name;
  }
  std::string line;
  for (size_t i = 0; i < states.size(); ++i) line += (i ? "; lanes " : "lanes ") + lanes[i] + " " + states[i];
  return line;
}

// Where all threads of the block are, a line for warps that are alike.
inline std::string state_table() {
  std::string table;
  for (int first = 0, next; first < engine.launch.threads / 32; first = next) {
    const std::string state = warp_state(first);
    for (next = first + 1; next < engine.launch.threads / 32 && warp_state(next) == state;) ++next;
    table += "\n  warp" + (next > first + 1 ? "s " + std::to_string(first) + "-" : " ") +
             std::to_string(next - 1) + ": " + state;
  }
  return table;
}

inline std::runtime_error failure(const std::string& what) {
  return std::runtime_error("decoct: CUDA on the CPU: block " + std::to_string(engine.block_index) + ": " +
                            what + state_table());
}

// Throws on the calling thread, which the table shows at `place`.
[[noreturn]] DECOCT_ENGINE void fail(const std::string& what, const Place& place) {
  Thread& self = *engine.current;
  self.place = place;
  self.state = State::waiting;
  throw failure("thread " + std::to_string(index_of(self)) + ": " + what);
}

DECOCT_ENGINE void yield() {
  switch_fiber(engine.current->fiber, engine.launcher);
  if (engine.cancelled) throw Cancelled{};
}

// Notes that the calling thread has come; the result is its place in `left` until all have.
DECOCT_ENGINE int arrive(Meeting& meeting, const Place& place) {
  if (meeting.arrived == 0) meeting.place = place;
  if (!same(meeting.place, place)) fail("others wait in " + text(meeting.place), place);
  engine.current->place = place;
  ++meeting.arrived;
  return meeting.round % 2;
}

// Waits until all `count` members have come; the last calls `finish` for all of them.
DECOCT_ENGINE void wait_for(Meeting& meeting, Thread* members, int count,
                            void (*finish)(const uint64_t*) = nullptr) {
  engine.current->state = State::waiting;
  if (meeting.arrived == count) {
    if (finish) finish(meeting.left[meeting.round % 2]);
    meeting.arrived = 0;
    ++meeting.round;
    for (int i = 0; i < count; ++i) members[i].state = State::ready;
  }
  yield();
}

DECOCT_ENGINE bool meet_block(bool mine, const Place& place) {
  Meeting& meeting = engine.block;
  if (engine.alive < engine.launch.threads) fail("others left the kernel before this barrier", place);
  const bool first = meeting.arrived == 0;
  const int round = arrive(meeting, place);
  uint64_t& any = meeting.left[round][0];
  any = (first ? 0 : any) | (uint64_t)mine;
  release(meeting.order + round);
  wait_for(meeting, engine.threads, engine.launch.threads);
  acquire(meeting.order + round);
  return any != 0;
}

// Leaves `value` to the other lanes; the result is what all 32 left, valid until its next
// collective.
DECOCT_ENGINE const uint64_t* meet_warp(uint64_t value, bool ordered, const Place& place,
                                        void (*finish)(const uint64_t*) = nullptr) {
  const int index = index_of(*engine.current), warp = index / 32;
  Meeting& meeting = engine.warps[warp];
  const int round = arrive(meeting, place);
  meeting.left[round][index % 32] = value;
  if (ordered) release(meeting.order + round);
  wait_for(meeting, engine.threads + 32 * warp, 32, finish);
  if (ordered) acquire(meeting.order + round);
  return meeting.left[round];
}

DECOCT_ENGINE void make_array(int64_t bytes, int element, const Place& place) {
  engine.shared_used += (bytes + 15) / 16 * 16;
  if (engine.shared_used > engine.launch.shared_bytes)
    fail("takes " + std::to_string(engine.shared_used) + " bytes of shared memory, launched with " +
             std::to_string(engine.launch.shared_bytes),
         place);
  const Unseen unseen;
  void* data = std::malloc((size_t)bytes);
  if (!data) throw std::bad_alloc();
  std::memset(data, 0xff, (size_t)bytes);
  engine.arrays[engine.array_count++] = {data, bytes, element};
}

// The block's array number `call`: one heap block each, so that the address sanitizer sees its ends.
DECOCT_ENGINE void* take(int call, int64_t bytes, int element, const Place& place) {
  if (bytes < 0 || call >= kMaxArrays) fail("a shared array too many or of negative size", place);
  if (call == engine.array_count) make_array(bytes, element, place);
  const Array& array = engine.arrays[call];
  if (array.bytes != bytes || array.element != element)
    fail("shared array " + std::to_string(call) + " has " + std::to_string(bytes) + " bytes of " +
             std::to_string(element) + " each, in another thread " + std::to_string(array.bytes) + " of " +
             std::to_string(array.element),
         place);
  return array.data;
}

// 16 bytes at an address of shared memory that is a multiple of 16.
DECOCT_ENGINE void check_shared_row(const void* memory, const Place& place) {
  if ((uintptr_t)memory % 16) fail("a misaligned address in shared memory", place);
  for (int i = 0; i < engine.array_count; ++i) {
    const ptrdiff_t offset = (const char*)memory - (const char*)engine.arrays[i].data;
    if (offset >= 0 && offset + 16 <= engine.arrays[i].bytes) return;
  }
  fail("an address outside shared memory", place);
}

// The hardware may write from here to wait_copies, which does it here; the race checker sees both ends.
DECOCT_ENGINE void start_copy(void* target, const void* source, int bytes, const Place& place) {
  Thread& self = *engine.current;
  if (bytes < 0 || bytes > 16) fail("copies " + std::to_string(bytes) + " bytes", place);
  if ((uintptr_t)source % 16) fail("a misaligned address in global memory", place);
  check_shared_row(target, place);
  note_write(target, 16);
  if (self.copy_count == self.copy_room) {
    const Unseen unseen;
    self.copy_room = 2 * self.copy_room + 16;
    self.copies = (Copy*)std::realloc(self.copies, sizeof(Copy) * self.copy_room);
    if (!self.copies) throw std::bad_alloc();
  }
  self.copies[self.copy_count++] = {target, source, bytes, self.groups, place};
}

// Instrumented, so not inlined: these are the kernel's own accesses.
__attribute__((noinline)) inline void perform(void* target, const void* source, int bytes) {
  if (bytes == 16) {
    std::memcpy(target, source, 16);
    return;
  }
  std::memset(target, 0, 16);
  if (bytes) std::memcpy(target, source, (size_t)bytes);
}

DECOCT_ENGINE void finish_copies(int pending) {
  Thread& self = *engine.current;
  int kept = 0;
  for (int i = 0; i < self.copy_count; ++i) {
    const Copy& copy = self.copies[i];
    if (copy.group < self.groups - pending)
      perform(copy.target, copy.source, copy.bytes);
    else
      self.copies[kept++] = copy;
  }
  self.copy_count = kept;
}

}  // namespace emulation
}  // namespace decoct::cuda
