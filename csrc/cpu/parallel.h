// The one seam to threads: run(context, task, worker) for every task, each exactly once, in any order.
// Two bodies: OpenMP (shipped; shares torch's runtime) and std::thread (DECOCT_STD_THREADS, for the race
// checker).
#pragma once
#include <cstdint>

namespace decoct::cpu {

using TaskFunction = void (*)(void* context, int64_t task, int worker);

// Who takes a task: the worker that is free, or by the task's number, so that in calls that follow one
// another a worker finds in its cache what it left there.
enum class Share { free, numbered };

// Serial for one task, one thread, or in a forked child, where the parent's workers do not exist.
void parallel_for(int64_t tasks, int threads, void* context, TaskFunction run, Share share = Share::free);

// task(number, worker) for all of them.
template <class Task>
static inline void for_tasks(int64_t tasks, int threads, const Task& task, Share share = Share::free) {
  const auto run = [](void* context, int64_t number, int worker) { (*(const Task*)context)(number, worker); };
  parallel_for(tasks, threads, (void*)&task, run, share);
}

}  // namespace decoct::cpu

namespace decoct {
using cpu::for_tasks;
}
