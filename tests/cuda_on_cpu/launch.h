// Runs the blocks of a CUDA launch one after another on the calling thread, each CUDA thread on a fiber. The
// order of threads and blocks comes from the environment variable DECOCT_CUDA_ON_CPU_ORDER: forward, reverse
// or the seed of a random one.
//
// The race checker orders what two threads do only where CUDA does: at barriers, sync_warp and fences. It
// therefore finds a race whatever the order in which the fibers ran. Its traps:
//   - a barrier has two addresses in turn, so that a fast thread's next arrival does not reach back;
//   - the engine's own code is not instrumented, and free of std:: containers, whose code would be;
//   - stacks and shared arrays are new memory for each block, and fibers new for each block and thread;
//   - a fiber is destroyed only after the launch: reports of its accesses would be dropped;
//   - clang's checker has 255 slots for fibers. A new fiber that takes the slot of an old one seems ordered
//     after it, and so does all that meets it at a barrier. Races inside a block are found up to 224 threads;
//     those of a block of n threads with the next one if a side is one of the first 254 - n threads.
#pragma once

#include "block.h"

namespace decoct::cuda::emulation {

DECOCT_ENGINE void leave_kernel(Thread& self) {
  self.state = State::exited;
  if (!self.copy_count && !engine.block.arrived) return;
  const std::string who = "thread " + std::to_string(index_of(self)) + " left the kernel ";
  if (self.copy_count) throw failure(who + "before it waited for " + text(self.copies[0].place));
  throw failure(who + "while others wait in " + text(engine.block.place));
}

DECOCT_ENGINE void run_thread() {
  try {
    if (engine.cancelled) return;
    engine.call(engine.data);
    leave_kernel(*engine.current);
  } catch (const Cancelled&) {
  } catch (...) {
    engine.error = std::current_exception();
    engine.failed = true;
  }
}

// Where fibers begin. Without the race checker one runs thread after thread, block after block.
DECOCT_ENGINE void fiber_main() {
  arrived(engine.current->fiber, engine.launcher);
  for (;;) {
    run_thread();
    engine.current->state = State::exited;
    release(&engine.done);
    --engine.alive;
    switch_fiber(engine.current->fiber, engine.launcher);
  }
}

#if defined(DECOCT_TSAN)
DECOCT_ENGINE void create_history(Fiber& fiber) {
  void*& kept = engine.histories[engine.history_count++ % kMaxHistories];
  if (kept) __tsan_destroy_fiber(kept);
  kept = fiber.history = __tsan_create_fiber(0);
  // The first release takes a slot.
  __tsan_switch_to_fiber(kept, __tsan_switch_to_fiber_no_sync);
  release(&engine.done);
  __tsan_switch_to_fiber(engine.launcher.history, __tsan_switch_to_fiber_no_sync);
}
DECOCT_ENGINE void destroy_histories() {
  for (void*& kept : engine.histories) {
    if (kept) __tsan_destroy_fiber(kept);
    kept = nullptr;
  }
}
#else
inline void create_history(Fiber&) {}
inline void destroy_histories() {}
#endif

DECOCT_ENGINE void begin(Meeting& meeting, char* order) {
  meeting.arrived = meeting.round = 0;
  meeting.order = order;
}

DECOCT_ENGINE void create_fibers(int count) {
  const int missing = count - engine.fiber_count;
  if (missing <= 0) return;
  const size_t pitch = stack_pitch();
  char* stack = map_stacks(missing) + pitch - kStackBytes;
  for (; engine.fiber_count < count; stack += pitch)
    create(engine.threads[engine.fiber_count++].fiber, stack, fiber_main);
}

DECOCT_ENGINE void begin_block() {
  const int threads = engine.launch.threads;
  create_fibers(threads);
  char* order = engine.orders + (int64_t)engine.block_index * 2 * (1 + kMaxThreads / 32);
  begin(engine.block, order);
  for (int w = 0; w < threads / 32; ++w) begin(engine.warps[w], order + 2 * (w + 1));
  // New fibers take the slots of the oldest ones: the first threads of the block before keep theirs.
  for (int t = threads - 1; t >= 0; --t) {
    Thread& thread = engine.threads[t];
    create_history(thread.fiber);
    thread.state = State::ready;
    thread.copy_count = thread.groups = 0;
  }
  engine.alive = threads;
}

DECOCT_ENGINE void end_block() {
  const Unseen unseen;
  for (int i = 0; i < engine.array_count; ++i) std::free(engine.arrays[i].data);
  engine.array_count = 0;
  engine.shared_used = 0;
  if (!kRaces) return;
  unmap_stacks(engine.threads[0].fiber.stack - stack_pitch() + kStackBytes, engine.fiber_count);
  engine.fiber_count = 0;
}

DECOCT_ENGINE void resume(Thread& thread) {
  engine.current = &thread;
  switch_fiber(engine.launcher, thread.fiber);
}

// Draws the order of the threads for the next round through them.
DECOCT_ENGINE void draw_turns() {
  const int count = engine.launch.threads;
  for (int i = 0; i < count; ++i) {
    int j = i;
    if (engine.order.kind == Order::random) j = (int)(engine.order.next() % (unsigned)(i + 1));
    engine.turns[i] = engine.turns[j];
    engine.turns[j] = engine.order.kind == Order::reverse ? count - 1 - i : i;
  }
}

// One chance for every thread that can go on; false when there is none.
DECOCT_ENGINE bool run_round() {
  bool any = false;
  draw_turns();
  for (int i = 0; i < engine.launch.threads && !engine.failed; ++i) {
    Thread& thread = engine.threads[engine.turns[i]];
    if (thread.state != State::ready) continue;
    any = true;
    resume(thread);
  }
  return any;
}

DECOCT_ENGINE void run_block() {
  begin_block();
  while (engine.alive && !engine.failed)
    if (!run_round()) {
      engine.error = std::make_exception_ptr(failure("no thread can go on"));
      engine.failed = true;
    }
  // The others leave by an exception, so that their stacks can be used again.
  engine.cancelled = true;
  for (int t = 0; t < engine.launch.threads; ++t)
    if (engine.threads[t].state != State::exited) resume(engine.threads[t]);
  engine.cancelled = false;
  end_block();
}

inline void check_launch(const Launch& launch) {
  const auto require = [](bool good, const std::string& what) {
    if (!good) throw std::runtime_error("decoct: CUDA on the CPU: " + what);
  };
  require(launch.blocks > 0 && launch.blocks < ((int64_t)1 << 31),
          std::to_string(launch.blocks) + " blocks were launched; expected 0 to 2^31 - 1");
  require(
      launch.threads > 0 && launch.threads <= kMaxThreads && launch.threads % 32 == 0,
      std::to_string(launch.threads) + " threads a block were launched; expected a multiple of 32 to 1024");
  require(launch.shared_bytes >= 0 && launch.shared_bytes <= kMaxSharedBytes,
          std::to_string(launch.shared_bytes) +
              " bytes of shared memory were asked for; no device has more than " +
              std::to_string(kMaxSharedBytes));
#if defined(__clang__)
  require(!kRaces || launch.threads <= kMaxThreadsForRaces,
          "clang's race checker misses races of more than 224 threads a block");
#endif
}

inline Order read_order() {
  Order order;
  const char* name = std::getenv("DECOCT_CUDA_ON_CPU_ORDER");
  if (!name || !*name || same(name, "forward")) return order;
  order.kind = same(name, "reverse") ? Order::reverse : Order::random;
  if (order.kind == Order::reverse) return order;
  char* end;
  order.state = std::strtoull(name, &end, 10);
  if (*end)
    throw std::runtime_error("decoct: DECOCT_CUDA_ON_CPU_ORDER is forward, reverse or a seed, not " +
                             std::string(name));
  return order;
}

inline std::vector<int> order_blocks(int count) {
  std::vector<int> blocks(count);
  for (int i = 0; i < count; ++i) blocks[i] = i;
  if (engine.order.kind == Order::reverse) std::reverse(blocks.begin(), blocks.end());
  if (engine.order.kind == Order::random)
    for (int i = count; i > 1; --i) std::swap(blocks[i - 1], blocks[engine.order.next() % (unsigned)i]);
  return blocks;
}

// call(data) is the kernel with its arguments. The first error of any thread is thrown from here.
inline void run(const Launch& launch, void (*call)(void*), void* data) {
  const std::lock_guard<std::mutex> one_launch(engine.mutex);
  check_launch(launch);
  engine.order = read_order();
  engine.launch = launch;
  engine.call = call;
  engine.data = data;
  engine.failed = false;
#if defined(DECOCT_TSAN)
  engine.launcher.history = __tsan_get_current_fiber();
#endif
  const std::vector<int> blocks = order_blocks((int)launch.blocks);
  // Only the addresses are used.
  engine.orders = (char*)std::malloc(kRaces ? launch.blocks * 2 * (1 + kMaxThreads / 32) : 1);
  for (size_t i = 0; i < blocks.size() && !engine.failed; ++i) {
    engine.block_index = blocks[i];
    run_block();
  }
  acquire(&engine.done);
  std::free(engine.orders);
  destroy_histories();
  if (engine.failed) std::rethrow_exception(std::exchange(engine.error, nullptr));
}

}  // namespace decoct::cuda::emulation
