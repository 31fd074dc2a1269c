#pragma once

#include <cstdint>

namespace distill_rt {

// Any row of a step table without dynamic threshold, in the order of distill_rt/core/table.py run_table:
//     x0    = clip(p*x + q*F)                            only with F, and only where it is used
//     total = a*x + b*F   or   r*x + g*x0   or   r*x     folded / general / no network
//     total = total + weight*buffer                      each of terms[0..num_terms), in order
//     out   = total,  x0_out = x0,  scaled = next_c_in*total
// Any output may be the very buffer of an input.
struct TableRow {
    static constexpr int kMaxTerms = 6;  // f, h1, h2, h3, k, n
    struct Term {
        float weight;
        const float* buffer;
    };
    const float *x, *F;  // F null: no network
    float p, q, clip;    // clip <= 0: none
    bool folded;
    float a, b;  // weights of x and of F when folded, of x and of x0 (r and g) when not
    Term terms[kMaxTerms];
    int num_terms;
    float next_c_in;
    float *out, *x0_out, *scaled;  // x0_out and scaled may be null
};

void table_row(const TableRow& row, std::int64_t num_elements, int num_threads);

}  // namespace distill_rt
