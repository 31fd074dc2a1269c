// Word -> standard normal float32, the operation sequence of distill_rt/core/noise.py (the specification), in its order.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "multiversion.h"

static_assert(FLT_EVAL_METHOD == 0, "float32 arithmetic must be rounded to float32 after every operation");

namespace distill_rt {

// Lowest power first; printed by tests/core/fit_normal.py.
constexpr float kLog[] = {-0.500005841f, 0.333352625f, -0.249614656f, 0.198882774f,
                          -0.173259959f, 0.163356408f, -0.100346081f};
constexpr float kCentre[] = {2.12331319f,     0.348803639f,     -0.00590612181f,  -0.00177431689f,
                             0.000307359558f, -5.79007246e-06f, -4.50551988e-06f, 4.46372951e-07f};
constexpr float kTail[] = {4.00643492f,    1.4165951f,      0.0133382948f,  -0.0109350942f,
                           0.00819587708f, -0.00474983687f, 0.00163665228f, -0.00023939008f};
constexpr float kLn2 = 0.693147182f;
constexpr std::uint32_t kRootHalfBits = 0x3f3504f3u;

DRT_INLINE float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

DRT_INLINE std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <int N>
DRT_INLINE float horner(const float (&coefficients)[N], float s) {
    float total = coefficients[N - 1];
    for (int j = N - 2; j >= 0; --j) total = total * s + coefficients[j];
    return total;
}

DRT_INLINE float log_normal_range(float t) {
    const std::uint32_t i = bits_of(t) + (0x3f800000u - kRootHalfBits);
    const float e = static_cast<float>(static_cast<std::int32_t>(i >> 23) - 127);
    const float f = float_of((i & 0x007fffffu) + kRootHalfBits) - 1.0f;
    return e * kLn2 + (f + (f * f) * horner(kLog, f));
}

DRT_INLINE float normal_from_word(std::uint32_t word) {
    const float k = static_cast<float>(static_cast<std::int32_t>(word & 0x7fffffffu));
    const float p = (k + 0.5f) * 0x1p-32f;
    const float x = 1.0f - (p + p);
    const float w = -log_normal_range((p * 4.0f) * (1.0f - p));
    // Both branches always: a select costs less than a branch in a vector loop.
    const float centre = horner(kCentre, w - 2.5f);
    const float tail = horner(kTail, std::sqrt(w) - 3.0f);
    const float ratio = w < 5.0f ? centre : tail;
    return float_of(bits_of(x * ratio) | (word & 0x80000000u));
}

}  // namespace distill_rt
