#include "unit_noise.h"

#include <algorithm>
#include <cstring>

#include "multiversion.h"
#include "normal.h"
#include "parallel.h"
#include "philox.h"

namespace distill_rt {
namespace {

constexpr int kChunkBlocks = 64;
constexpr int kChunkElements = 4 * kChunkBlocks;

// Elements [4*first_block, 4*first_block + kChunkElements) of one image.
DRT_CLONES void noise_chunk(std::uint64_t seed, std::uint32_t first_block, std::uint32_t stream, float* out) {
    std::uint32_t words[kChunkElements];
    philox_blocks<kChunkBlocks>(seed, first_block, stream, words);
    for (int i = 0; i < kChunkElements; ++i) out[i] = normal_from_word(words[i]);
}

}  // namespace

void unit_noise(const std::uint64_t* seeds, std::int64_t num_images, std::int64_t num_elements, std::uint32_t stream,
                int num_threads, float* out) {
    const std::int64_t chunks_per_image = (num_elements + kChunkElements - 1) / kChunkElements;
    parallel_for(num_images * chunks_per_image, num_threads, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t image = i / chunks_per_image, chunk = i % chunks_per_image;
            const std::int64_t first = chunk * kChunkElements;
            const std::int64_t num = std::min<std::int64_t>(kChunkElements, num_elements - first);
            const auto first_block = static_cast<std::uint32_t>(first / 4);
            float* const target = out + image * num_elements + first;
            if (num == kChunkElements) {
                noise_chunk(seeds[image], first_block, stream, target);
            } else {
                float whole[kChunkElements];
                noise_chunk(seeds[image], first_block, stream, whole);
                std::memcpy(target, whole, static_cast<std::size_t>(num) * sizeof(float));
            }
        }
    });
}

}  // namespace distill_rt
