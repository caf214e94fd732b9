// SPDX-License-Identifier: Apache-2.0
// What matrix products multiply: floats, or pairs of bfloat16 in one word of 32 bits where the machine adds up products of
// pairs. A word of a left operand holds columns 2i and 2i + 1 of a row, one of a right operand rows 2i and 2i + 1 of a
// column, so that a product of words is the same loop over half as many.
#pragma once
#include "simd.h"

#if VL == 16 && (defined(__AVX512BF16__) || defined(STARSHIFT_PAIRS))  // the second: for tests on any machine
#define HAS_PAIRS
#endif

struct Floats {
    using Stored = float;                 // what holds a number between two products without loss
    static constexpr bool PAIRS = false;  // then left and right operands are one
    static constexpr int64_t IN_WORD = 1;  // numbers
    static INLINE vf factor(const float* word) { return broadcast(*word); }
    static INLINE vf add_product(vf sum, vf a, vf b) { return sum + a * b; }
    static INLINE vf add_product(vf sum, const float* word, vf b) { return sum + broadcast(*word) * b; }
    static INLINE vf rounded(vf a) { return a; }  // to what is multiplied
};

#ifdef HAS_PAIRS
typedef float word_in_memory __attribute__((may_alias));  // written as two numbers

struct Pairs {
    using Stored = bf16;
    static constexpr bool PAIRS = true;
    static constexpr int64_t IN_WORD = 2;
    static INLINE vf ones() { return (vf)((vu){} + 0x3f803f80); }
#if defined(__AVX512BF16__)
    static INLINE vf factor(const float* word) { return (vf)_mm512_set1_ps(*(const word_in_memory*)word); }
    static INLINE vf add_product(vf sum, vf a, vf b) {
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    // Compilers load the factor by an instruction of its own, which costs a quarter of the speed where it is used once.
    static INLINE vf add_product(vf sum, const float* word, vf b) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*(const word_in_memory*)word));
        return sum;
    }
    static INLINE vf rounded(vf a) {
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)a)), 16);
    }
    // Two rows of a panel: as two lines of a left operand, and as one of a right one.
    static INLINE void join(vf even, vf odd, vf& left, vf& right) {
        left = (vf)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        right = paired(left);
    }
    // Sixteen numbers each as two lines of a left operand; the second may be null, and is zero then.
    static INLINE vf lines(const bf16* even, const bf16* odd) {
        const __m256i second = odd ? _mm256_loadu_si256((const __m256i*)odd) : (__m256i){};
        return (vf)_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)even)), second, 1);
    }
    // Two lines of a left operand as one of a right one.
    static INLINE vf paired(vf lines) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (vf)_mm512_permutexvar_epi16(order, (__m512i)lines);
    }
#else
    static INLINE vf factor(const float* word) {
        uint32_t bits;
        memcpy(&bits, word, 4);
        return (vf)((vu){} + bits);
    }
    static INLINE vf add_product(vf sum, vf a, vf b) {
        const vf low = (vf)((vu)a << 16) * (vf)((vu)b << 16);
        return sum + low + (vf)((vu)a & 0xffff0000) * (vf)((vu)b & 0xffff0000);
    }
    static INLINE vf add_product(vf sum, const float* word, vf b) { return add_product(sum, factor(word), b); }
    static INLINE vf rounded(vf a) {
        bf16 nearest[VL];
        store(nearest, a);
        return load(nearest);
    }
    static INLINE void join(vf even, vf odd, vf& left, vf& right) {
        bf16 lines[2 * VL];
        store(lines, even);
        store(lines + VL, odd);
        memcpy(&left, lines, sizeof left);
        right = paired(left);
    }
    static INLINE vf lines(const bf16* even, const bf16* odd) {
        bf16 both[2 * VL] = {};
        memcpy(both, even, VL * sizeof(bf16));
        if (odd) memcpy(both + VL, odd, VL * sizeof(bf16));
        vf result;
        memcpy(&result, both, sizeof result);
        return result;
    }
    static INLINE vf paired(vf both) {
        bf16 lines[2 * VL], words[2 * VL];
        memcpy(lines, &both, sizeof lines);
        for (int i = 0; i < VL; i++) words[2 * i] = lines[i], words[2 * i + 1] = lines[VL + i];
        memcpy(&both, words, sizeof both);
        return both;
    }
#endif
};
#endif

// What products of tensors stored as T multiply.
template <class T>
struct UnitFor {
    using type = Floats;
};
#ifdef HAS_PAIRS
template <>
struct UnitFor<bf16> {
    using type = Pairs;
};
#endif
template <class T>
using UnitOf = typename UnitFor<T>::type;

// Words of n numbers.
template <class Unit>
INLINE int64_t words(int64_t n) {
    return (n + Unit::IN_WORD - 1) / Unit::IN_WORD;
}

// Number `place` of a word.
template <class Unit>
INLINE void put_number(float* word, int64_t place, float value) {
    if constexpr (!Unit::PAIRS) {
        *word = value;
    } else {
        bf16 rounded;
        store1(&rounded, value);
        memcpy((char*)word + 2 * place, &rounded, 2);
    }
}
