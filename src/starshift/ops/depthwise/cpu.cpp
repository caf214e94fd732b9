// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, forward and gradients, of channels-last float32 or bfloat16 tensors; README.md has the method.
//
// The unit of work is a band of rows of one image for a chunk of channels. A chunk is read and written in place where
// nothing but float32 in whole vectors is asked for; else it is one tile wide.
#include "calls.h"
#include "pairs.h"
#include "scratch.h"

namespace depthwise {

constexpr int64_t CACHED = 48 * 1024;  // floats that a unit may touch, to find them again in the second-level cache
constexpr int64_t MANY = 4;            // units of work a thread, at least, where an image can be cut

static int64_t vectors_of(int64_t channels) { return ceil_div(channels, VL); }

// The part of 0 .. n for one of `parts` bands, in units of `unit` rows.
static Span part(int64_t n, int64_t index, int64_t parts, int64_t unit) {
    const int64_t units = ceil_div(n, unit);
    return {least(units * index / parts * unit, n), least(units * (index + 1) / parts * unit, n)};
}

struct Unit {
    int64_t sample, band, c, channels;
    bool in_place;
};

// Chunks of channels (in place first, then tiles) and bands of rows.
struct Plan {
    int64_t in_place, chunk, chunks, bands, units;
    int64_t channels;

    Plan(const Geometry& g, const Passes& p, bool direct, int64_t tensors, int64_t threads) {
        channels = g.channels;
        in_place = direct ? channels / VL * VL : 0;
        const int64_t widest = most(g.width, g.out_width), tiled = channels - in_place;
        const int64_t group = (p.rows * g.stride_y + g.taps_y) * widest;   // pixels that a group of rows reads
        const int64_t image = tensors * widest * least(g.out_height, 16);  // and that a worthwhile band touches
        chunk = most(least(CACHED / group, most(CACHED / image, 64)) / BLOCK * BLOCK, BLOCK);
        if (in_place < 2 * chunk && in_place * group < CACHED) chunk = most(in_place, BLOCK);
        if (!direct) chunk = BLOCK;
        chunks = ceil_div(in_place, chunk) + ceil_div(tiled, BLOCK);
        // A unit's rows: so few that all its tensors stay cached, and that there is work for every thread.
        const int64_t most_rows = most(CACHED / (tensors * widest * chunk), 2 * p.rows);
        bands = ceil_div(g.out_height, most_rows);
        if (threads > 1)
            while (bands * 2 * p.rows < g.out_height && g.samples * chunks * bands < MANY * threads) bands++;
        units = g.samples * bands * chunks;
    }
    Unit unit(int64_t index) const {
        const int64_t which = index % chunks, band = index / chunks % bands, direct = ceil_div(in_place, chunk);
        Unit u = {index / chunks / bands, band, which * chunk, 0, which < direct};
        if (!u.in_place) u.c = in_place + (which - direct) * BLOCK;
        u.channels = u.in_place ? least(chunk, in_place - u.c) : least(BLOCK, channels - u.c);
        return u;
    }
};

template <class T>
constexpr bool is_float = std::is_same<T, float>::value;

// For tensors stored as T.
template <class T>
static const Passes& passes_for(const Geometry& g) {
    const Passes& passes = passes_of(g);
#ifdef HAS_PAIRS
    if (!is_float<T> && &passes == &Walk<3, 1>::passes) return PairWalk<3>::passes;
    if (!is_float<T> && &passes == &Walk<5, 1>::passes) return PairWalk<5>::passes;
    if (!is_float<T> && &passes == &Walk<7, 1>::passes) return PairWalk<7>::passes;
#endif
    return passes;
}

// Rows of a source for a unit: the tensor where it can be read as it is, or a tile filled with them. `view` gives one
// vector of channels.
template <class T>
struct Rows {
    View first;
    int64_t row, step;  // row of the image with which the view begins; floats from a vector of channels to the next

    // pairs: of rows, the first of which is even if `odd` is 0.
    Rows(const Source<T>& s, const Unit& u, Span rows, bool pairs, int64_t odd, float* tile) {
        if (is_float<T> && s.plain() && u.channels % VL == 0) {
            const int64_t at = u.sample * s.height * s.width * s.channels + u.c;
            first = {(const float*)s.tensor + at, s.width * s.channels, s.channels, s.height, s.width};
            row = 0;
#ifdef HAS_PAIRS
        } else if (pairs) {
            row = rows.begin - ((rows.begin - odd) & 1);
            first = {tile, s.width * VL, VL, (rows.end - row + 1) / 2, s.width};
            if constexpr (!is_float<T>) fill_pairs(s, u.sample, u.c, rows, row, tile);
#endif
        } else {
            const int64_t vectors = vectors_of(u.channels), pixel = vectors * VL;
            fill(s, u.sample, u.c, rows, vectors, tile);
            first = {tile, s.width * pixel, pixel, rows.size(), s.width};
            row = rows.begin;
        }
    }
    View view(int64_t v) const {
        View w = first;
        w.data += v * VL;
        return w;
    }
};

// Run `pass` over the rows y of one unit, in groups of rows and within them over the channels.
template <class T, class Pass>
static void write_rows(const Output<T>& o, const Unit& u, Span y, int64_t group, bool direct, float* patch,
                       const Pass& pass) {
    for (Span rows = y; rows.begin < y.end; rows.begin = rows.end) {
        rows.end = least(rows.begin + group, y.end);
        for (int64_t v = 0; v < vectors_of(u.channels); v++) {
            const int64_t c = u.c + v * VL;
            Target to = {patch, o.width * VL, VL};
            if (direct)
                to = {(float*)(o.data + (u.sample * o.height + rows.begin) * o.width * o.channels + c),
                      o.width * o.channels, o.channels, o.past_caches, !is_float<T>};
            const int64_t next = c % BLOCK == 0 ? BLOCK : 0;  // the next line of the same pixel
            pass(v, rows, to, {u.in_place ? next : 0, direct && !o.past_caches ? next : 0});
            if (!direct) finish(o, u.sample, c, rows, to);
        }
    }
}

// One vector's weights after another: (taps + 1, VL), the last of them the bias; of pairs what pack_pairs makes of these.
static void pack(const Geometry& g, const Passes& passes, const float* weight, const float* bias, bool flipped, float* to) {
    const int64_t taps = g.taps(), size = (taps + 1) * VL;
    Scratch one(passes.pairs ? size : 0);
    for (int64_t v = 0; v < vectors_of(g.channels); v++, to += passes.per_vector(g)) {
        float* vector = passes.pairs ? one : to;
        memset(vector, 0, size * sizeof(float));
        for (int64_t c = v * VL; c < least(g.channels, (v + 1) * VL); c++) {
            for (int64_t t = 0; t < taps; t++) vector[(flipped ? taps - 1 - t : t) * VL + c % VL] = weight[c * taps + t];
            if (bias) vector[taps * VL + c % VL] = bias[c];
        }
#ifdef HAS_PAIRS
        if (passes.pairs) pack_pairs(g.taps_x, vector, to);
#endif
    }
}

template <class T>
static void forward(const Geometry& g, int64_t threads, const Source<T>& x, const float* packed, const Output<T>& out) {
    const Passes& passes = passes_for<T>(g);
    const bool direct = is_float<T> && x.plain(), direct_out = (is_float<T> || passes.pairs) && out.plain();
    const Plan plan(g, passes, direct, 2, threads);
    threads = most(least(threads, plan.units), 1);
    const int64_t n_sums = out.sums ? 2 * g.channels : 0, per_vector = passes.per_vector(g);
    Scratch sums(2 * threads * n_sums);
    double* const thread_sums = (double*)(float*)sums;
    if (n_sums) memset(thread_sums, 0, threads * n_sums * sizeof(double));
    parallel(threads, [&](int64_t thread, int64_t n_threads) {
        Output<T> mine = out;
        mine.past_caches = direct_out && out.streams(g.samples);
        if (out.sums) mine.sums = thread_sums + thread * n_sums;
        int64_t rows = 0;
        for (int64_t b = 0; b < plan.bands; b++)
            rows = most(rows, g.read_by(part(g.out_height, b, plan.bands, passes.rows)).size());
        Scratch tile(plan.in_place < g.channels ? rows * g.width * BLOCK : 0), patch(passes.rows * g.out_width * VL);
        const Range range = share(plan.units, thread, n_threads);
        for (int64_t i = range.begin; i < range.end; i++) {
            const Unit u = plan.unit(i);
            const Span y = part(g.out_height, u.band, plan.bands, passes.rows);
            if (!y.size()) continue;
            const Rows<T> in(x, u, g.read_by(y), passes.pairs, g.padding_y & 1, tile);
            const bool in_place = direct_out && u.channels % VL == 0;
            write_rows(mine, u, y, passes.rows, in_place, patch, [&](int64_t v, Span group, const Target& to, Ahead ahead) {
                passes.convolve(g, in.view(v), in.row, group, packed + (u.c / VL + v) * per_vector, to, ahead);
            });
        }
        wait_for_streams();
    });
    if (out.sums) add_up(thread_sums, threads, n_sums, out.sums);
}

template <class T>
struct Gradients {
    Source<T> grad, x;
    const float* weight;
    Output<T> out;    // gradient of the input; data null: not wanted
    float *gw, *gb;   // null: not wanted
};

template <class T>
static void backward(const Geometry& g, int64_t threads, const Gradients<T>& b) {
    const Passes& passes = passes_for<T>(g);
    const bool plain = b.grad.plain() && (!b.gw || b.x.plain());
    const bool direct = is_float<T> && plain, direct_out = (is_float<T> || passes.pairs) && b.out.plain();
    const Plan plan(g, passes, direct, b.out.data && b.gw ? 3 : 2, threads);
    threads = most(least(threads, plan.units), 1);
    const int64_t n_sums = b.out.sums ? 2 * g.channels : 0, per_vector = (g.taps() + 1) * VL;
    const int64_t n_gw = b.gw ? vectors_of(g.channels) * per_vector : 0, per_packed = passes.per_vector(g);
    Scratch sums(2 * threads * n_sums), packed(vectors_of(g.channels) * per_packed), weight_sums(threads * n_gw);
    double* const thread_sums = (double*)(float*)sums;
    if (n_sums) memset(thread_sums, 0, threads * n_sums * sizeof(double));
    if (n_gw) memset(weight_sums, 0, threads * n_gw * sizeof(float));
    if (b.out.data) pack(g, passes, b.weight, nullptr, false, packed);
    // The bands of output rows whose weight gradient, and of input rows whose gradient, a unit computes.
    const int64_t unit_rows = passes.rows * g.stride_y;
    auto out_rows = [&](int64_t band) { return b.gw ? part(g.out_height, band, plan.bands, passes.rows) : Span{0, 0}; };
    auto in_rows = [&](int64_t band) { return b.out.data ? part(g.height, band, plan.bands, unit_rows) : Span{0, 0}; };
    auto grad_rows = [&](Span o, Span y) {
        if (!y.size()) return o;
        const Span r = g.reading(y);
        return o.size() ? Span{least(o.begin, r.begin), most(o.end, r.end)} : r;
    };
    parallel(threads, [&](int64_t thread, int64_t n_threads) {
        Output<T> mine = b.out;
        mine.past_caches = direct_out && b.out.streams(g.samples);
        if (b.out.sums) mine.sums = thread_sums + thread * n_sums;
        int64_t most_grad = 0, most_x = 0;
        for (int64_t i = 0; i < plan.bands; i++) {
            most_grad = most(most_grad, grad_rows(out_rows(i), in_rows(i)).size());
            if (out_rows(i).size()) most_x = most(most_x, g.read_by(out_rows(i)).size());
        }
        const int64_t block = plan.in_place < g.channels ? BLOCK : 0;
        Scratch grad_tile(most_grad * g.out_width * block), x_tile(most_x * g.width * block);
        Scratch patch(passes.rows * g.width * VL);
        const Range range = share(plan.units, thread, n_threads);
        for (int64_t i = range.begin; i < range.end; i++) {
            const Unit u = plan.unit(i);
            const Span o = out_rows(u.band), y = in_rows(u.band);
            const Rows<T> grad(b.grad, u, grad_rows(o, y), passes.pairs, g.padding_y & 1, grad_tile);
            if (y.size())
                write_rows(mine, u, y, passes.rows, direct_out && u.channels % VL == 0, patch,
                           [&](int64_t v, Span group, const Target& to, Ahead ahead) {
                               passes.transpose(g, grad.view(v), grad.row, group,
                                                packed + (u.c / VL + v) * per_packed, to, ahead);
                           });
            if (!o.size()) continue;
            const Rows<T> x(b.x, u, g.read_by(o), passes.pairs, g.padding_y & 1, x_tile);
            for (int64_t v = 0; v < vectors_of(u.channels); v++)
                passes.sum(g, grad.view(v), grad.row, o, x.view(v), x.row,
                           weight_sums + thread * n_gw + (u.c / VL + v) * per_vector,
                           u.in_place && (u.c + v * VL) % BLOCK == 0 ? BLOCK : 0);
        }
        wait_for_streams();
    });
    if (b.out.sums) add_up(thread_sums, threads, n_sums, b.out.sums);
    for (int64_t c = 0; b.gw && c < g.channels; c++)
        for (int64_t t = 0; t <= g.taps(); t++) {
            float total = 0;
            for (int64_t i = 0; i < threads; i++)
                total += weight_sums[i * n_gw + c / VL * per_vector + t * VL + c % VL];
            (t < g.taps() ? b.gw[c * g.taps() + t] : b.gb[c]) = total;
        }
}

static Geometry geometry(const int64_t* s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

}  // namespace depthwise

using namespace depthwise;

#define SOURCE_OF(name, h, w)                                                                                    \
    {(const T*)name, (const T*)name##_other, name##_scale, name##_other_scale, name##_shift, name##_sample_scale, \
     g.samples, h, w, g.channels}

// sizes: N, C, H, W, Hout, Wout, then kernel, stride, padding and dilation, each vertical first. dtype: 0 float32,
// 1 bfloat16, of all tensors; weights, their gradients, and what has a value a channel or a sample, are float32.

static const Passes& passes_of(int64_t dtype, const Geometry& g) {
    return dtype == 0 ? passes_for<float>(g) : passes_for<bf16>(g);
}

// How many floats starshift_depthwise_pack_for writes.
API int64_t starshift_depthwise_packed_floats(int64_t dtype, const int64_t* sizes) {
    const Geometry g = geometry(sizes);
    return vectors_of(g.channels) * passes_of(dtype, g).per_vector(g);
}

API void starshift_depthwise_pack_for(int64_t dtype, const int64_t* sizes, const float* weight, const float* bias,
                                      float* packed) {
    const Geometry g = geometry(sizes);
    const Passes& passes = passes_of(dtype, g);
    pack(g, passes, weight, bias, passes.flipped, packed);
}

// packed: by starshift_depthwise_pack_for.
API void starshift_depthwise_forward(int64_t dtype, int64_t threads, const int64_t* sizes, SOURCE(x),
                                     const float* packed, void* out, const void* residual,
                                     const float* out_scale, const float* center, double* sums) {
    const Geometry g = geometry(sizes);
    auto run = [&](auto example) {
        typedef decltype(example) T;
        forward<T>(g, threads, SOURCE_OF(x, g.height, g.width), packed,
                   {(T*)out, (const T*)residual, nullptr, out_scale, center, sums, g.out_height, g.out_width,
                    g.channels});
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
        backward<T>(g, threads,
                    {SOURCE_OF(grad, g.out_height, g.out_width), SOURCE_OF(x, g.height, g.width), weight,
                     {(T*)gx, (const T*)residual, (const T*)partner, out_scale, center, sums, g.height, g.width,
                      g.channels},
                     gw, gb});
    };
    dtype == 0 ? run(float()) : run(bf16());
}
