// Where a fiber of the emulation stopped, and how to go on there.
//
// swapcontext asks the kernel for the signal mask each time, ten times the cost of the switch itself, and the address
// sanitizer then forgets what it knows of the whole stack, which costs four times that again. On x86-64 what a call
// must keep is kept by hand, and the sanitizer keeps what it knows.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

#if defined(__x86_64__)

struct Context {
  void* stack;
};

__attribute__((naked, noinline)) inline void switch_to(Context*, Context*) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

// `context` starts with `function`, which never returns, on the stack that ends before `top`.
inline void start_at(void (*function)(), char* top, [[maybe_unused]] size_t stack_bytes, Context& context) {
#if defined(__SANITIZE_ADDRESS__)
  // Of a fiber that stopped for good in the middle of a kernel, whose variables' surroundings are still out of bounds.
  __asan_unpoison_memory_region(top - stack_bytes, stack_bytes);
#endif
  // Six registers, then the function as the address to return to, at which the stack is as after a call.
  void** place = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) / 16 * 16 - 16);
  *place = reinterpret_cast<void*>(function);
  context.stack = place - 6;
}

#else

using Context = ucontext_t;

inline void switch_to(Context* from, Context* to) {
  swapcontext(from, to);
}

inline void start_at(void (*function)(), char* top, size_t stack_bytes, Context& context) {
  getcontext(&context);
  context.uc_stack = {top - stack_bytes, 0, stack_bytes};
  context.uc_link = nullptr;
  makecontext(&context, function, 0);
}

#endif

}  // namespace simt
