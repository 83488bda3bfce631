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

  __device__ __forceinline__ void load(const Cursor<Storage, N>& from) {
    *this = from.template load_words<Words>();
    forget();
  }
  __device__ __forceinline__ void store(const Cursor<Storage, N>& to) const { to.store_words(*this); }
  // The numbers in the storage type.
  static __device__ __forceinline__ Words of(const Pack<State<Storage>, N>& numbers) {
    Words words;
#if SEWSNN_PAIRS
    if constexpr (sizeof(Storage) == 2 && N % 2 == 0) {
      SEWSNN_UNROLL
      for (int j = 0; j < N / 2; ++j) words.at[j] = encode_pair(Storage(), numbers.at[2 * j], numbers.at[2 * j + 1]);
      return words;
    }
#endif
    const Pack<Storage, N> pack = store_<Storage>(numbers);
    memcpy(words.at, &pack, kBytes);
    return words;
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
