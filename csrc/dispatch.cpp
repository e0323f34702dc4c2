#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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
namespace avx512vnni {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
namespace neondot {
extern const Kernels kernels;
}
#endif

namespace {

#if defined(__x86_64__)
// Tiles are 8 KiB of registers that Linux saves only for processes that have asked (Documentation/arch/x86/xstate.rst).
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

struct Cpu {
  bool avx2 = false, avx512 = false, avx512vnni = false, avx512bf16 = false, amx = false;

  // Intel SDM vol. 1, 14.3, 15.2 and 18.3: the CPU's feature bits, and the registers that the operating system saves.
  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1, f16c = c >> 29 & 1;
    if (!osxsave || !avx) return;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool saves_ymm = (low & 0x6) == 0x6, saves_zmm = (low & 0xE6) == 0xE6, saves_tiles = (low >> 17 & 3) == 3;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned subleaves = a;
    avx2 = fma && f16c && saves_ymm && (b >> 5 & 1);
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    avx512 = avx2 && saves_zmm && f && dq && bw && vl;
    avx512vnni = avx512 && (c >> 11 & 1);
    const bool tiles = saves_tiles && (d >> 24 & 1), tile_bf16 = d >> 22 & 1, tile_int8 = d >> 25 & 1;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avx512bf16 = avx512vnni && (a >> 5 & 1);
    amx = avx512bf16 && tiles && tile_bf16 && tile_int8 && may_use_tiles();
  }
};
#elif defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return false;
#endif
}
#endif

std::vector<Isa> list() {
  std::vector<Isa> all = {
      {&portable16::kernels, true, "nothing; the 16-lane layout of AVX-512 for tests", false},
      {&portable::kernels, true, "nothing", true},
  };
#if defined(__x86_64__)
  const Cpu cpu;
  all.push_back({&avx2::kernels, cpu.avx2, "AVX2, FMA and F16C", true});
  all.push_back({&avx512::kernels, cpu.avx512, "AVX-512 F, BW, VL, DQ", true});
  all.push_back({&avx512vnni::kernels, cpu.avx512vnni, "AVX-512 F, BW, VL, DQ, VNNI", true});
  all.push_back({&avx512bf16::kernels, cpu.avx512bf16, "AVX-512 F, BW, VL, DQ, VNNI, BF16", true});
  all.push_back({&amx::kernels, cpu.amx,
                 "AVX-512 BF16 and AMX tiles for bf16 and int8, and the kernel's permission to use them", true});
#elif defined(__aarch64__)
  all.push_back({&neon::kernels, true, "64-bit ARM", true});
  all.push_back({&neondot::kernels, has_dot_products(), "64-bit ARM with dot products of bytes (asimddp)", true});
#endif
  return all;
}

}  // namespace

const std::vector<Isa>& instruction_sets() {
  static const std::vector<Isa> all = list();
  return all;
}

}  // namespace wavenet
