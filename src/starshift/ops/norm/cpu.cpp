// SPDX-License-Identifier: Apache-2.0
// Batch norm, an optional tensor added to it, and the activation after it: channels last.
//
//     z = (x - mean) * scale + bias [+ residual]     out = act(z) [+ shortcut]     scale = weight / sqrt(var + eps)
//
// Forward reads x twice (statistics, then result), backward reads (grad, x) twice (two sums a channel, then result);
// z and the activation's mask are computed again from x. Sums are float32 over a block and double over blocks. The
// second pass goes from the end to the beginning: what the first read last may still lie in the cache.
#include <cmath>

#include "activation.h"
#include "pixels.h"

namespace {

// What one channel needs, spread over a line.
struct Affine {
    const float *mean, *scale, *bias;

    Affine(const Pixels& p, float* space, const float* mean, const float* var, const float* weight, const float* bias,
           float eps)
        : mean(space), scale(space + p.width), bias(space + 2 * p.width) {
        p.spread(space, [&](int64_t c) { return mean[c]; });
        p.spread(space + p.width, [&](int64_t c) { return (weight ? weight[c] : 1.0f) / std::sqrt(var[c] + eps); });
        p.spread(space + 2 * p.width, [&](int64_t c) { return bias ? bias[c] : 0.0f; });
    }
};

// Two sums of every place of a line, by thread, zero at first; `total` adds them up, in order.
struct Sums {
    const Pixels& pixels;
    Scratch space;

    explicit Sums(const Pixels& p) : pixels(p), space(p.threads * p.width * 4) {
        memset(space, 0, p.threads * p.width * 16);
    }
    double* first(int64_t thread) { return (double*)(float*)space + thread * 2 * pixels.width; }
    double* second(int64_t thread) { return first(thread) + pixels.width; }
    template <class F>
    void total(const F& f) {
        for (int64_t c = 0; c < pixels.channels; c++) {
            double a = 0, b = 0;
            for (int64_t t = 0; t < pixels.threads; t++)
                for (int64_t i = c; i < pixels.width; i += pixels.channels) a += first(t)[i], b += second(t)[i];
            f(c, a, b);
        }
    }
};

// sum += d and square += d * d with d = x - center.
template <class T>
void deviations(const T* x, Range values, int64_t width, const float* center, float* sum, float* square) {
    each_line(values, width, [=](auto whole, int64_t begin, int64_t n) {
        for (int64_t i = 0; i < n; i += VL) {
            int m = whole.value || n - i > VL ? VL : (int)(n - i);
            vf d = load_n(x + begin + i, m) - load_n(center + i, m);
            store(sum + i, load(sum + i) + d);
            store(square + i, load(square + i) + d * d);
        }
    });
}

// Mean and (biased) variance of every channel, in one pass. Deviations are from the mean of the block before, the first
// block's from its own: the squares that cancel are then at most a few times the variance, whatever the mean.
template <class T>
void moments(const Pixels& p, const T* x, float* mean, float* var) {
    Sums sums(p);
    parallel(p.threads, [&](int64_t thread, int64_t threads) {
        Scratch center(p.width), sum(p.width), square(p.width);
        double *first = sums.first(thread), *second = sums.second(thread);
        auto block = [&](Range values, bool counts) {
            memset(sum, 0, p.width * 4);
            memset(square, 0, p.width * 4);
            deviations<T>(x, values, p.width, center, sum, square);
            int64_t whole = (values.end - values.begin) / p.width, rest = (values.end - values.begin) % p.width;
            for (int64_t i = 0; i < p.width; i++) {
                double n = whole + (i < rest), c = center[i], s = sum[i];
                if (counts) {
                    first[i] += s + n * c;
                    second[i] += square[i] + c * (2 * s + n * c);
                }
                float next = (float)(c + s / n);
                center[i] = std::isfinite(next) ? next : 0.0f;
            }
        };
        memset(center, 0, p.width * 4);
        Range mine = share(p.blocks(), thread, threads);
        if (mine.begin == mine.end) return;
        Range opening = p.block(mine.begin);
        block({opening.begin, opening.begin + p.width < opening.end ? opening.begin + p.width : opening.end}, false);
        block(opening, false);
        for (int64_t b = mine.begin; b < mine.end; b++) block(p.block(b), true);
    });
    sums.total([&](int64_t c, double a, double b) {
        double average = a / p.count, v = b / p.count - average * average;
        mean[c] = (float)average;
        var[c] = v < 0 ? 0.0f : (float)v;
    });
}

// f(blocks' values) for every block, shared out, from the end to the beginning.
template <class F>
void backwards(const Pixels& p, const F& f) {
    parallel(p.threads, [&](int64_t thread, int64_t threads) {
        Range mine = share(p.blocks(), thread, threads);
        for (int64_t b = mine.end; b-- > mine.begin;) f(p.block(b));
    });
}

template <class Act, bool ADDED, class T>
void forward(const Pixels& p, const T* x, const T* residual, const T* shortcut, Affine affine, T* out) {
    const int64_t width = p.width;
    backwards(p, [=](Range values) {
        each_line(values, width, [=](auto whole, int64_t begin, int64_t n) {
            for (int64_t i = 0; i < n; i += VL) {
                int m = whole.value || n - i > VL ? VL : (int)(n - i);
                vf mean = load(affine.mean + i), scale = load(affine.scale + i), bias = load(affine.bias + i);
                vf z = (load_n(x + begin + i, m) - mean) * scale + bias;
                if (ADDED) z += load_n(residual + begin + i, m);
                vf result = Act::forward(z);
                if (shortcut) result += load_n(shortcut + begin + i, m);
                store_n(out + begin + i, result, m);
            }
        });
    });
}

// sum = gradient of z, summed; dot = gradient of z times (x - mean), summed.
template <class Act, bool ADDED, class T>
void reduce(const Pixels& p, const T* grad, const T* x, const T* residual, Affine affine, Sums& sums) {
    parallel(p.threads, [&](int64_t thread, int64_t threads) {
        Scratch sum_space(p.width), dot_space(p.width);
        float *sum = sum_space, *dot = dot_space;
        const int64_t width = p.width;
        double *first = sums.first(thread), *second = sums.second(thread);
        Range mine = share(p.blocks(), thread, threads);
        for (int64_t b = mine.begin; b < mine.end; b++) {
            memset(sum, 0, p.width * 4);
            memset(dot, 0, p.width * 4);
            each_line(p.block(b), width, [=](auto whole, int64_t begin, int64_t n) {
                for (int64_t i = 0; i < n; i += VL) {
                    int m = whole.value || n - i > VL ? VL : (int)(n - i);
                    vf mean = load_n(affine.mean + i, m), scale = load(affine.scale + i), bias = load(affine.bias + i);
                    vf deviation = load_n(x + begin + i, m) - mean, z = deviation * scale + bias;
                    if (ADDED) z += load_n(residual + begin + i, m);
                    vf g = Act::backward(load_n(grad + begin + i, m), z);
                    store(sum + i, load(sum + i) + g);
                    store(dot + i, load(dot + i) + g * deviation);
                }
            });
            for (int64_t i = 0; i < p.width; i++) first[i] += sum[i], second[i] += dot[i];
        }
    });
}

// x_grad = scale * g + slope * (x - mean) + offset with g, the gradient of z, which is the residual's.
template <class Act, bool ADDED, class T>
void distribute(const Pixels& p, const T* grad, const T* x, const T* residual, Affine affine, const float* slope,
                const float* offset, bool training, T* x_grad, T* residual_grad) {
    const int64_t width = p.width;
    backwards(p, [=](Range values) {
        each_line(values, width, [=](auto whole, int64_t begin, int64_t n) {
            for (int64_t i = 0; i < n; i += VL) {
                int m = whole.value || n - i > VL ? VL : (int)(n - i);
                vf mean = load(affine.mean + i), scale = load(affine.scale + i), bias = load(affine.bias + i);
                vf a = load(slope + i), b = load(offset + i);
                vf deviation = load_n(x + begin + i, m) - mean, z = deviation * scale + bias;
                if (ADDED) z += load_n(residual + begin + i, m);
                vf g = Act::backward(load_n(grad + begin + i, m), z);
                if (ADDED) store_n(residual_grad + begin + i, g, m);
                g *= scale;
                if (training) g += deviation * a + b;
                store_n(x_grad + begin + i, g, m);
            }
        });
    });
}

template <class F>
void choose(int64_t dtype, int64_t act, bool added, const F& f) {
    with_activation(act, [&](auto a) {
        if (dtype == 0) return added ? f(a, std::true_type{}, float{}) : f(a, std::false_type{}, float{});
        return added ? f(a, std::true_type{}, bf16{}) : f(a, std::false_type{}, bf16{});
    });
}

}  // namespace

// x, residual and shortcut (or null), out: (count, channels); weight, bias (or null), mean, var: (channels), the last two written
// when training.
API void starshift_batch_norm_act_forward(const void* x, const void* residual, const void* shortcut,
                                          const float* weight, const float* bias,
                                          float* mean, float* var, void* out, int64_t dtype, int64_t count,
                                          int64_t channels, float eps, int64_t act, int64_t training, int64_t threads) {
    Pixels p(count, channels, threads);
    if (training && dtype == 0) moments(p, (const float*)x, mean, var);
    if (training && dtype == 1) moments(p, (const bf16*)x, mean, var);
    Scratch space(3 * p.width);
    Affine affine(p, space, mean, var, weight, bias, eps);
    choose(dtype, act, residual, [&](auto a, auto added, auto t) {
        using T = decltype(t);
        forward<decltype(a), added.value>(p, (const T*)x, (const T*)residual, (const T*)shortcut, affine, (T*)out);
    });
}

API void starshift_batch_norm_act_backward(const void* grad, const void* x, const void* residual, const float* weight,
                                           const float* bias, const float* mean, const float* var, void* x_grad,
                                           void* residual_grad, float* weight_grad, float* bias_grad, int64_t dtype,
                                           int64_t count, int64_t channels, float eps, int64_t act, int64_t training,
                                           int64_t threads) {
    Pixels p(count, channels, threads);
    Scratch space(3 * p.width);
    Affine affine(p, space, mean, var, weight, bias, eps);
    Scratch slope(p.width), offset(p.width);
    choose(dtype, act, residual, [&](auto a, auto added, auto t) {
        using T = decltype(t);
        using Act = decltype(a);
        Sums sums(p);
        reduce<Act, added.value>(p, (const T*)grad, (const T*)x, (const T*)residual, affine, sums);
        sums.total([&](int64_t c, double sum, double dot) {
            double inverse = 1 / std::sqrt((double)var[c] + eps);
            bias_grad[c] = (float)sum;
            weight_grad[c] = (float)(dot * inverse);
            slope[c] = (float)(-affine.scale[c] * inverse * inverse * dot / count);
            offset[c] = (float)(-affine.scale[c] * sum / count);
        });
        p.spread(slope, [&](int64_t c) { return slope[c]; });
        p.spread(offset, [&](int64_t c) { return offset[c]; });
        distribute<Act, added.value>(p, (const T*)grad, (const T*)x, (const T*)residual, affine, slope, offset,
                                     training, (T*)x_grad, (T*)residual_grad);
    });
}
