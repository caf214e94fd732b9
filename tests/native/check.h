// SPDX-License-Identifier: Apache-2.0
// What every operator's driver needs: seeded random numbers, buffers without a byte to spare, storage types, and a check.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "units.h"

// Its own generator: the same cases with every compiler and library.
struct Random {
    uint64_t state = 1;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)(state >> 33);
    }
    int64_t below(int64_t n) { return next() % n; }
    int64_t between(int64_t a, int64_t b) { return a + below(b - a + 1); }
    template <size_t N>
    int64_t of(const int64_t (&choices)[N]) { return choices[below(N)]; }
    bool maybe() { return next() & 1; }
    double value() { return (double)next() / (1u << 30) - 1; }
};

inline uint16_t to_bf16(double a) {
    float f = (float)a;
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// A tensor in storage (dtype 0: float32, 1: bfloat16), in memory of exactly its size, aligned to lines of the cache where it
// consists of them, and its values as double.
struct Tensor {
    int64_t dtype;
    std::vector<double> values;
    void* data;

    Tensor(int64_t dtype, int64_t n) : dtype(dtype), values(n) {
        if (n * width() % 64 || posix_memalign(&data, 64, n * width())) data = malloc(n * width());
        memset(data, 0xff, n * width());  // NaN: what is not written shows
    }
    Tensor(int64_t dtype, int64_t n, Random& random) : Tensor(dtype, n) {
        for (int64_t i = 0; i < n; i++) {
            const double v = random.value();
            if (dtype) ((uint16_t*)data)[i] = to_bf16(v);
            else ((float*)data)[i] = (float)v;
        }
        read();
    }
    Tensor(const Tensor&) = delete;
    ~Tensor() { free(data); }
    void round() {  // a float32 tensor to what bfloat16 can hold
        for (size_t i = 0; i < values.size(); i++) {
            const uint32_t u = (uint32_t)to_bf16(values[i]) << 16;
            memcpy((float*)data + i, &u, 4);
        }
        read();
    }
    size_t width() const { return dtype ? 2 : 4; }
    float* floats() const { return (float*)data; }
    void read() {
        for (size_t i = 0; i < values.size(); i++) {
            float f;
            uint32_t u = dtype ? (uint32_t)((uint16_t*)data)[i] << 16 : ((uint32_t*)data)[i];
            memcpy(&f, &u, 4);
            values[i] = f;
        }
    }
};

// A random shift: runs of at most `most` channels, each by up to `far` pixels; and where each channel comes from.
struct Moves {
    std::vector<int64_t> offsets, dy, dx;
    Moves(Random& r, int64_t channels, int64_t far, int64_t most) {
        while ((int64_t)dy.size() < channels) {
            const int64_t run = std::min(r.between(1, most), channels - (int64_t)dy.size());
            offsets.insert(offsets.end(), {run, r.between(-far, far), r.between(-far, far)});
            dy.insert(dy.end(), run, offsets[offsets.size() - 2]);
            dx.insert(dx.end(), run, offsets.back());
        }
    }
    int64_t runs() const { return offsets.size() / 3; }
};

// Kernels that multiply pairs of bfloat16 (units.h) round what lies between tensors of it as they round the tensors.
#ifdef HAS_PAIRS
inline int64_t made_of(int64_t dtype) { return dtype; }
#else
inline int64_t made_of(int64_t) { return 0; }
#endif

// Relative root mean square error of what was computed; stops the program above what tests/tolerance.py allows.
inline void check(const char* what, const std::vector<double>& actual, const std::vector<double>& expected,
                  int64_t dtype, const char* where) {
    double error = 0, scale = 0;
    for (size_t i = 0; i < actual.size(); i++) {
        error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        scale += expected[i] * expected[i];
    }
    if (std::sqrt(error) <= (dtype ? TOLERANCE_BFLOAT16 : TOLERANCE_FLOAT32) * std::sqrt(scale)) return;
    printf("%s: relative error %g in %s\n", what, std::sqrt(error / scale), where);
    exit(1);
}

// Means are as exact as the deviations beside them.
inline void check_means(Tensor& actual, std::vector<double> expected, const std::vector<double>& var, const char* where) {
    actual.read();
    for (size_t i = 0; i < expected.size(); i++) {
        expected[i] += std::sqrt(var[i]);
        actual.values[i] += std::sqrt(var[i]);
    }
    check("mean", actual.values, expected, 0, where);
}

// source: the dtype that it was computed from.
inline void check(const char* what, Tensor& actual, const std::vector<double>& expected, int64_t source, const char* where) {
    actual.read();
    check(what, actual.values, expected, actual.dtype || source, where);
}
inline void check(const char* what, Tensor& actual, const std::vector<double>& expected, const char* where) {
    check(what, actual, expected, 0, where);
}
