// Memory as PTX sees it: addresses to host pointers, loads and stores, and the accesses that synchronise. This header
// is compiled with the sanitizer of the mode, so that every access of the kernel is one that the sanitizer sees.
//
//   address            shared window: offset in the block's shared memory; bits 24 and up hold 1 + the rank in the
//   cluster.
//                      Generic and global: a host address. Local window: offset in the thread's local memory.
//   mode plain         every access is checked here: against the arguments, the size of shared and of local memory
//   mode thread        the same, in the runtime, which ThreadSanitizer does not watch
//   mode address       global memory is left to AddressSanitizer, which knows the bounds of every argument, but for
//   read-only memory
#pragma once
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "numeric.h"
#include "warp.h"

// Clang says with a feature what GCC says with a macro.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

namespace ptx {

using simt::fail;
using simt::Thread;

template <bool write>
inline char* global(Thread& t, u64 address, u32 size, u32 align, int line) {
#if defined(__SANITIZE_ADDRESS__)
  if (address % align)
    fail(t, line, "misaligned access of %u bytes at address 0x%llx", size, (unsigned long long)address);
  if (write) simt::check_writable(t, address, size, line);
  return reinterpret_cast<char*>(address);
#elif defined(__SANITIZE_THREAD__)
  return simt::find_global(t, address, size, align, write, line);
#else
  const simt::Window& window = write ? simt::write_window : simt::read_window;
  if (__builtin_expect(window.size >= size && address - window.base <= window.size - size && !(address & (align - 1)),
                       1))
    return reinterpret_cast<char*>(address);
  return simt::find_global(t, address, size, align, write, line);
#endif
}

inline char* shared(Thread& t, u64 address, u32 size, u32 align, int line) {
  if (__builtin_expect(address <= t.shared_size && size <= t.shared_size - address && !(address & (align - 1)), 1))
    return t.shared + address;
  return simt::find_shared(t, address, size, align, line);
}

inline char* local(Thread& t, u64 address, u32 size, u32 align, int line) {
  if (address + size > t.local.size || address + size < size)
    fail(t, line, "access of %u bytes out of bounds: byte %lld of local memory, which has %llu", size,
         (long long)address, (unsigned long long)t.local.size);
  if (address & (align - 1))
    fail(t, line, "misaligned access of %u bytes: byte %llu of local memory", size, (unsigned long long)address);
  return t.local.base + address;
}

// A parameter that is reached by an address in a register.
struct Span {
  const void* base;
  u64 size;
};
inline char* parameter(Thread& t, u64 address, u32 size, std::initializer_list<Span> spans, int line) {
  for (auto& span : spans) {
    u64 offset = address - reinterpret_cast<u64>(span.base);
    if (offset <= span.size && size <= span.size - offset) return reinterpret_cast<char*>(address);
  }
  fail(t, line, "access of %u bytes out of bounds of every parameter", size);
}

inline bool is_shared(Thread& t, u64 address) { return address - reinterpret_cast<u64>(t.shared) < t.shared_size; }
inline bool is_local(Thread& t, u64 address) {
  for (const simt::Frame* frame = &t.local; frame; frame = frame->caller)
    if (address - reinterpret_cast<u64>(frame->base) < frame->size) return true;
  return false;
}

template <bool write>
inline char* generic(Thread& t, u64 address, u32 size, u32 align, int line) {
  u64 offset = address - reinterpret_cast<u64>(t.shared);
  if (offset < t.shared_size) return shared(t, offset, size, align, line);
#if defined(__SANITIZE_ADDRESS__)
  if (is_local(t, address)) return simt::find_generic(t, address, size, align, write, line);
  return global<write>(t, address, size, align, line);
#else
  return simt::find_generic(t, address, size, align, write, line);
#endif
}

// The local memory of one function call, from its beginning to its end.
template <u32 size>
struct LocalMemory {
  alignas(64) char bytes[size];
  simt::Frame caller;
  Thread& thread;
  explicit LocalMemory(Thread& t) : caller(t.local), thread(t) {
    for (char& byte : bytes) byte = char(-1);
    t.local = {bytes, size, &caller};
  }
  ~LocalMemory() { thread.local = caller; }
};

inline u64 shared_to_generic(Thread& t, u64 address, int line) {
  if (address >> 24) return reinterpret_cast<u64>(simt::find_shared(t, address, 0, 1, line));
  return reinterpret_cast<u64>(t.shared) + address;
}
// ---- plain accesses

template <class T>
inline T load(const char* place) {
  T value;
  value = *reinterpret_cast<const T*>(place);
  return value;
}

#if defined(__SANITIZE_THREAD__)
template <class T>
[[gnu::noinline, gnu::no_sanitize("thread")]] bool already_there(const char* place, T value) {
  return *reinterpret_cast<const volatile T*>(place) == value;
}
#endif

// A store of the value that is there already is not a race: compilers write replicated elements from several threads.
template <class T>
inline void store(char* place, T value) {
#if defined(__SANITIZE_THREAD__)
  if (already_there<T>(place, value)) return;
#endif
  *reinterpret_cast<T*>(place) = value;
}

// ---- accesses that synchronise

enum Order : u8 { kRelaxed = 0, kAcquire = 1, kRelease = 2, kBoth = 3 };

// A mutant orders nothing, or only for its block (mutate.py).
inline Order weakened(int site, Order order) { return simt::mutant == site ? kRelaxed : order; }
inline simt::Scope narrowed(int site, simt::Scope scope) { return simt::mutant == site ? simt::kBlock : scope; }

template <class T>
inline T load_ordered(Thread& t, const char* place, Order order, simt::Scope scope, int line) {
  auto* p = reinterpret_cast<const T*>(place);
  T value;
  if (order & kAcquire) {
    value = __atomic_load_n(p, __ATOMIC_ACQUIRE);
    simt::acquires(t, p, scope, line);
  } else {
    value = __atomic_load_n(p, __ATOMIC_RELAXED);
    simt::relaxed_loaded(t, p, scope);
  }
  simt::polled(t, place, u64(value), line);
  return value;
}

template <class T>
inline void store_ordered(Thread& t, char* place, Order order, simt::Scope scope, T value) {
  auto* p = reinterpret_cast<T*>(place);
  if (order & kRelease) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
  } else {
    simt::relaxed_stored(t, p);
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
  }
  simt::releases(t, p, scope, order & kRelease, false);
  simt::wrote(t, place);
}

// Reads, computes and writes as one: `update` maps the old word to the new one. Whoever does not ask for the old word
// (`red`) does not wait for it.
template <class W, bool asks, class F>
inline W modify(Thread& t, char* place, Order order, simt::Scope scope, int line, F update) {
  auto* p = reinterpret_cast<W*>(place);
  W old = __atomic_load_n(p, __ATOMIC_RELAXED), wanted = update(old);
  // Nothing can come between on one OS thread; the exchange tells ThreadSanitizer what is ordered.
  switch (order) {
    case kRelaxed:
      simt::relaxed_stored(t, p);
      __atomic_exchange_n(p, wanted, __ATOMIC_RELAXED);
      simt::relaxed_loaded(t, p, scope);
      break;
    case kAcquire:
      simt::relaxed_stored(t, p);
      __atomic_exchange_n(p, wanted, __ATOMIC_ACQUIRE);
      break;
    case kRelease:
      __atomic_exchange_n(p, wanted, __ATOMIC_RELEASE);
      simt::relaxed_loaded(t, p, scope);
      break;
    default:
      __atomic_exchange_n(p, wanted, __ATOMIC_ACQ_REL);
      break;
  }
  if (order & kAcquire) simt::acquires(t, p, scope, line);
  simt::releases(t, p, scope, order & kRelease, true);
  if (wanted != old)
    simt::wrote(t, place);
  else if (asks)
    simt::polled(t, place, u64(old), line);
  return old;
}

template <class T>
inline raw_t<T> atom_add(raw_t<T> a, raw_t<T> b) {
  if constexpr (is_pair<T> || is_real<T>)
    return add_real<T, 0, kNear>(a, b);
  else
    return add<T>(a, b);
}
template <class T>
inline raw_t<T> atom_min(raw_t<T> a, raw_t<T> b) {
  if constexpr (is_pair<T> || is_real<T>)
    return min_real<T, 0, kNear>(a, b);
  else
    return min<T>(a, b);
}
template <class T>
inline raw_t<T> atom_max(raw_t<T> a, raw_t<T> b) {
  if constexpr (is_pair<T> || is_real<T>)
    return max_real<T, 0, kNear>(a, b);
  else
    return max<T>(a, b);
}
template <class T>
inline raw_t<T> atom_and(raw_t<T> a, raw_t<T> b) {
  return a & b;
}
template <class T>
inline raw_t<T> atom_or(raw_t<T> a, raw_t<T> b) {
  return a | b;
}
template <class T>
inline raw_t<T> atom_xor(raw_t<T> a, raw_t<T> b) {
  return a ^ b;
}
template <class T>
inline raw_t<T> atom_exch(raw_t<T>, raw_t<T> b) {
  return b;
}
template <class T>
inline raw_t<T> atom_inc(raw_t<T> a, raw_t<T> b) {
  return a >= b ? 0 : raw_t<T>(a + 1);
}
template <class T>
inline raw_t<T> atom_dec(raw_t<T> a, raw_t<T> b) {
  return a == 0 || a > b ? b : raw_t<T>(a - 1);
}

// ---- copies that land later

// Until it lands, the destination holds NaN, and both places count as used: whoever reads the one or writes the other
// between request and wait is found. So is, by what lies there when it lands, whoever has written to the destination.
inline void copy_async(Thread& t, char* to, const char* from, u32 size, u32 read) {
  if (read > size) read = size;
  for (u32 i = 0; i < size; i += 4) *reinterpret_cast<volatile u32*>(to + i) = ~0u;
  for (u32 i = 0; i + 4 <= read; i += 4) (void)*reinterpret_cast<const volatile u32*>(from + i);
  simt::copy_later(t, {to, from, read, size - read, 0});
}
inline void land(Thread& t, const simt::Copy& copy, int line) {
  const u32 size = copy.size + copy.zeros;
  for (u32 at = 0; at < size; at += 4) {
    u32 is, becomes = 0;
    memcpy(&is, copy.to + at, 4);
    for (u32 i = at; i < at + 4 && i < copy.size; i++) reinterpret_cast<char*>(&becomes)[i - at] = copy.from[i];
    if (is != ~0u && is != becomes)
      fail(t, line, "a place of shared memory was written while a copy of %u bytes was on its way there", size);
  }
  for (u32 i = 0; i < copy.size; i++) copy.to[i] = copy.from[i];
  for (u32 i = 0; i < copy.zeros; i++) copy.to[copy.size + i] = 0;
}
inline void copies_wait(Thread& t, u64 keep, int line) {
  simt::Copy copy;
  while (simt::next_copy(t, keep, copy)) land(t, copy, line);
}

// ---- ldmatrix, stmatrix

inline simt::Words ldmatrix(Thread& t, u64 address, int count, bool transposed, int line) {
  u64 row = t.lane < 8u * u32(count) ? reinterpret_cast<u64>(shared(t, address, 16, 16, line)) : 0;
  simt::Rows rows = simt::matrix_rows(t, row, transposed, line);
  simt::Words words{};
  for (int j = 0; j < count; j++) {
    if (transposed) {
      auto low = reinterpret_cast<const u16*>(rows.at[2 * j]), high = reinterpret_cast<const u16*>(rows.at[2 * j + 1]);
      words.x[j] = u32(low[t.lane / 4]) | u32(high[t.lane / 4]) << 16;
    } else {
      words.x[j] = reinterpret_cast<const u32*>(rows.at[j])[t.lane % 4];
    }
  }
  return words;
}
inline void stmatrix(Thread& t, u64 address, int count, bool transposed, int line, u32 a, u32 b = 0, u32 c = 0,
                     u32 d = 0) {
  u64 row = t.lane < 8u * u32(count) ? reinterpret_cast<u64>(shared(t, address, 16, 16, line)) : 0;
  simt::Rows rows = simt::matrix_rows(t, row, transposed, line);
  u32 words[4] = {a, b, c, d};
  for (int j = 0; j < count; j++) {
    if (transposed) {
      store<u16>(reinterpret_cast<char*>(rows.at[2 * j] + t.lane / 4 * 2), u16(words[j]));
      store<u16>(reinterpret_cast<char*>(rows.at[2 * j + 1] + t.lane / 4 * 2), u16(words[j] >> 16));
    } else {
      store<u32>(reinterpret_cast<char*>(rows.at[j] + t.lane % 4 * 4), words[j]);
    }
  }
}

// ---- mbarrier

// The object in shared memory is written by init and read by everything else, so that use before init is a race.
inline const void* mbarrier_use(Thread& t, char* place) {
#if defined(__SANITIZE_THREAD__)
  if (!simt::mbarrier_known(t, place)) (void)__atomic_load_n(reinterpret_cast<u64*>(place), __ATOMIC_RELAXED);
#endif
  (void)t;
  return place;
}
inline void mbarrier_init(Thread& t, char* place, u32 count, int line) {
  simt::mbarrier_init(t, place, count, line);
  *reinterpret_cast<volatile u64*>(place) = count;
}

}  // namespace ptx
