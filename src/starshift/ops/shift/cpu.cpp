// SPDX-License-Identifier: Apache-2.0
// The shift alone, a copy at displaced addresses of elements of 2 or 4 bytes; and with the 1x1 convolution after it.
#include "calls.h"
#include "conv.h"

namespace {

struct Image {
    int64_t N, C, H, W;
};

template <class V>
INLINE void move(void* to, const void* from) {
    V value;
    memcpy(&value, from, sizeof(V));
    memcpy(to, &value, sizeof(V));
}

// n bytes, 2 at least, as two moves that may overlap.
template <class V>
INLINE void move_twice(char* to, const char* from, int64_t n) {
    V first, last;
    memcpy(&first, from, sizeof(V));
    memcpy(&last, from + n - sizeof(V), sizeof(V));
    memcpy(to, &first, sizeof(V));
    memcpy(to + n - sizeof(V), &last, sizeof(V));
}

struct Run {  // all in bytes: neighbouring channels of one displacement, and where they come from in this row of pixels
    int64_t to, n, dy, dx;
    const char* from;
    int64_t step;  // from pixel to pixel; 0 where the row lies outside and `from` is zeros
};

// One run of one pixel.
INLINE void move_run(char* to, const char* from, int64_t n) {
    if (n >= 16) {
        for (int64_t i = 0; i + 16 <= n; i += 16) move_twice<uint64_t>(to + i, from + i, 16);
        move_twice<uint64_t>(to + n - 16, from + n - 16, 16);
    } else if (n >= 8) {
        move_twice<uint64_t>(to, from, n);
    } else if (n >= 4) {
        move_twice<uint32_t>(to, from, n);
    } else {
        move<uint16_t>(to, from);
    }
}

// Channels last, fewer of them than a vector has lanes: pixel after pixel, run after run.
void shift_pixels(const Image& s, const int64_t* offsets, int64_t runs, int64_t size, const char* x, char* out,
                  int64_t threads) {
    const int64_t pixel = s.C * size, line = s.W * pixel;
    parallel(threads, [&](int64_t thread, int64_t of) {
        Scratch room(runs * (int64_t)sizeof(Run) / 4), nothing(s.C * size / 4 + 1);
        Run* run = reinterpret_cast<Run*>((float*)room);
        const char* zeros = reinterpret_cast<const char*>((float*)nothing);
        memset((float*)nothing, 0, pixel);
        int64_t begin = 0, end = s.W, reach = 0, count = 0;  // pixels begin .. end: no run leaves the row
        for (int64_t r = 0, to = 0; r < runs; r++) {
            int64_t n = offsets[3 * r], dy = offsets[3 * r + 1], dx = offsets[3 * r + 2];
            if (!n) continue;
            run[count++] = {to, n * size, dy, dx, nullptr, 0};
            to += n * size;
            begin = most(begin, -dx);
            end = least(end, s.W - dx);
            reach = most(reach, dy);
        }
        if (begin >= end) begin = end = 0;
        Range rows = share(s.N * s.H, thread, of);
        for (int64_t r = rows.begin; r < rows.end; r++) {
            int64_t y = r % s.H;
            for (int64_t i = 0; i < count; i++) {
                Run& at = run[i];
                bool inside = y + at.dy >= 0 && y + at.dy < s.H;
                at.from = inside ? x + (r + at.dy) * line + at.dx * pixel + at.to : zeros;
                at.step = inside ? pixel : 0;
            }
            const char* ahead = r + reach + 1 < s.N * s.H ? x + (r + reach + 1) * line : x + r * line;
            for (int64_t p = 0; p < s.W; p++) {
                char* to = out + r * line + p * pixel;
                bool border = p < begin || p >= end;
                for (int64_t i = 0; i < pixel; i += 64) __builtin_prefetch(ahead + p * pixel + i);
                for (int64_t i = 0; i < count; i++) {
                    const Run& at = run[i];
                    const char* from = at.from + p * at.step;
                    if (border && (p + at.dx < 0 || p + at.dx >= s.W)) from = zeros;
                    move_run(to + at.to, from, at.n);
                }
            }
        }
    });
}

// The same where a pixel has whole vectors: row after row, and in each vector after vector of channels. Most vectors are put
// together from one or two pixels. What is read and written next is not what the processor foresees: it is fetched ahead.
template <class V, bool STREAM, class E>
void shift_vectors(const Image& s, const int64_t* offsets, int64_t runs, const E* x, E* out, int64_t threads) {
    const Table<V> table(offsets, runs, s.C, 1, true);
    const int64_t line = s.W * s.C, total = s.N * s.H, reach_x = least(table.reach_x, s.W);
    Scratch room((2 * reach_x + 1) * s.W);  // for every dx: -1 where pixel p + dx is one of the row's, else 0
    int32_t* inside = reinterpret_cast<int32_t*>((float*)room) + reach_x * s.W;
    for (int64_t dx = -reach_x; dx <= reach_x; dx++)
        for (int64_t p = 0; p < s.W; p++) inside[dx * s.W + p] = p + dx >= 0 && p + dx < s.W ? -1 : 0;
    parallel(threads, [&](int64_t thread, int64_t of) {
        const Range rows = share(total, thread, of);
        for (int64_t r = rows.begin; r < rows.end; r++) {
            // Beside these rows is memory to read, though it be of other rows.
            const bool within = (r - table.reach) * s.W >= reach_x && (total - 1 - r - table.reach) * s.W >= reach_x;
            const int64_t y = r % s.H;
            for (int64_t g = 0; g < table.count; g++) {
                if (r + table.reach + 1 < total) fetch_part(x, line, r + table.reach + 1, 1, g, table.count);
                if (!STREAM && r + 1 < rows.end) fetch_part<true>(out, line, r + 1, 1, g, table.count);
                const Group<V>& group = table[g];
                const E* here = x + r * line + group.channel;
                E* to = out + r * line + group.channel;
                auto write = [&](int64_t p, V value) __attribute__((always_inline)) {
                    if (STREAM) stream(to + p * s.C, value);
                    else memcpy(to + p * s.C, &value, sizeof(V));
                };
                auto row_inside = [&](int64_t dy) { return y + dy >= 0 && y + dy < s.H; };
                auto taps = [&](auto count) __attribute__((always_inline)) {
                    constexpr int N = decltype(count)::value;
                    const E* from[N];
                    const int32_t* valid[N];
                    V lanes[N];
                    for (int t = 0; t < N; t++) {
                        const Tap<V>& tap = group.tap[t];
                        const int64_t dx = most(-reach_x, least(tap.dx, reach_x));  // further is as much outside
                        from[t] = here + (row_inside(tap.dy) ? tap.dy * line : 0) + dx * s.C;
                        valid[t] = inside + dx * s.W;
                        lanes[t] = row_inside(tap.dy) ? tap.lanes : V{};
                    }
                    for (int64_t p = 0; p < s.W; p++) {
                        V value = {};
                        for (int t = 0; t < N; t++)
                            value |= load_lanes<V>(from[t] + p * s.C) & lanes[t] & (V)(valid[t][p] - vi{});
                        write(p, value);
                    }
                };
                if (!within || !with_few(group.taps, taps))
                    gather(group, s.W, s.W, s.C, Steps{},
                           [&](int64_t dy) { return row_inside(dy) ? here + dy * line : nullptr; }, load_lanes<V>, write);
            }
        }
        if (STREAM) wait_for_streams();
    });
}

// Channel planes one after another: each is a displaced copy.
template <class E>
void shift_planes(const Image& s, const int64_t* offsets, int64_t runs, const E* x, E* out, int64_t threads) {
    parallel(threads, [&](int64_t thread, int64_t of) {
        Range planes = share(s.N * s.C, thread, of);
        for (int64_t plane = planes.begin; plane < planes.end; plane++) {
            int64_t run = 0;
            for (int64_t c = plane % s.C; c >= offsets[3 * run]; run++) c -= offsets[3 * run];
            int64_t dy = offsets[3 * run + 1], dx = offsets[3 * run + 2];
            int64_t left = least(s.W, most(0, -dx)), right = most(left, least(s.W, s.W - dx));
            int64_t top = least(s.H, most(0, -dy)), bottom = most(top, least(s.H, s.H - dy));
            E* to = out + plane * s.H * s.W;
            if (top == bottom || left == right) {
                memset(to, 0, s.H * s.W * sizeof(E));
                continue;
            }
            // One copy from the first pixel that has a source to the last, across the ends of rows; these are then zero.
            int64_t first = top * s.W + left, last = (bottom - 1) * s.W + right;
            memset(to, 0, first * sizeof(E));
            memcpy(to + first, x + plane * s.H * s.W + first + dy * s.W + dx, (last - first) * sizeof(E));
            memset(to + last, 0, (s.H * s.W - last) * sizeof(E));
            for (int64_t y = top; y < bottom - 1; y++)
                for (int64_t i = right; i < s.W + left; i++) to[y * s.W + i] = 0;
        }
    });
}

}  // namespace

API void starshift_shift2d(int64_t bytes, int64_t last, int64_t N, int64_t C, int64_t H, int64_t W, const void* x,
                           const int64_t* offsets, int64_t runs, void* out, int64_t threads) {
    Image s{N, C, H, W};
    int64_t lanes = VL * 4 / bytes;
    bool whole = C >= lanes;
    const bool past_caches = VL == 16 && C % lanes == 0 && may_stream(out, N * C * H * W * bytes);  // whole lines
    if (last && whole && bytes == 4)
        (past_caches ? shift_vectors<vi, true, int32_t> : shift_vectors<vi, false, int32_t>)(
            s, offsets, runs, (const int32_t*)x, (int32_t*)out, threads);
    else if (last && whole)
        (past_caches ? shift_vectors<v16, true, uint16_t> : shift_vectors<v16, false, uint16_t>)(
            s, offsets, runs, (const uint16_t*)x, (uint16_t*)out, threads);
    else if (last)
        shift_pixels(s, offsets, runs, bytes, (const char*)x, (char*)out, threads);
    else if (bytes == 4)
        shift_planes(s, offsets, runs, (const int32_t*)x, (int32_t*)out, threads);
    else
        shift_planes(s, offsets, runs, (const uint16_t*)x, (uint16_t*)out, threads);
}

// dtype: 0 float32, 1 bfloat16, of x, out and their gradients, which are channels last; weights are float32.
API void starshift_shift_conv2d_forward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                                        int64_t stride, const void* x, const float* w, const float* bias,
                                        const int64_t* offsets, int64_t runs, void* out, int64_t threads) {
    Shape s{N, C, H, W, K, stride};
    if (dtype == 0)
        conv_forward(s, offsets, runs, (const float*)x, w, bias, (float*)out, threads);
    else
        conv_forward(s, offsets, runs, (const bf16*)x, w, bias, (bf16*)out, threads);
}

API void starshift_shift_conv2d_backward(int64_t dtype, int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                                         int64_t stride, const void* grad, const void* x, const float* w,
                                         const int64_t* offsets, int64_t runs, void* gx, float* gw, float* gb,
                                         int64_t threads) {
    Shape s{N, C, H, W, K, stride};
    if (dtype == 0)
        conv_backward(s, offsets, runs, (const float*)grad, (const float*)x, w, (float*)gx, gw, gb, threads);
    else
        conv_backward(s, offsets, runs, (const bf16*)grad, (const bf16*)x, w, (bf16*)gx, gw, gb, threads);
}
