// Switching stacks: save the callee-saved registers and the stack pointer of one fiber, load those of another.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void wavenet_fast_switch(void** save, void* load);

namespace simt {
using Context = void*;

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  auto top = reinterpret_cast<void**>(stack + size);
#if defined(__x86_64__)
  *--top = nullptr;  // where a return address would lie: keeps the stack aligned as the ABI wants it at a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
#else
  for (int i = 0; i < 20; i++) *--top = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  context = top;
}
inline void change(Context& from, Context& to) { wavenet_fast_switch(&from, to); }
}  // namespace simt

#else

#include <ucontext.h>
namespace simt {
using Context = ucontext_t;
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
}  // namespace simt

#endif
