// Switching stacks: save the callee-saved registers and the stack pointer of one fiber, load those of another.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void wavenet_fast_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.hidden wavenet_fast_switch
.globl wavenet_fast_switch
.type wavenet_fast_switch,@function
wavenet_fast_switch:
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
.size wavenet_fast_switch, .-wavenet_fast_switch
)");
#else
asm(R"(
.text
.hidden wavenet_fast_switch
.globl wavenet_fast_switch
.type wavenet_fast_switch,%function
wavenet_fast_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size wavenet_fast_switch, .-wavenet_fast_switch
)");
#endif

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
