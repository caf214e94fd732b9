// SPDX-License-Identifier: Apache-2.0
// Vectors of float as wide as the instruction set that this file is compiled for, and bfloat16 storage.
//
// GCC's and clang's vector extensions: one source for AVX-512, AVX2, SSE2 and NEON. `a * b + c` becomes a fused
// multiply-add where there is one.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(STARSHIFT_VL)  // for tests: the widest vectors on any machine, in pieces
#define VL STARSHIFT_VL
#define REGISTERS 32
#elif defined(__AVX512F__)
#define VL 16  // floats in a vector
#define REGISTERS 32
#elif defined(__AVX2__)
#define VL 8
#define REGISTERS 16
#elif defined(__aarch64__)
#define VL 4
#define REGISTERS 32
#else
#define VL 4
#define REGISTERS 16
#endif

#define API extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));

struct bf16 {
    uint16_t bits;
};

INLINE vf broadcast(float a) { return a - (vf){}; }
INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
INLINE vf load(const bf16* p) { return (vf)(__builtin_convertvector((vh)(*(const vh_unaligned*)p), vu) << 16); }
INLINE void store(float* p, vf a) { *(vf_unaligned*)p = a; }
#if VL == 16 && defined(__AVX512BF16__)
INLINE void store(bf16* p, vf a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)a)); }
#else
INLINE void store(bf16* p, vf a) {  // to nearest, ties to even; NaN stays NaN
    vu u = (vu)a;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (vu)(a != a);
    rounded = (nan & ((u >> 16) | 0x40)) | (~nan & rounded);
    *(vh_unaligned*)p = __builtin_convertvector(rounded, vh);
}
#endif

INLINE float load1(const float* p) { return *p; }
INLINE float load1(const bf16* p) {
    uint32_t u = (uint32_t)p->bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
INLINE void store1(float* p, float a) { *p = a; }
INLINE void store1(bf16* p, float a) {
    uint32_t u;
    memcpy(&u, &a, 4);
    p->bits = a != a ? (uint16_t)((u >> 16) | 0x40) : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Past the caches, where there is a way: memory is then written without being read before. Of results of more bytes than
// LARGE it is taken that they leave the caches before they are read (tests choose another number). They begin with
// a line of the cache, so that lines written whole are aligned. A thread waits at its end.
#ifndef STARSHIFT_LARGE
#define STARSHIFT_LARGE (16 << 20)
#endif
constexpr int64_t LARGE = STARSHIFT_LARGE;
INLINE bool may_stream(const void* to, int64_t bytes) { return (uintptr_t)to % 64 == 0 && bytes > LARGE; }
#if VL == 16 && defined(__AVX512F__)
template <class V>
INLINE void stream(void* to, V value) {
    _mm512_stream_si512((__m512i*)to, (__m512i)value);
}
#elif VL == 8 && defined(__AVX2__)
template <class V>
INLINE void stream(void* to, V value) {
    _mm256_stream_si256((__m256i*)to, (__m256i)value);
}
#else
template <class V>
INLINE void stream(void* to, V value) {
    memcpy(to, &value, sizeof(V));
}
#endif
INLINE void wait_for_streams() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// The first n (1 .. VL) elements; the rest are zero, or are not touched. In loops n is the same again and again, so that
// masked loads, where there are some, cost no more than whole ones.
template <class T>
INLINE vf load_part(const T* p, int n) {
    vf a = {};
    for (int i = 0; i < n; i++) a[i] = load1(p + i);
    return a;
}
template <class T>
INLINE void store_part(T* p, vf a, int n) {
    for (int i = 0; i < n; i++) store1(p + i, a[i]);
}
#if VL == 16 && defined(__AVX512BW__) && defined(__AVX512VL__)
INLINE vf load_part(const float* p, int n) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1 << n) - 1), p); }
INLINE void store_part(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1 << n) - 1), (__m512)a); }
INLINE vf load_part(const bf16* p, int n) {
    return (vf)(__builtin_convertvector((vh)_mm256_maskz_loadu_epi16((__mmask16)((1 << n) - 1), p), vu) << 16);
}
INLINE void store_part(bf16* p, vf a, int n) {
    bf16 whole[VL];
    store(whole, a);
    _mm256_mask_storeu_epi16(p, (__mmask16)((1 << n) - 1), _mm256_loadu_si256((const __m256i*)whole));
}
#elif VL == 8 && defined(__AVX2__)
INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf load_part(const float* p, int n) { return (vf)_mm256_maskload_ps(p, first_lanes(n)); }
INLINE void store_part(float* p, vf a, int n) { _mm256_maskstore_ps(p, first_lanes(n), (__m256)a); }
#endif
template <class T>
INLINE vf load_n(const T* p, int n) {
    return n >= VL ? load(p) : load_part(p, n);
}
template <class T>
INLINE void store_n(T* p, vf a, int n) {
    if (n >= VL) return store(p, a);
    store_part(p, a, n);
}

// As torch: NaN goes through. Of two that do not compare an instruction gives the second.
#if VL == 16 && defined(__AVX512F__)
INLINE vf vmax0(vf a) { return (vf)_mm512_max_ps((__m512){}, (__m512)a); }
INLINE vf vmin(vf a, float top) { return (vf)_mm512_min_ps((__m512)broadcast(top), (__m512)a); }
#elif VL == 8 && defined(__AVX2__)
INLINE vf vmax0(vf a) { return (vf)_mm256_max_ps((__m256){}, (__m256)a); }
INLINE vf vmin(vf a, float top) { return (vf)_mm256_min_ps((__m256)broadcast(top), (__m256)a); }
#else
INLINE vf vmax0(vf a) { return (a < (vf){}) ? (vf){} : a; }
INLINE vf vmin(vf a, float top) {
    vf t = broadcast(top);
    return (a > t) ? t : a;
}
#endif
INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }

// f(0), f(1) .. f(N - 1), with constants for arguments: an array of vectors with constants for indices stays in registers,
// where a loop that is unrolled later would have left it in memory.
template <class F, int... I>
INLINE void each_of(std::integer_sequence<int, I...>, const F& f) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
INLINE void each(const F& f) {
    each_of(std::make_integer_sequence<int, N>{}, f);
}
#define LAMBDA(argument) [&](auto argument) __attribute__((always_inline))

INLINE float sum(vf a) {
    float s = 0;
    for (int i = 0; i < VL; i++) s += a[i];
    return s;
}
