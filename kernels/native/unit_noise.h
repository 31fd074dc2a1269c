#pragma once

#include <cstdint>

namespace distill_rt {

// Unit normal noise of one stream for num_images images of num_elements each (kernels/reference.py: unit_noise).
void unit_noise(const std::uint64_t* seeds, std::int64_t num_images, std::int64_t num_elements, std::uint32_t stream,
                int num_threads, float* out);

}  // namespace distill_rt
