// Sixteen numbers at once, on CPUs with AVX512_BF16 and VNNI and on those with AVX2: what decode.cpp is written in.
//
//   Floats  16 fp32       Pairs  16 pairs of bf16, ready to be multiplied       Seen  a bit for every lane
//
// TENFOLD_LANES is the width of a register in bits, 0 where there is neither: then decode.cpp says that it cannot be used. On
// AVX2 a Floats is two registers, and bf16 numbers are widened to fp32 before they are multiplied.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
#define TENFOLD_LANES 512
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TENFOLD_LANES 256
#include <immintrin.h>
#else
#define TENFOLD_LANES 0
#endif

#if TENFOLD_LANES

namespace {

constexpr int64_t LANES = 16;
using Seen = uint16_t;

#if TENFOLD_LANES == 512

using Floats = __m512;
using Pairs = __m512i;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline void store(float* at, Floats x) { _mm512_storeu_ps(at, x); }
inline Floats load_some(const float* at, Seen some) { return _mm512_maskz_loadu_ps(some, at); }
inline void store_some(float* at, Seen some, Floats x) { _mm512_mask_storeu_ps(at, some, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats size(Floats a) { return _mm512_abs_ps(a); }
inline Floats times_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats times_subtract(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline Floats less_times(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, 0); }
inline Floats doubled(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }  // x 2^n for whole n
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
inline Seen above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Seen equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline Floats where(Seen seen, Floats a, Floats b) { return _mm512_mask_blend_ps(seen, b, a); }  // a where seen
inline Floats widen_at(const uint16_t* at) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void narrow_to(uint16_t* at, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), (__m256i)_mm512_cvtneps_pbh(x));
}
inline Floats half_at(const uint16_t* at) {  // fp16
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline Pairs pairs_at(const uint16_t* at) { return _mm512_loadu_si512(at); }
inline Pairs pair(const uint16_t* at) {  // one pair in all lanes
    int32_t two;
    std::memcpy(&two, at, 4);
    return _mm512_set1_epi32(two);
}
inline Floats dot_pairs(Floats sum, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
// Rounds to whole numbers of 8 bits, and returns their sum.
inline int32_t codes_to(int8_t* at, Floats x) {
    const __m512i codes = _mm512_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtsepi32_epi8(codes));
    return _mm512_reduce_add_epi32(codes);
}

#else

struct Floats {
    __m256 low, high;
};
struct Pairs {
    Floats even, odd;
};

inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline void store(float* at, Floats x) {
    _mm256_storeu_ps(at, x.low);
    _mm256_storeu_ps(at + 8, x.high);
}
inline __m256i lanes_of(Seen some, int first) {  // all bits of a lane whose bit is set
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(some >> first), bit), bit);
}
inline Floats load_some(const float* at, Seen some) {
    return {_mm256_maskload_ps(at, lanes_of(some, 0)), _mm256_maskload_ps(at + 8, lanes_of(some, 8))};
}
inline void store_some(float* at, Seen some, Floats x) {
    _mm256_maskstore_ps(at, lanes_of(some, 0), x.low);
    _mm256_maskstore_ps(at + 8, lanes_of(some, 8), x.high);
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats subtract(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats times(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats over(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats larger(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats size(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Floats times_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats times_subtract(Floats a, Floats b, Floats c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats less_times(Floats a, Floats b, Floats c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats nearest(Floats x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, mode), _mm256_round_ps(x.high, mode)};
}
inline __m256 doubled(__m256 x, __m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Floats doubled(Floats x, Floats n) { return {doubled(x.low, n.low), doubled(x.high, n.high)}; }
inline float sum_of(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest_of(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline Seen above(Floats a, Floats b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ));
    return Seen(low | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ)) << 8);
}
inline Seen equal(Floats a, Floats b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ));
    return Seen(low | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)) << 8);
}
inline Floats where(Seen seen, Floats a, Floats b) {
    return {_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(lanes_of(seen, 0))),
            _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(lanes_of(seen, 8)))};
}
inline __m256 widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats widen_at(const uint16_t* at) {
    const auto* bits = reinterpret_cast<const __m128i*>(at);
    return {widen(_mm_loadu_si128(bits)), widen(_mm_loadu_si128(bits + 1))};
}
inline __m256i narrowed(__m256 x) {  // to the nearest, of two as near to the even one; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(near, quiet, none), 16);
}
inline void narrow_to(uint16_t* at, Floats x) {
    const __m256i both = _mm256_packus_epi32(narrowed(x.low), narrowed(x.high));  // packs within halves of a register
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permute4x64_epi64(both, 0xD8));
}
inline Floats half_at(const uint16_t* at) {
    const auto* bits = reinterpret_cast<const __m128i*>(at);
    return {_mm256_cvtph_ps(_mm_loadu_si128(bits)), _mm256_cvtph_ps(_mm_loadu_si128(bits + 1))};
}
inline __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd_of(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int32_t(0xFFFF0000))));
}
inline Pairs pairs_at(const uint16_t* at) {
    const auto* bits = reinterpret_cast<const __m256i*>(at);
    const __m256i low = _mm256_loadu_si256(bits), high = _mm256_loadu_si256(bits + 1);
    return {{even_of(low), even_of(high)}, {odd_of(low), odd_of(high)}};
}
inline Pairs pair(const uint16_t* at) {
    int32_t two;
    std::memcpy(&two, at, 4);
    const __m256 even = even_of(_mm256_set1_epi32(two)), odd = odd_of(_mm256_set1_epi32(two));
    return {{even, even}, {odd, odd}};
}
inline Floats dot_pairs(Floats sum, Pairs a, Pairs b) {
    return times_add(a.odd, b.odd, times_add(a.even, b.even, sum));
}
inline int32_t codes_to(int8_t* at, Floats x) {
    const __m256i low = _mm256_cvtps_epi32(x.low), high = _mm256_cvtps_epi32(x.high);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), bytes);
    const __m256i eight = _mm256_add_epi32(low, high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xEE));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0x55)));
}

#endif

inline Floats none() { return all(0.0f); }
inline Seen first_lanes(int64_t count) { return count >= LANES ? 0xFFFF : Seen((1u << count) - 1); }

inline Floats exponential(Floats x) {  // for x <= 88; relative error below 2e-7
    x = larger(x, all(-87.0f));
    const Floats n = nearest(times(x, all(1.44269504f)));
    Floats r = less_times(n, all(0.693359375f), x);
    r = less_times(n, all(-2.12194440e-4f), r);
    Floats p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = times_add(p, r, all(c));
    return doubled(times_add(p, times(r, r), add(r, all(1.0f))), n);
}

}  // namespace

#endif
