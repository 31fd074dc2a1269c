// One source, several instruction sets: the loader picks the best clone for the machine (GCC's target_clones, ELF ifunc).
//
// The bits stay the same: every operation is rounded on its own (the build sets -ffp-contract=off), so wider
// vectors change the speed only. Helpers called from a clone must be DRT_INLINE, or they would run as baseline code.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DRT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DRT_CLONES
#endif

// DRT_IVDEP: an output may be the very buffer of an input (in place); nothing else overlaps (bind.cpp checks).
#if defined(__clang__)
#define DRT_INLINE inline __attribute__((always_inline))
#define DRT_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DRT_INLINE inline __attribute__((always_inline))
#define DRT_IVDEP _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define DRT_INLINE __forceinline
#define DRT_IVDEP __pragma(loop(ivdep))
#else
#define DRT_INLINE inline
#define DRT_IVDEP
#endif
