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

// The same where a pixel has whole vectors. A shift moves whole pixels, so what lies on a cache line comes from one, where
// its channels have one displacement; a vector with several is put together from all of them.
template <class V, bool STREAM, class E>
void shift_vectors(const Image& s, const int64_t* offsets, int64_t runs, const E* x, E* out, int64_t threads) {
    constexpr int64_t LANES = Table<V>::LANES;
    struct Part {  // one displacement of an item
        V lanes;
        const E* from;
        int64_t step, dy, dx;
    };
    struct Item {  // neighbouring vectors with one displacement, or one with several
        int64_t channel, vectors, parts;
    };
    const Table<V> table(offsets, runs, s.C, 1, true);
    parallel(threads, [&](int64_t thread, int64_t of) {
        Scratch part_room((s.C + LANES) * (int64_t)sizeof(Part) / 4), item_room(table.count * (int64_t)sizeof(Item) / 4);
        Scratch nothing((s.C + LANES) * (int64_t)sizeof(E) / 4 + 1);
        Part* parts = reinterpret_cast<Part*>((float*)part_room);
        Item* items = reinterpret_cast<Item*>((float*)item_room);
        const E* zeros = reinterpret_cast<const E*>((float*)nothing);
        memset((float*)nothing, 0, (s.C + LANES) * sizeof(E));
        int64_t count = 0, used = 0, begin = 0, end = s.W;  // pixels begin .. end: no displacement leaves the row
        for (int64_t g = 0; g < table.count; g++) {
            const Group<V>& group = table[g];
            Item* last = count ? items + count - 1 : nullptr;
            if (last && last->parts == 1 && group.taps == 1 && last->channel + last->vectors * LANES == group.channel &&
                parts[used - 1].dy == group.tap[0].dy && parts[used - 1].dx == group.tap[0].dx) {
                last->vectors++;
                continue;
            }
            items[count++] = {group.channel, 1, group.taps};
            for (int64_t t = 0; t < group.taps; t++) {
                const Tap<V>& tap = group.tap[t];
                parts[used++] = {tap.lanes, nullptr, 0, tap.dy, tap.dx};
                begin = most(begin, -tap.dx);
                end = least(end, s.W - tap.dx);
            }
        }
        const Range rows = share(s.N * s.H, thread, of);
        for (int64_t r = rows.begin; r < rows.end; r++) {
            const int64_t y = r % s.H;
            for (int64_t i = 0, p = 0; i < count; i++)
                for (int64_t end_of_item = p + items[i].parts; p < end_of_item; p++) {
                    const bool inside = y + parts[p].dy >= 0 && y + parts[p].dy < s.H;
                    const E* from = x + ((r + parts[p].dy) * s.W + parts[p].dx) * s.C + items[i].channel;
                    parts[p].from = inside ? from : zeros;
                    parts[p].step = inside ? s.C : 0;
                }
            E* to = out + r * s.W * s.C;
            const E* ahead = r + table.reach + 1 < s.N * s.H ? x + (r + table.reach + 1) * s.W * s.C : x + r * s.W * s.C;
            auto write = [](E* at, V value) __attribute__((always_inline)) {
                if (STREAM) stream(at, value);
                else memcpy(at, &value, sizeof(V));
            };
            auto pixel = [&](int64_t p, auto border) __attribute__((always_inline)) {
                for (int64_t i = 0; i < s.C; i += 64 / (int64_t)sizeof(E)) __builtin_prefetch(ahead + p * s.C + i);
                const Part* part = parts;
                auto source = [&](const Part& at) {
                    const bool outside = border && (p + at.dx < 0 || p + at.dx >= s.W);
                    return outside ? zeros : at.from + p * at.step;
                };
                for (const Item* item = items; item < items + count; item++) {
                    E* put = to + p * s.C + item->channel;
                    if (item->parts == 1) {
                        const E* from = source(*part++);
                        for (int64_t v = 0; v < item->vectors; v++) {
                            V value;
                            memcpy(&value, from + v * LANES, sizeof(V));
                            write(put + v * LANES, value);
                        }
                        continue;
                    }
                    V value = {};
                    for (int64_t t = item->parts; t > 0; t--, part++) {
                        V read;
                        memcpy(&read, source(*part), sizeof(V));
                        value |= read & part->lanes;
                    }
                    write(put, value);
                }
            };
            for (int64_t p = 0; p < s.W; p++)
                if (p < begin || p >= end)
                    pixel(p, std::true_type());
                else
                    pixel(p, std::false_type());
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
    const bool past_caches = C % lanes == 0 && may_stream(out, N * C * H * W * bytes);
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
