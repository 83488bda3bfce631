// A pack that stays in whole registers.
#pragma once

#include "core/access.h"
#include "core/dtype.h"

SEWSNN_BEGIN

// A pack in whole registers. Compilers give each 16-bit number of a pack that they carry around a loop a register of
// its own; the empty asm hides from them that the words are made of such numbers.
template <class Storage, int N>
struct Words {
  static constexpr int kBytes = sizeof(Storage) * N;
  using Word = std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>;
  Word at[kBytes / sizeof(Word)];

  __device__ __forceinline__ void set(const Pack<Storage, N>& pack) {
    memcpy(at, &pack, kBytes);
    forget();
  }
  __device__ __forceinline__ Pack<Storage, N> pack() const {
    Pack<Storage, N> numbers;
    memcpy(&numbers, at, kBytes);
    return numbers;
  }
  // The j-th number in the state's type.
  __device__ __forceinline__ State<Storage> number(int j) const {
    if constexpr (std::is_same_v<Storage, BFloat16> && sizeof(Word) == 4) {  // one instruction instead of two
      return bit_cast_<float>(j % 2 == 0 ? at[j / 2] << 16 : at[j / 2] & 0xffff0000u);
    } else {
      return load_(pack().at[j]);
    }
  }

  // Where the compiler needs what it has computed from the numbers before, it will compute it again instead of keeping
  // it in a register.
  __device__ __forceinline__ void forget() {
#if defined(__CUDA_ARCH__)
    SEWSNN_UNROLL
    for (int i = 0; i < int(kBytes / sizeof(Word)); ++i) {
      if constexpr (sizeof(Word) == 4) {
        asm("" : "+r"(at[i]));
      } else {
        asm("" : "+h"(at[i]));
      }
    }
#endif
  }
};

SEWSNN_END
