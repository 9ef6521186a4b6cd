// Fibers for cuda_on_cpu.h: their stacks, the switch between them, and what sanitizers must be told of both.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DECOCT_ASAN
#endif
#if __has_feature(thread_sanitizer)
#define DECOCT_TSAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(DECOCT_ASAN)
#define DECOCT_ASAN
#endif
#if defined(__SANITIZE_THREAD__) && !defined(DECOCT_TSAN)
#define DECOCT_TSAN
#endif

#if defined(DECOCT_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DECOCT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_write_range(void* memory, unsigned long bytes);
}
// What the engine notes down is no memory of the kernel's: the race detector must not see it.
#define DECOCT_ENGINE __attribute__((no_sanitize("thread"))) inline
#else
#define DECOCT_ENGINE inline
#endif

#if defined(__x86_64__) && defined(__linux__) && !defined(DECOCT_UCONTEXT)
#define DECOCT_SWITCH_BY_HAND
// Stores the registers that a call keeps on the old stack and loads them from the new one. Not a function of
// C++: the compiler would deduce from its body which registers a call leaves alone.
asm(R"(
  .ifndef decoct_switch_stacks
  .pushsection .text
  .weak decoct_switch_stacks
  .hidden decoct_switch_stacks
  .type decoct_switch_stacks, @function
decoct_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size decoct_switch_stacks, . - decoct_switch_stacks
  .popsection
  .endif
)");
extern "C" void decoct_switch_stacks(void** old_top, void* new_top);
#else
#include <ucontext.h>
#endif

namespace decoct::cuda::emulation {

#if defined(DECOCT_TSAN)
constexpr bool kRaces = true;
// Memory that is made or thrown away in here is new to all fibers, not written by this one.
struct Unseen {
  Unseen() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
};
DECOCT_ENGINE void release(void* order) {
  __tsan_release(order);
}
DECOCT_ENGINE void acquire(void* order) {
  __tsan_acquire(order);
}
DECOCT_ENGINE void note_write(void* memory, unsigned long bytes) {
  __tsan_write_range(memory, bytes);
}
#else
constexpr bool kRaces = false;
struct Unseen {
  Unseen() {}
};
inline void release(void*) {}
inline void acquire(void*) {}
inline void note_write(void*, unsigned long) {}
#endif

constexpr size_t kStackBytes = 256 << 10;

struct Fiber {
  char* stack = nullptr;
  size_t bytes = 0;
  void *fake_stack = nullptr, *history = nullptr;  // the address and the race checker's
#if defined(DECOCT_SWITCH_BY_HAND)
  void* top = nullptr;
#else
  ucontext_t context;
#endif
};

// Stacks in one piece, each above a page that faults: the race checker forgets few large pieces faster than
// many small ones.
DECOCT_ENGINE size_t stack_pitch() {
  return kStackBytes + (size_t)sysconf(_SC_PAGESIZE);
}
DECOCT_ENGINE char* map_stacks(int count) {
  const Unseen unseen;
  const size_t pitch = stack_pitch();
  void* memory = mmap(nullptr, count * pitch, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  for (int i = 0; i < count; ++i) mprotect((char*)memory + i * pitch, pitch - kStackBytes, PROT_NONE);
  return (char*)memory;
}
DECOCT_ENGINE void unmap_stacks(char* memory, int count) {
  munmap(memory, count * stack_pitch());
}

// Lets the first switch to the fiber call `entry`, which never returns.
DECOCT_ENGINE void create(Fiber& fiber, char* stack, void (*entry)()) {
  fiber.stack = stack;
  fiber.bytes = kStackBytes;
#if defined(DECOCT_SWITCH_BY_HAND)
  // From the top: a return address where backtraces end, `entry`, six registers.
  void** top = (void**)(fiber.stack + kStackBytes) - 8;
  top[6] = (void*)entry;
  fiber.top = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

// First thing on a stack: comes from `origin`, whose bounds the address sanitizer tells.
inline void arrived([[maybe_unused]] Fiber& self, [[maybe_unused]] Fiber& origin) {
#if defined(DECOCT_ASAN)
  __sanitizer_finish_switch_fiber(self.fake_stack, (const void**)&origin.stack, &origin.bytes);
#endif
}

// Runs `to` until it switches back to `from`.
DECOCT_ENGINE void switch_fiber(Fiber& from, Fiber& to) {
#if defined(DECOCT_ASAN)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.bytes);
#endif
#if defined(DECOCT_TSAN)
  __tsan_switch_to_fiber(to.history, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(DECOCT_SWITCH_BY_HAND)
  decoct_switch_stacks(&from.top, to.top);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrived(from, to);
}

}  // namespace decoct::cuda::emulation
