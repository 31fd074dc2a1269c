#pragma once

#include <cstdint>

namespace distill_rt {

// out = F_u + w*(F_c - F_u), one w per image (distill_rt/core/guidance.py without rescale). In place is fine.
void combine_guidance(const float* F_u, const float* F_c, const float* w, std::int64_t num_images,
                      std::int64_t num_elements, int num_threads, float* out);

}  // namespace distill_rt
