#include "table_row.h"

#include <algorithm>

#include "multiversion.h"
#include "parallel.h"

namespace distill_rt {
namespace {

// Short passes over a block that stays in the first-level cache: any mix of terms, every pass a plain vector loop.
constexpr int kBlock = 1024;

DRT_CLONES void block(const TableRow& row, std::int64_t begin, int num) {
    float x0[kBlock], total[kBlock];
    const float* const x = row.x + begin;
    if (row.F != nullptr) {
        const float* const F = row.F + begin;
        if (row.x0_out != nullptr || !row.folded) {
            const float p = row.p, q = row.q;
            for (int i = 0; i < num; ++i) x0[i] = p * x[i] + q * F[i];
            if (row.clip > 0.0f) {
                const float low = -row.clip, high = row.clip;
                // Written so that NaN stays NaN, as in numpy.clip.
                for (int i = 0; i < num; ++i) x0[i] = x0[i] < low ? low : (x0[i] > high ? high : x0[i]);
            }
        }
        const float* const second = row.folded ? F : x0;
        const float a = row.a, b = row.b;
        for (int i = 0; i < num; ++i) total[i] = a * x[i] + b * second[i];
    } else {
        const float a = row.a;
        for (int i = 0; i < num; ++i) total[i] = a * x[i];
    }
    for (int j = 0; j < row.num_terms; ++j) {
        const float weight = row.terms[j].weight;
        const float* const buffer = row.terms[j].buffer + begin;
        for (int i = 0; i < num; ++i) total[i] = total[i] + weight * buffer[i];
    }
    // Outputs last: everything of this block has been read.
    if (row.scaled != nullptr) {
        float* const scaled = row.scaled + begin;
        const float next_c_in = row.next_c_in;
        for (int i = 0; i < num; ++i) scaled[i] = next_c_in * total[i];
    }
    if (row.x0_out != nullptr) std::copy_n(x0, num, row.x0_out + begin);
    std::copy_n(total, num, row.out + begin);
}

}  // namespace

void table_row(const TableRow& row, std::int64_t num_elements, int num_threads) {
    parallel_for(num_elements, num_threads, [&row](std::int64_t begin, std::int64_t end) {
        for (; begin < end; begin += kBlock)
            block(row, begin, static_cast<int>(std::min<std::int64_t>(kBlock, end - begin)));
    });
}

}  // namespace distill_rt
