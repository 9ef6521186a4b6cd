#include "parallel.h"

#include <pthread.h>

#include <atomic>

#if defined(DECOCT_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace decoct::cpu {
namespace {

std::atomic<bool> forked{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

void parallel_for(int64_t tasks, int threads, void* context, TaskFunction run, Share share) {
  if (threads > tasks) threads = (int)tasks;
  if (threads <= 1 || forked || registered != 0) {
    for (int64_t task = 0; task < tasks; ++task) run(context, task, 0);
    return;
  }
#if defined(DECOCT_STD_THREADS)
  std::atomic<int64_t> next{0};
  auto work = [&](int worker) {
    if (share == Share::numbered)
      for (int64_t task = worker; task < tasks; task += threads) run(context, task, worker);
    else
      for (int64_t task; (task = next++) < tasks;) run(context, task, worker);
  };
  std::vector<std::thread> team;
  for (int worker = 1; worker < threads; ++worker) team.emplace_back(work, worker);
  work(0);
  for (std::thread& member : team) member.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  {
    const int worker = omp_get_thread_num();
    if (share == Share::numbered) {
#pragma omp for schedule(static, 1)
      for (int64_t task = 0; task < tasks; ++task) run(context, task, worker);
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < tasks; ++task) run(context, task, worker);
    }
  }
#else
  (void)share;
  for (int64_t task = 0; task < tasks; ++task) run(context, task, 0);
#endif
}

}  // namespace decoct::cpu
