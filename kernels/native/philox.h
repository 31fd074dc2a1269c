// Philox4x32-10 (Salmon et al. 2011, SC '11): key = 64-bit seed, counter = (block, stream, 0, 0).
#pragma once

#include <cstdint>

#include "multiversion.h"

namespace distill_rt {

// The words of kLanes consecutive blocks, word e of the image at words[e - 4*first_block].
// One loop over the lanes per round, because that is the form that compilers turn into vector multiplies.
template <int kLanes>
DRT_INLINE void philox_blocks(std::uint64_t seed, std::uint32_t first_block, std::uint32_t stream,
                              std::uint32_t* words) {
    std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        c0[lane] = first_block + static_cast<std::uint32_t>(lane);
        c1[lane] = stream;
        c2[lane] = c3[lane] = 0;
    }
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const std::uint64_t product0 = 0xd2511f53ull * c0[lane], product1 = 0xcd9e8d57ull * c2[lane];
            c0[lane] = static_cast<std::uint32_t>(product1 >> 32) ^ c1[lane] ^ k0;
            c2[lane] = static_cast<std::uint32_t>(product0 >> 32) ^ c3[lane] ^ k1;
            c1[lane] = static_cast<std::uint32_t>(product1);
            c3[lane] = static_cast<std::uint32_t>(product0);
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        words[4 * lane] = c0[lane];
        words[4 * lane + 1] = c1[lane];
        words[4 * lane + 2] = c2[lane];
        words[4 * lane + 3] = c3[lane];
    }
}

}  // namespace distill_rt
