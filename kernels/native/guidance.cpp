#include "guidance.h"

#include <algorithm>

#include "multiversion.h"
#include "parallel.h"

namespace distill_rt {
namespace {

DRT_CLONES void part(const float* F_u, const float* F_c, float w, std::int64_t num, float* out) {
    DRT_IVDEP
    for (std::int64_t i = 0; i < num; ++i) out[i] = F_u[i] + w * (F_c[i] - F_u[i]);
}

}  // namespace

void combine_guidance(const float* F_u, const float* F_c, const float* w, std::int64_t num_images,
                      std::int64_t num_elements, int num_threads, float* out) {
    parallel_for(num_images * num_elements, num_threads, [=](std::int64_t begin, std::int64_t end) {
        while (begin < end) {
            const std::int64_t image = begin / num_elements;
            const std::int64_t stop = std::min(end, (image + 1) * num_elements);
            part(F_u + begin, F_c + begin, w[image], stop - begin, out + begin);
            begin = stop;
        }
    });
}

}  // namespace distill_rt
