// 64 outputs of a few rows: the products of decode.cpp, in bf16, with 4-bit and with 8-bit weights.
//
// Every output is summed in one order, whatever the number of rows. MOST is the number of rows that share a read of the weights: as
// many as leave their sums in registers. Layouts stand in decode.cpp.

#pragma once

#include "lanes.h"

#if TENFOLD_LANES

namespace {

constexpr int64_t TILES = 4, OUTPUTS = LANES * TILES, GROUP = 32, MOST = 6;

// Rows in 8 bits: x = scale * code, a scale for every 32; sums of the codes beside them.
struct Codes {
    const int8_t* codes;
    const float* scales;
    const int32_t* sums;
};

inline void finish(float* y, Floats sum, int64_t left, bool adds) {
    if (left <= 0) return;
    const Seen some = first_lanes(left);
    if (adds) sum = add(sum, load_some(y, some));
    store_some(y, some, sum);
}

#if TENFOLD_LANES == 512

// 64 outputs of R rows. `ahead` is asked for on the way: `lines` cache lines in all.
template <int R>
void product(const uint16_t* a, int64_t stride, const uint16_t* w, int64_t pairs, float* y, int64_t width, int64_t left,
             bool adds, const char* ahead, int64_t lines) {
    Floats sum[R][TILES];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < TILES; t++) sum[r][t] = none();
    const int64_t each = (lines + pairs - 1) / pairs;
    for (int64_t p = 0; p < pairs; p++) {
        Pairs weight[TILES];
        for (int t = 0; t < TILES; t++) weight[t] = pairs_at(w + (p * TILES + t) * 2 * LANES);
        for (int64_t i = 0; i < each; i++) _mm_prefetch(ahead + (p * each + i) * 64, _MM_HINT_T1);
        for (int r = 0; r < R; r++) {
            const Pairs x = pair(a + r * stride + 2 * p);
            for (int t = 0; t < TILES; t++) sum[r][t] = dot_pairs(sum[r][t], x, weight[t]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < TILES; t++) finish(y + r * width + t * LANES, sum[r][t], left - t * LANES, adds);
}

// The same with 4- or 8-bit weights: a group's codes are multiplied as whole numbers, then scaled. For int4 the offset is
// multiplied with the sum of the group's inputs; for int8 the 128 that makes its codes positive is taken off again.
template <int R, int KIND>
void product8(Codes x, int64_t stride, const uint8_t* w, const uint16_t* scales, int64_t groups, float* y, int64_t width,
              int64_t left, bool adds, const char* ahead, int64_t lines) {
    alignas(64) float total[R][OUTPUTS] = {};
    const int64_t each = (lines + groups - 1) / groups;
    const __m512i low = _mm512_set1_epi8(15);
    const auto quad = [&](int r, int64_t at) {
        int32_t four;
        std::memcpy(&four, x.codes + r * stride + at, 4);
        return _mm512_set1_epi32(four);
    };
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t i = 0; i < each; i++) _mm_prefetch(ahead + (g * each + i) * 64, _MM_HINT_T1);
        __m512i sum[R][TILES];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < TILES; t++) sum[r][t] = _mm512_setzero_si512();
        if (KIND == 1) {
            for (int q = 0; q < 4; q++) {
                const uint8_t* at = w + (g * TILES * 4 + q) * 64;
                __m512i weight[TILES];
                for (int t = 0; t < TILES; t++) weight[t] = _mm512_and_si512(_mm512_loadu_si512(at + t * 256), low);
                for (int r = 0; r < R; r++) {
                    const __m512i four = quad(r, g * GROUP + q * 8);
                    for (int t = 0; t < TILES; t++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], weight[t], four);
                }
                for (int t = 0; t < TILES; t++)
                    weight[t] = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(at + t * 256), 4), low);
                for (int r = 0; r < R; r++) {
                    const __m512i four = quad(r, g * GROUP + q * 8 + 4);
                    for (int t = 0; t < TILES; t++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], weight[t], four);
                }
            }
        } else {
            for (int q = 0; q < 8; q++) {
                const uint8_t* at = w + (g * TILES * 8 + q) * 64;
                __m512i weight[TILES];
                for (int t = 0; t < TILES; t++) weight[t] = _mm512_loadu_si512(at + t * 512);
                for (int r = 0; r < R; r++) {
                    const __m512i four = quad(r, g * GROUP + q * 4);
                    for (int t = 0; t < TILES; t++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], weight[t], four);
                }
            }
        }
        const uint16_t* group = scales + g * (KIND == 1 ? 2 : 1) * OUTPUTS;
        for (int t = 0; t < TILES; t++) {
            const Floats scale = half_at(group + t * LANES);
            const Floats offset = KIND == 1 ? half_at(group + OUTPUTS + t * LANES) : scale;
            for (int r = 0; r < R; r++) {
                const int32_t codes = x.sums[r * groups + g];
                const Floats own = all(x.scales[r * groups + g]);
                Floats part;
                if (KIND == 1) {
                    part = times(offset, all(float(codes)));
                    part = times_add(scale, _mm512_cvtepi32_ps(sum[r][t]), part);
                } else {
                    part = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][t], _mm512_set1_epi32(128 * codes)));
                    part = times(scale, part);
                }
                store(total[r] + t * LANES, times_add(own, part, load(total[r] + t * LANES)));
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < TILES; t++)
            finish(y + r * width + t * LANES, load(total[r] + t * LANES), left - t * LANES, adds);
}

#else

// The same, a tile after the other: there are sixteen registers. x: the rows in fp32.
template <int R>
void product(const float* x, int64_t stride, const uint16_t* w, int64_t pairs, float* y, int64_t width, int64_t left,
             bool adds, const char* ahead, int64_t lines) {
    const int64_t each = (lines + TILES * pairs - 1) / (TILES * pairs);
    for (int t = 0; t < TILES; t++) {
        Floats sum[R];
        for (int r = 0; r < R; r++) sum[r] = none();
        for (int64_t p = 0; p < pairs; p++) {
            const auto* bits = reinterpret_cast<const __m256i*>(w + (p * TILES + t) * 2 * LANES);
            for (int64_t i = 0; i < each; i++) _mm_prefetch(ahead + ((t * pairs + p) * each + i) * 64, _MM_HINT_T1);
            const Floats even{even_of(_mm256_loadu_si256(bits)), even_of(_mm256_loadu_si256(bits + 1))};
            for (int r = 0; r < R; r++) sum[r] = times_add(even, all(x[r * stride + 2 * p]), sum[r]);
            const Floats odd{odd_of(_mm256_loadu_si256(bits)), odd_of(_mm256_loadu_si256(bits + 1))};
            for (int r = 0; r < R; r++) sum[r] = times_add(odd, all(x[r * stride + 2 * p + 1]), sum[r]);
        }
        for (int r = 0; r < R; r++) finish(y + r * width + t * LANES, sum[r], left - t * LANES, adds);
    }
}

// Whole numbers in two registers, eight lanes in each.
struct Whole {
    __m256i low, high;
};
inline Whole bytes_at(const uint8_t* at) {
    const auto* bits = reinterpret_cast<const __m256i*>(at);
    return {_mm256_loadu_si256(bits), _mm256_loadu_si256(bits + 1)};
}
inline __m256i wide_sum(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }
inline __m256i quad_at(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, 4);
    return _mm256_set1_epi32(four);
}

// The sum of a group: add(codes of weights, codes of a row), then done(). KIND 1: codes of 0 to 15; 2: codes with 128 added, of
// which the sum still holds `taken_off` for every input.
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
template <int KIND>
struct Sum {
    static constexpr int32_t taken_off = KIND == 1 ? 0 : 128;
    __m256i sum = _mm256_setzero_si256();
    void add(__m256i weight, __m256i x) {
#ifdef __AVXVNNI__
        sum = _mm256_dpbusd_avx_epi32(sum, weight, x);
#else
        sum = _mm256_dpbusd_epi32(sum, weight, x);
#endif
    }
    __m256i done() const { return sum; }
};
#else
template <int KIND>
struct Sum {  // 4 bits: eight sums of two products fit into 16 bits (15 * 127 * 2 * 8)
    static constexpr int32_t taken_off = 0;
    __m256i sum = _mm256_setzero_si256();
    void add(__m256i weight, __m256i x) { sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight, x)); }
    __m256i done() const { return wide_sum(sum); }
};
template <>
struct Sum<2> {  // 8 bits with their sign: |w| times x with w's sign fits into 16 bits once (127 * 127 * 2)
    static constexpr int32_t taken_off = 0;
    __m256i sum = _mm256_setzero_si256();
    void add(__m256i weight, __m256i x) {
        const __m256i w = _mm256_xor_si256(weight, _mm256_set1_epi8(int8_t(0x80)));
        sum = _mm256_add_epi32(sum, wide_sum(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))));
    }
    __m256i done() const { return sum; }
};
#endif

// The same with 4- or 8-bit weights: a group's codes are multiplied as whole numbers, then scaled.
template <int R, int KIND>
void product8(Codes x, int64_t stride, const uint8_t* w, const uint16_t* scales, int64_t groups, float* y, int64_t width,
              int64_t left, bool adds, const char* ahead, int64_t lines) {
    const int64_t each = (lines + TILES * groups - 1) / (TILES * groups);
    const __m256i mask = _mm256_set1_epi8(15);
    for (int t = 0; t < TILES; t++) {
        Floats total[R];
        for (int r = 0; r < R; r++) total[r] = none();
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t i = 0; i < each; i++) _mm_prefetch(ahead + ((t * groups + g) * each + i) * 64, _MM_HINT_T1);
            Sum<KIND> low[R], high[R];
            if (KIND == 1) {
                for (int q = 0; q < 4; q++) {
                    const Whole both = bytes_at(w + ((g * TILES + t) * 4 + q) * 64);
                    const Whole first{_mm256_and_si256(both.low, mask), _mm256_and_si256(both.high, mask)};
                    const Whole second{_mm256_and_si256(_mm256_srli_epi16(both.low, 4), mask),
                                       _mm256_and_si256(_mm256_srli_epi16(both.high, 4), mask)};
                    for (int r = 0; r < R; r++) {
                        const int8_t* codes = x.codes + r * stride + g * GROUP + q * 8;
                        const __m256i a = quad_at(codes), b = quad_at(codes + 4);
                        low[r].add(first.low, a), high[r].add(first.high, a);
                        low[r].add(second.low, b), high[r].add(second.high, b);
                    }
                }
            } else {
                for (int q = 0; q < 8; q++) {
                    const Whole weight = bytes_at(w + ((g * TILES + t) * 8 + q) * 64);
                    for (int r = 0; r < R; r++) {
                        const __m256i a = quad_at(x.codes + r * stride + g * GROUP + q * 4);
                        low[r].add(weight.low, a), high[r].add(weight.high, a);
                    }
                }
            }
            const uint16_t* group = scales + g * (KIND == 1 ? 2 : 1) * OUTPUTS + t * LANES;
            const Floats scale = half_at(group);
            for (int r = 0; r < R; r++) {
                const int32_t codes = x.sums[r * groups + g];
                const __m256i off = _mm256_set1_epi32(Sum<KIND>::taken_off * codes);
                const Floats whole{_mm256_cvtepi32_ps(_mm256_sub_epi32(low[r].done(), off)),
                                   _mm256_cvtepi32_ps(_mm256_sub_epi32(high[r].done(), off))};
                Floats part;
                if (KIND == 1) {
                    part = times(half_at(group + OUTPUTS), all(float(codes)));
                    part = times_add(scale, whole, part);
                } else {
                    part = times(scale, whole);
                }
                total[r] = times_add(all(x.scales[r * groups + g]), part, total[r]);
            }
        }
        for (int r = 0; r < R; r++) finish(y + r * width + t * LANES, total[r], left - t * LANES, adds);
    }
}

#endif

}  // namespace

#endif
