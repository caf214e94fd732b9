// SPDX-License-Identifier: Apache-2.0
// One pointwise convolution, and two with an activation between them, on rows (pixels) of channels. Tensors are of dtype 0
// float32 or 1 bfloat16; weights, biases (null: none) and their gradients are float32.
#include "conv.h"
#include "mlp.h"

// x (M, C), out (M, K), w (K, C).
API void starshift_pointwise_conv2d_forward(int64_t dtype, int64_t M, int64_t C, int64_t K, const void* x, const float* w,
                                            const float* bias, void* out, int64_t threads) {
    if (dtype == 0)
        conv_forward(M, C, K, (const float*)x, w, bias, (float*)out, threads);
    else
        conv_forward(M, C, K, (const bf16*)x, w, bias, (bf16*)out, threads);
}

// gx may be null: not wanted.
API void starshift_pointwise_conv2d_backward(int64_t dtype, int64_t M, int64_t C, int64_t K, const void* grad,
                                             const void* x, const float* w, void* gx, float* gw, float* gb,
                                             int64_t threads) {
    if (dtype == 0)
        conv_backward(M, C, K, (const float*)grad, (const float*)x, w, (float*)gx, gw, gb, threads);
    else
        conv_backward(M, C, K, (const bf16*)grad, (const bf16*)x, w, (bf16*)gx, gw, gb, threads);
}

// x (M, C), out and grad (M, N), w1 (K, C), w2 (N, K).
API void starshift_pointwise_mlp_forward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, const void* x,
                                         const float* w1, const float* b1, const float* w2, const float* b2,
                                         int64_t act, void* out, int64_t threads) {
    const Sizes s{M, C, K, N};
    if (dtype == 0)
        mlp_forward(s, (const float*)x, w1, b1, w2, b2, act, (float*)out, threads);
    else
        mlp_forward(s, (const bf16*)x, w1, b1, w2, b2, act, (bf16*)out, threads);
}

API void starshift_pointwise_mlp_backward(int64_t dtype, int64_t M, int64_t C, int64_t K, int64_t N, const void* grad,
                                          const void* x, const float* w1, const float* b1, const float* w2,
                                          int64_t act, void* gx, float* gw1, float* gb1, float* gw2, float* gb2,
                                          int64_t threads) {
    const Sizes s{M, C, K, N};
    if (dtype == 0)
        mlp_backward(s, (const float*)grad, (const float*)x, w1, b1, w2, act, (float*)gx, gw1, gb1, gw2, gb2, threads);
    else
        mlp_backward(s, (const bf16*)grad, (const bf16*)x, w1, b1, w2, act, (bf16*)gx, gw1, gb1, gw2, gb2, threads);
}
