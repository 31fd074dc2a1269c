#include "to_uint8.h"

#include <algorithm>

#include "multiversion.h"
#include "normal.h"
#include "parallel.h"

namespace distill_rt {
namespace {

constexpr int kBlock = 512;

DRT_INLINE std::uint8_t to_byte(float x) {
    float value = (x + 1.0f) * 127.5f;
    value = value > 0.0f ? value : 0.0f;  // NaN is not above zero
    value = value < 255.0f ? value : 255.0f;
    // At 2^23 one unit is the last place, so this addition rounds half to even and the low bits are the integer.
    return static_cast<std::uint8_t>(bits_of(value + 8388608.0f));
}

// `num` pixels of one image; planes are num_pixels apart.
DRT_CLONES void block(const float* x, std::int64_t num_channels, std::int64_t num_pixels, int num, std::uint8_t* out) {
    if (num_channels == 3) {
        std::uint8_t red[kBlock], green[kBlock], blue[kBlock];
        for (int i = 0; i < num; ++i) red[i] = to_byte(x[i]);
        for (int i = 0; i < num; ++i) green[i] = to_byte(x[num_pixels + i]);
        for (int i = 0; i < num; ++i) blue[i] = to_byte(x[2 * num_pixels + i]);
        for (int i = 0; i < num; ++i) {
            out[3 * i] = red[i];
            out[3 * i + 1] = green[i];
            out[3 * i + 2] = blue[i];
        }
        return;
    }
    for (std::int64_t c = 0; c < num_channels; ++c)
        for (int i = 0; i < num; ++i) out[num_channels * i + c] = to_byte(x[c * num_pixels + i]);
}

}  // namespace

void to_uint8(const float* x_BCHW, std::int64_t num_images, std::int64_t num_channels, std::int64_t num_pixels,
              int num_threads, std::uint8_t* out_BHWC) {
    const std::int64_t blocks_per_image = (num_pixels + kBlock - 1) / kBlock;
    parallel_for(num_images * blocks_per_image, num_threads, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = i % blocks_per_image * kBlock;
            const std::int64_t image = i / blocks_per_image * num_channels * num_pixels;
            const int num = static_cast<int>(std::min<std::int64_t>(kBlock, num_pixels - first));
            block(x_BCHW + image + first, num_channels, num_pixels, num, out_BHWC + image + first * num_channels);
        }
    });
}

}  // namespace distill_rt
