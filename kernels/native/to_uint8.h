#pragma once

#include <cstdint>

namespace distill_rt {

// float32 (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C): (x + 1)*127.5 rounded half to even, clamped, NaN -> 0.
void to_uint8(const float* x_BCHW, std::int64_t num_images, std::int64_t num_channels, std::int64_t num_pixels,
              int num_threads, std::uint8_t* out_BHWC);

}  // namespace distill_rt
