// SPDX-License-Identifier: Apache-2.0
// Kernels that other kernels are made of, and how their weights are packed: declared here, so that all sides agree.
// dtype: 0 float32, 1 bfloat16.
#pragma once
#include "simd.h"

// A tensor as it is read: sample_scale[n] * (scale[c] * name + other_scale[c] * other + shift[c]); null leaves out.
#define SOURCE(name)                                                                                        \
    const void *name, const void *name##_other, const float *name##_scale, const float *name##_other_scale, \
        const float *name##_shift, const float *name##_sample_scale
#define PLAIN(name) name, nullptr, nullptr, nullptr, nullptr, nullptr

// sizes: N, C, H, W, Hout, Wout, then kernel, stride, padding and dilation, each vertical first. packed: what
// starshift_depthwise_pack_for made of weights (C, kernel) and bias for tensors of one dtype, so many floats.
API int64_t starshift_depthwise_packed_floats(int64_t dtype, const int64_t* sizes);
API void starshift_depthwise_pack_for(int64_t dtype, const int64_t* sizes, const float* weight, const float* bias,
                                      float* packed);
API void starshift_depthwise_forward(int64_t dtype, int64_t threads, const int64_t* sizes, SOURCE(x),
                                     const float* packed, void* out, const void* residual, const float* out_scale,
                                     const float* center, double* sums);

// M rows, C channels in, K hidden units, N channels out. Where N is C, out may be x. Packed for tensors of one dtype.
API int64_t starshift_star_mlp_packed_floats(int64_t dtype, int64_t C, int64_t K, int64_t N);
API void starshift_star_mlp_pack_for(int64_t dtype, int64_t C, int64_t K, int64_t N, const float* w1, const float* b1,
                                     const float* w2, const float* b2, const float* wg, const float* bg, float* packed,
                                     int64_t threads);
API void starshift_star_mlp_forward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, SOURCE(x),
                                    const float* packed, int64_t act, int64_t placement, void* out,
                                    const float* center, double* sums, int64_t threads);

// bytes: of an element, 2 or 4. last: channels last, else planes. offsets: runs of (channels, dy, dx).
API void starshift_shift2d(int64_t bytes, int64_t last, int64_t N, int64_t C, int64_t H, int64_t W, const void* x,
                           const int64_t* offsets, int64_t runs, void* out, int64_t threads);

// A dense convolution, bias and activation. sizes: N, C, H, W, K, Hout, Wout, then kernel, stride and padding.
// packed: by starshift_conv_pack_for, of weight (K, C, kh, kw) and bias for tensors of one dtype.
API int64_t starshift_conv_packed_floats(int64_t dtype, const int64_t* sizes);
API void starshift_conv_pack_for(int64_t dtype, const int64_t* sizes, const float* weight, const float* bias, float* packed);
API void starshift_conv_forward(int64_t dtype, int64_t threads, const int64_t* sizes, const void* x,
                                const float* packed, int64_t act, void* out);
