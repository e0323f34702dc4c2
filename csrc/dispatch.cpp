#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace wavenet {

namespace portable {
extern const Kernels kernels;
}
namespace portable16 {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#endif

namespace {

#if defined(__x86_64__)
struct Cpu {
  bool avx2 = false, avx512 = false, avx512bf16 = false;

  // Intel SDM vol. 1, 14.3 and 15.2: the CPU's feature bits, and the registers that the operating system saves.
  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1;
    if (!osxsave || !avx) return;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool saves_ymm = (low & 0x6) == 0x6, saves_zmm = (low & 0xE6) == 0xE6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned subleaves = a;
    avx2 = fma && saves_ymm && (b >> 5 & 1);
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    avx512 = avx2 && saves_zmm && f && dq && bw && vl;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avx512bf16 = avx512 && (a >> 5 & 1);
  }
};
#endif

std::vector<Isa> list() {
  std::vector<Isa> all = {
      {&portable16::kernels, true, "nothing; the 16-lane layout of AVX-512 for tests", false},
      {&portable::kernels, true, "nothing", true},
  };
#if defined(__x86_64__)
  const Cpu cpu;
  all.push_back({&avx2::kernels, cpu.avx2, "AVX2 and FMA", true});
  all.push_back({&avx512::kernels, cpu.avx512, "AVX-512 F, BW, VL, DQ", true});
  all.push_back({&avx512bf16::kernels, cpu.avx512bf16, "AVX-512 F, BW, VL, DQ, BF16", true});
#elif defined(__aarch64__)
  all.push_back({&neon::kernels, true, "64-bit ARM", true});
#endif
  return all;
}

}  // namespace

const std::vector<Isa>& instruction_sets() {
  static const std::vector<Isa> all = list();
  return all;
}

}  // namespace wavenet
