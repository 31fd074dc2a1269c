// Split a range over short-lived threads. No pool: nothing to keep alive over a fork, nothing that spins between calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace distill_rt {

// Calls work(begin, end) on disjoint ranges that cover [0, num_items); the calling thread takes the first one.
// num_threads is an upper bound; work must not throw.
template <typename Work>
void parallel_for(std::int64_t num_items, int num_threads, const Work& work) {
    const std::int64_t num_parts = std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads, num_items));
    const auto begin_of = [=](std::int64_t part) { return num_items * part / num_parts; };
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(num_parts - 1));
    std::int64_t part = 1;
    try {
        for (; part < num_parts; ++part)
            threads.emplace_back([&work, begin = begin_of(part), end = begin_of(part + 1)] { work(begin, end); });
    } catch (const std::system_error&) {
        // The process is at its thread limit: slower, not wrong. This thread does what is left.
    }
    work(std::int64_t{0}, begin_of(1));
    if (part < num_parts) work(begin_of(part), num_items);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace distill_rt
