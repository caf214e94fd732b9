// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, forward and gradients, of channels-last float32 or bfloat16 tensors; README.md has the method.
//
// The unit of work is a band of one image for one block of channels: its tile is filled once, then used for all taps.
#include "correlate.h"
#include "scratch.h"
#include "weight_gradient.h"

namespace depthwise {

struct Geometry {
    int64_t samples, channels, height, width, out_height, out_width;
    int64_t taps_y, taps_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;

    int64_t blocks() const { return ceil_div(channels, BLOCK); }
    int64_t taps() const { return taps_y * taps_x; }
    // Tile pixels that `outputs` along an axis read.
    int64_t reach_y(int64_t outputs) const { return (outputs - 1) * stride_y + (taps_y - 1) * dilation_y + 1; }
    int64_t reach_x(int64_t outputs) const { return (outputs - 1) * stride_x + (taps_x - 1) * dilation_x + 1; }
};

constexpr int64_t TILE_PIXELS = 3072;  // 192 KiB of float32: stays in the second-level cache beside input and output
constexpr int64_t MANY = 4;            // units of work a thread, at least, where an image can be cut

// How an output image is cut into bands, and how the work is counted.
struct Plan {
    int64_t bands_y, bands_x, units;
};

static Plan plan(const Geometry& g, int64_t threads, int64_t tile_pixels) {
    int64_t bands_x = 1, bands_y = 1;
    const int64_t items = g.samples * g.blocks();
    while (bands_x * 32 < g.out_width && g.reach_y(8) * g.reach_x(ceil_div(g.out_width, bands_x)) > tile_pixels) bands_x++;
    const int64_t across = g.reach_x(ceil_div(g.out_width, bands_x));
    while (bands_y * 8 < g.out_height && g.reach_y(ceil_div(g.out_height, bands_y)) * across > tile_pixels) bands_y++;
    while (bands_y * 8 < g.out_height && threads > 1 && items * bands_x * bands_y < MANY * threads) bands_y++;
    return {bands_y, bands_x, items * bands_y * bands_x};
}

struct Unit {
    int64_t sample, block, band_y, band_x;
};

static Unit unit(const Geometry& g, const Plan& p, int64_t index) {
    const int64_t band_x = index % p.bands_x, rest = index / p.bands_x;
    const int64_t band_y = rest % p.bands_y, item = rest / p.bands_y;
    return {item / g.blocks(), item % g.blocks(), band_y, band_x};
}

static int64_t vectors_of(const Geometry& g, int64_t block) {
    const int64_t left = g.channels - block * BLOCK;
    return left < BLOCK ? ceil_div(left, VL) : VECTORS;
}

// Tile pixels along an axis for outputs `at`, as coordinates of the input image.
static Span reach(Span at, int64_t taps, int64_t stride, int64_t padding, int64_t dilation, int64_t overshoot) {
    return {at.begin * stride - padding, (at.end - 1 + overshoot) * stride + (taps - 1) * dilation + 1 - padding};
}

static Box input_box(const Geometry& g, Span y, Span x, int64_t overshoot) {
    return {reach(y, g.taps_y, g.stride_y, g.padding_y, g.dilation_y, 0),
            reach(x, g.taps_x, g.stride_x, g.padding_x, g.dilation_x, overshoot)};
}

// One block's weights for the taps first, first + step, ... in each direction; count < 0 steps backwards are flipped.
struct TapRange {
    int64_t first, step, count;
};

static void pack(const Geometry& g, const float* weight, int64_t c, TapRange y, TapRange x, float* to) {
    for (int64_t i = 0; i < y.count; i++)
        for (int64_t j = 0; j < x.count; j++, to += BLOCK) {
            const float* from = weight + (y.first + i * y.step) * g.taps_x + x.first + j * x.step;
            for (int64_t k = 0; k < BLOCK; k++) to[k] = c + k < g.channels ? from[(c + k) * g.taps()] : 0;
        }
}

// Sums of float64, one row a thread, added up in the order of the threads.
static void add_up(const double* parts, int64_t threads, int64_t n, double* to) {
    for (int64_t i = 0; i < n; i++) {
        to[i] = 0;
        for (int64_t t = 0; t < threads; t++) to[i] += parts[t * n + i];
    }
}

template <class T>
static void forward(const Geometry& g, int64_t threads, const Source<T>& x, const float* weight, const float* bias,
                    Output<T> out) {
    const Plan p = plan(g, threads, TILE_PIXELS);
    if (threads > p.units) threads = p.units > 0 ? p.units : 1;
    double* const result = out.sums;
    const int64_t n_sums = result ? 2 * g.channels : 0, per_block = (g.taps() + 1) * BLOCK;
    Scratch sums(2 * threads * n_sums), packed(g.blocks() * per_block);
    for (int64_t b = 0; b < g.blocks(); b++) {
        float* to = packed + b * per_block;
        pack(g, weight, b * BLOCK, {0, 1, g.taps_y}, {0, 1, g.taps_x}, to);
        for (int64_t k = 0, c = b * BLOCK; k < BLOCK; k++, c++)
            to[g.taps() * BLOCK + k] = bias && c < g.channels ? bias[c] : 0;
    }
    memset(sums, 0, threads * n_sums * sizeof(double));
    parallel(threads, [&](int64_t thread, int64_t n_threads) {
        Output<T> mine = out;
        if (result) mine.sums = (double*)(float*)sums + thread * n_sums;
        const int64_t rows = ceil_div(g.out_height, p.bands_y), columns = ceil_div(g.out_width, p.bands_x);
        Scratch tile(g.reach_y(rows + 2) * g.reach_x(columns + 2 + OVERSHOOT) * BLOCK);
        const Range range = share(p.units, thread, n_threads);
        for (int64_t index = range.begin; index < range.end; index++) {
            const Unit u = unit(g, p, index);
            const Span y = part(g.out_height, u.band_y, p.bands_y, 2), x_ = part(g.out_width, u.band_x, p.bands_x, 1);
            if (y.size() <= 0 || x_.size() <= 0) continue;
            const Box box = input_box(g, y, x_, OVERSHOOT);
            fill(x, u.sample, u.block * BLOCK, box, tile);
            const float* w = packed + u.block * per_block;
            const Correlation q = {g.taps_y, g.taps_x, box.x.size() * BLOCK, g.stride_y, g.stride_x,
                                   g.dilation_y, g.dilation_x, {-box.y.begin, g.height - box.y.begin},
                                   w, w + g.taps() * BLOCK, vectors_of(g, u.block)};
            correlate(q, tile, mine, u.sample, u.block * BLOCK, {y.begin, x_.begin, 1, 1, y.size(), x_.size()});
        }
    });
    if (result) add_up((double*)(float*)sums, threads, n_sums, result);
}

// The input pixels of one phase along an axis: those at which the same taps meet an output. With t = y + padding, tap k
// meets output (t - k dilation) / stride where that is whole, so taps first, first + step, ... and outputs `tap` apart.
struct Phase {
    int64_t first, step, count, tap;
};

static Phase phase(int64_t index, int64_t taps, int64_t stride, int64_t dilation) {
    int64_t a = stride, b = dilation;
    while (b) {
        const int64_t rest = a % b;
        a = b, b = rest;
    }
    Phase f = {0, stride / a, 0, dilation / a};
    while (f.first < taps && (index - f.first * dilation) % stride != 0) f.first++;
    for (int64_t k = f.first; k < taps; k += f.step) f.count++;
    return f;
}

// Outputs that the pixels `at` of the input meet along an axis.
static Span met(Span at, int64_t taps, int64_t stride, int64_t padding, int64_t dilation, int64_t overshoot) {
    return {ceil_div(at.begin + padding - (taps - 1) * dilation, stride),
            floor_div(at.end - 1 + padding, stride) + 1 + overshoot};
}

template <class T>
struct Backward {
    Geometry g;
    Source<T> grad, x;
    const float* weight;
    Output<T> out;           // gradient of the input; data null: not wanted
    float *gw, *gb;          // null: not wanted
};

// Where the flipped weights of each phase stand in a block's packed weights.
static int64_t phase_offset(const Geometry& g, int64_t py, int64_t px) {
    int64_t taps = 0;
    for (int64_t i = 0; i < g.stride_y; i++)
        for (int64_t j = 0; j < g.stride_x; j++) {
            if (i == py && j == px) return taps * BLOCK;
            taps += phase(i, g.taps_y, g.stride_y, g.dilation_y).count * phase(j, g.taps_x, g.stride_x, g.dilation_x).count;
        }
    return taps * BLOCK;
}

static TapRange flipped(const Phase& f) { return {f.first + (f.count - 1) * f.step, -f.step, f.count}; }

// The first pixel at or after `begin` that belongs to a phase.
static int64_t first_of(int64_t begin, int64_t index, int64_t stride, int64_t padding) {
    const int64_t t = begin + padding - index;
    return begin + ceil_div(t, stride) * stride - t;
}

template <class T>
static void input_gradient(const Backward<T>& b, const Output<T>& out, const Unit& u, Span y, Span x, const Box& box,
                           const float* tile, const float* packed) {
    const Geometry& g = b.g;
    alignas(64) static const float zero[BLOCK] = {};
    const int64_t row = box.x.size() * BLOCK;
    for (int64_t py = 0; py < g.stride_y; py++)
        for (int64_t px = 0; px < g.stride_x; px++) {
            const Phase fy = phase(py, g.taps_y, g.stride_y, g.dilation_y);
            const Phase fx = phase(px, g.taps_x, g.stride_x, g.dilation_x);
            const int64_t y0 = first_of(y.begin, py, g.stride_y, g.padding_y);
            const int64_t x0 = first_of(x.begin, px, g.stride_x, g.padding_x);
            const Pixels at = {y0, x0, g.stride_y, g.stride_x, ceil_div(y.end - y0, g.stride_y),
                               ceil_div(x.end - x0, g.stride_x)};
            int64_t top = box.y.begin, left = box.x.begin;  // the output that the first pixel's last tap meets
            if (fy.count) top = (y0 + g.padding_y - fy.first * g.dilation_y) / g.stride_y - (fy.count - 1) * fy.tap;
            if (fx.count) left = (x0 + g.padding_x - fx.first * g.dilation_x) / g.stride_x - (fx.count - 1) * fx.tap;
            const bool any = fy.count && fx.count;
            const Correlation q = {any ? fy.count : 0, any ? fx.count : 1, row, 1, 1, fy.tap, fx.tap,
                                   {-top, g.out_height - top}, packed + phase_offset(g, py, px), zero,
                                   vectors_of(g, u.block)};
            correlate(q, tile + (top - box.y.begin) * row + (left - box.x.begin) * BLOCK, out, u.sample,
                      u.block * BLOCK, at);
        }
}

template <class T>
static void backward(const Backward<T>& b, int64_t threads) {
    const Geometry& g = b.g;
    const Plan p = plan(g, threads, b.out.data && b.gw ? TILE_PIXELS / 2 : TILE_PIXELS);
    if (threads > p.units) threads = p.units > 0 ? p.units : 1;
    double* const result = b.out.sums;
    const int64_t n_sums = result ? 2 * g.channels : 0, blocks = g.blocks();
    const int64_t per_block = g.taps() * BLOCK, gw_block = per_block + BLOCK, n_gw = b.gw ? blocks * gw_block : 0;
    Scratch sums(2 * threads * n_sums), packed(blocks * per_block), weight_sums(threads * n_gw);
    memset(sums, 0, threads * n_sums * sizeof(double));
    memset(weight_sums, 0, threads * n_gw * sizeof(float));
    for (int64_t block = 0; b.out.data && block < blocks; block++)
        for (int64_t i = 0; i < g.stride_y; i++)
            for (int64_t j = 0; j < g.stride_x; j++)
                pack(g, b.weight, block * BLOCK, flipped(phase(i, g.taps_y, g.stride_y, g.dilation_y)),
                     flipped(phase(j, g.taps_x, g.stride_x, g.dilation_x)),
                     packed + block * per_block + phase_offset(g, i, j));
    parallel(threads, [&](int64_t thread, int64_t n_threads) {
        Output<T> out = b.out;
        if (result) out.sums = (double*)(float*)sums + thread * n_sums;
        const Range range = share(p.units, thread, n_threads);
        // The largest tiles: first counted, then taken.
        int64_t grad_pixels = 0, x_pixels = 0;
        struct Boxes {
            Span gy, gx, y, x;
            Box grad, input;
        };
        auto boxes = [&](const Unit& u) {
            Boxes s;
            s.gy = part(g.out_height, u.band_y, p.bands_y, 2), s.gx = part(g.out_width, u.band_x, p.bands_x, 1);
            s.y = part(g.height, u.band_y, p.bands_y, 2 * g.stride_y), s.x = part(g.width, u.band_x, p.bands_x, g.stride_x);
            s.grad = {s.gy, s.gx};
            if (b.out.data)
                s.grad = {join(s.gy, met(s.y, g.taps_y, g.stride_y, g.padding_y, g.dilation_y, 0)),
                          join(s.gx, met(s.x, g.taps_x, g.stride_x, g.padding_x, g.dilation_x, OVERSHOOT))};
            s.input = input_box(g, s.gy, s.gx, 0);
            return s;
        };
        for (int64_t y = 0; y < p.bands_y; y++)
            for (int64_t x = 0; x < p.bands_x; x++) {
                const Boxes s = boxes({0, 0, y, x});
                const int64_t grad = s.grad.y.size() * s.grad.x.size(), input = s.input.y.size() * s.input.x.size();
                grad_pixels = grad > grad_pixels ? grad : grad_pixels;
                x_pixels = input > x_pixels ? input : x_pixels;
            }
        Scratch grad_tile(grad_pixels * BLOCK), x_tile(b.gw ? x_pixels * BLOCK : 0);
        for (int64_t index = range.begin; index < range.end; index++) {
            const Unit u = unit(g, p, index);
            const Boxes s = boxes(u);
            const int64_t c = u.block * BLOCK;
            fill(b.grad, u.sample, c, s.grad, grad_tile);
            if (b.out.data)
                input_gradient(b, out, u, s.y, s.x, s.grad, grad_tile, packed + u.block * per_block);
            if (!b.gw || s.gy.size() <= 0 || s.gx.size() <= 0) continue;
            fill(b.x, u.sample, c, s.input, x_tile);
            float* to = weight_sums + thread * n_gw + u.block * gw_block;
            const int64_t row = s.grad.x.size() * BLOCK;
            const float* first = grad_tile + (s.gy.begin - s.grad.y.begin) * row + (s.gx.begin - s.grad.x.begin) * BLOCK;
            const TapSums q = {first, x_tile, row, s.input.x.size() * BLOCK, s.gy.size(), s.gx.size(), g.taps_y, g.taps_x,
                               g.stride_y, g.stride_x, g.dilation_y, g.dilation_x,
                               {-s.input.y.begin, g.height - s.input.y.begin}, vectors_of(g, u.block), to};
            add_tap_sums(q);
            add_pixel_sums(q, to + per_block);
        }
    });
    if (result) add_up((double*)(float*)sums, threads, n_sums, result);
    for (int64_t c = 0; b.gw && c < g.channels; c++)
        for (int64_t tap = 0; tap <= g.taps(); tap++) {
            float total = 0;
            for (int64_t t = 0; t < threads; t++)
                total += weight_sums[t * n_gw + c / BLOCK * gw_block + tap * BLOCK + c % BLOCK];
            (tap < g.taps() ? b.gw[c * g.taps() + tap] : b.gb[c]) = total;
        }
}

static Geometry geometry(const int64_t* s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

}  // namespace depthwise

using namespace depthwise;

// sizes: N, C, H, W, Hout, Wout, then kernel, stride, padding and dilation, each vertical first. dtype: 0 float32,
// 1 bfloat16, of all tensors; the vectors of a value a channel or a sample, weights and gradients of weights are float32.
#define SOURCE(name)                                                                                          \
    const void *name, const void *name##_other, const float *name##_scale, const float *name##_other_scale, \
        const float *name##_shift, const float *name##_sample_scale
#define SOURCE_OF(name, h, w)                                                                                \
    {(const T*)name, (const T*)name##_other, name##_scale, name##_other_scale, name##_shift, name##_sample_scale, \
     g.samples, h, w, g.channels}

API void starshift_depthwise_forward(int64_t dtype, int64_t threads, const int64_t* sizes, SOURCE(x), const float* weight,
                                     const float* bias, void* out, const void* residual, const float* out_scale,
                                     const float* center, double* sums) {
    const Geometry g = geometry(sizes);
    auto run = [&](auto example) {
        typedef decltype(example) T;
        forward<T>(g, threads, SOURCE_OF(x, g.height, g.width), weight, bias,
                   {(T*)out, (const T*)residual, nullptr, out_scale, center, sums, g.out_height, g.out_width, g.channels});
    };
    dtype == 0 ? run(float()) : run(bf16());
}

// Either gradient may be left out: gx null, or gw (and gb) null.
API void starshift_depthwise_backward(int64_t dtype, int64_t threads, const int64_t* sizes, SOURCE(grad), SOURCE(x),
                                      const float* weight, void* gx, const void* residual, const float* out_scale,
                                      const void* partner, const float* center, double* sums, float* gw, float* gb) {
    const Geometry g = geometry(sizes);
    auto run = [&](auto example) {
        typedef decltype(example) T;
        backward<T>({g, SOURCE_OF(grad, g.out_height, g.out_width), SOURCE_OF(x, g.height, g.width), weight,
                     {(T*)gx, (const T*)residual, (const T*)partner, out_scale, center, sums, g.height, g.width, g.channels},
                     gw, gb}, threads);
    };
    dtype == 0 ? run(float()) : run(bf16());
}
