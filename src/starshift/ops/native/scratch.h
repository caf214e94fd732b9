// SPDX-License-Identifier: Apache-2.0
// Work space, and how work is divided among threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

// 64-byte aligned floats for the life of this object, null where none are asked for; not cleared. A thread keeps its
// blocks for its next call: fresh memory from the system would cost a page fault every 4 KiB.
class Scratch {
  public:
    explicit Scratch(size_t floats) {
        if (!floats) return;
        size_t bytes = (floats * 4 + 127) / 64 * 64;
        Kept* oldest_free = nullptr;
        for (Kept& k : kept().blocks)
            if (!k.used) {
                if (k.bytes >= bytes && k.bytes / 4 <= bytes) {
                    take(k);
                    return;
                }
                oldest_free = &k;
            }
        if (!oldest_free) std::abort();  // more than COUNT at a time: a mistake of ours
        std::free(oldest_free->data);
        *oldest_free = {std::aligned_alloc(64, bytes), bytes, false};
        if (!oldest_free->data) std::abort();
        take(*oldest_free);
    }
    ~Scratch() {
        if (block_) block_->used = false;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    operator float*() const { return block_ ? static_cast<float*>(block_->data) : nullptr; }

  private:
    struct Kept {
        void* data = nullptr;
        size_t bytes = 0;
        bool used = false;
    };
    struct Blocks {
        static constexpr int COUNT = 32;
        Kept blocks[COUNT];
        ~Blocks() {
            for (Kept& k : blocks) std::free(k.data);
        }
    };
    static Blocks& kept() {
        static thread_local Blocks mine;
        return mine;
    }
    void take(Kept& k) {
        k.used = true;
        block_ = &k;
    }
    Kept* block_ = nullptr;
};

// Run f(thread, threads) on each of `threads` threads; with one, on this one without OpenMP. Returns how many ran: fewer
// where OpenMP is missing or this already runs in parallel.
template <class F>
inline int64_t parallel(int64_t threads, const F& f) {
#ifdef _OPENMP
    if (threads > 1 && !omp_in_parallel()) {
        int64_t ran = 1;
#pragma omp parallel num_threads((int)threads)
        {
            if (omp_get_thread_num() == 0) ran = omp_get_num_threads();
            f((int64_t)omp_get_thread_num(), (int64_t)omp_get_num_threads());
        }
        return ran;
    }
#endif
    f((int64_t)0, (int64_t)1);
    return 1;
}

struct Range {
    int64_t begin, end;
};

// The part of 0 .. n that falls to this thread: contiguous, and the same for a given number of threads.
inline Range share(int64_t n, int64_t thread, int64_t threads) {
    return {n * thread / threads, n * (thread + 1) / threads};
}
