// Kernels of the weighted bag of rows (bag.py) and of the optimizer that moves those rows (engine/row_adamw.py).
//
// Plain C functions over raw pointers: built by nn/native.py with whatever C++17 compiler is there, without torch's
// headers (two seconds instead of thirty) and without OpenMP (a second runtime beside torch's own would fight over cores).
// What is gathered from a large table waits for memory, so the row some steps ahead is always asked for in advance.
//
// A negative result is 1 + the place of an index outside the table, negated. Rows are row-major and dense.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t AHEAD = 6;     // rows asked for in advance
constexpr int64_t LANES = 16;    // partial sums of a dot product, one vector register's worth

struct bf16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class E>
inline void ask_for(const E* row, int64_t d) {
    const char* at = reinterpret_cast<const char*>(row);
    for (int64_t byte = 0; byte < d * int64_t(sizeof(E)); byte += 64) __builtin_prefetch(at + byte);
}

template <class F>
void in_parts(int64_t n, int threads, F work) {
    threads = int(std::min<int64_t>(std::max(threads, 1), n));
    if (threads <= 1) return work(int64_t(0), n);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(work, n * i / threads, n * (i + 1) / threads);
    work(int64_t(0), n / threads);
    for (auto& other : others) other.join();
}

int64_t outside(const int64_t* index, int64_t n, int64_t k) {
    uint64_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= uint64_t(uint64_t(index[i]) >= uint64_t(k));
    if (!bad) return 0;
    for (int64_t i = 0; i < n; i++)
        if (uint64_t(index[i]) >= uint64_t(k)) return -1 - i;
    return 0;
}

// sum[0..d) += w0 r0 + w1 r1 + w2 r2 + w3 r3: four rows at once, so that the sum goes through the cache a quarter as often
template <class E>
inline void add4(float* __restrict sum, const E* r0, const E* r1, const E* r2, const E* r3, const float* w, int64_t d) {
    const float a = w[0], b = w[1], c = w[2], e = w[3];
    for (int64_t i = 0; i < d; i++) sum[i] += a * wide(r0[i]) + b * wide(r1[i]) + c * wide(r2[i]) + e * wide(r3[i]);
}

template <class E>
inline void add1(float* __restrict sum, const E* row, float w, int64_t d) {
    for (int64_t i = 0; i < d; i++) sum[i] += w * wide(row[i]);
}

template <class E>
inline float dot(const E* __restrict row, const float* __restrict x, int64_t d) {
    float part[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int64_t l = 0; l < LANES; l++) part[l] += wide(row[i + l]) * x[i + l];
    float total = 0;
    for (; i < d; i++) total += wide(row[i]) * x[i];
    for (int64_t l = 0; l < LANES; l++) total += part[l];
    return total;
}

template <class E>
void sums(const E* table, int64_t d, const int64_t* index, const float* weight, int64_t begin, int64_t end, int64_t all,
          float* sum) {
    std::fill(sum, sum + d, 0.0f);
    int64_t j = begin;
    for (; j + 4 <= end; j += 4) {
        for (int64_t p = j + AHEAD; p < std::min(j + AHEAD + 4, all); p++) ask_for(table + index[p] * d, d);
        add4(sum, table + index[j] * d, table + index[j + 1] * d, table + index[j + 2] * d, table + index[j + 3] * d,
             weight + j, d);
    }
    for (; j < end; j++) add1(sum, table + index[j] * d, weight[j], d);
}

template <class E>
int64_t bag(const E* table, int64_t k, int64_t d, const int64_t* index, const float* weight, int64_t t, int64_t b,
            float* out, int threads) {
    if (int64_t bad = outside(index, t * b, k)) return bad;
    in_parts(t, threads, [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) sums(table, d, index, weight, i * b, (i + 1) * b, t * b, out + i * d);
    });
    return 0;
}

template <class E>
int64_t dots(const E* table, int64_t k, int64_t d, const int64_t* index, const float* x, int64_t t, int64_t b,
             float* out, int threads) {
    if (int64_t bad = outside(index, t * b, k)) return bad;
    in_parts(t * b, threads, [=](int64_t first, int64_t last) {
        for (int64_t j = first; j < last; j++) {
            if (j + AHEAD < last) ask_for(table + index[j + AHEAD] * d, d);
            out[j] = dot(table + index[j] * d, x + j / b * d, d);
        }
    });
    return 0;
}

}  // namespace

extern "C" {

int64_t bag_f32(const float* table, int64_t k, int64_t d, const int64_t* index, const float* weight, int64_t t, int64_t b,
                float* out, int threads) {
    return bag(table, k, d, index, weight, t, b, out, threads);
}

int64_t bag_bf16(const bf16* table, int64_t k, int64_t d, const int64_t* index, const float* weight, int64_t t, int64_t b,
                 float* out, int threads) {
    return bag(table, k, d, index, weight, t, b, out, threads);
}

int64_t dots_f32(const float* table, int64_t k, int64_t d, const int64_t* index, const float* x, int64_t t, int64_t b,
                 float* out, int threads) {
    return dots(table, k, d, index, x, t, b, out, threads);
}

int64_t dots_bf16(const bf16* table, int64_t k, int64_t d, const int64_t* index, const float* x, int64_t t, int64_t b,
                  float* out, int threads) {
    return dots(table, k, d, index, x, t, b, out, threads);
}

// Sorts n indices below k, equal ones in their order: order (n) the places, ids (n) the different indices, starts (n + 1)
// where each one's run begins in `order`. Returns how many there are.
int64_t group_rows(const int64_t* index, int64_t n, int64_t k, int64_t* order, int64_t* ids, int64_t* starts) {
    if (int64_t bad = outside(index, n, k)) return bad;
    constexpr int DIGIT = 11;
    constexpr int64_t RADIX = int64_t(1) << DIGIT;
    std::vector<int64_t> other(n);
    int passes = 0;
    while ((int64_t(1) << (DIGIT * passes)) < k) passes++;
    int64_t *from = order, *to = other.data();
    if (passes % 2) std::swap(from, to);
    for (int64_t i = 0; i < n; i++) from[i] = i;
    for (int pass = 0; pass < passes; pass++) {
        int64_t place[RADIX + 1] = {};
        for (int64_t i = 0; i < n; i++) place[((index[i] >> (DIGIT * pass)) & (RADIX - 1)) + 1]++;
        for (int64_t r = 0; r < RADIX; r++) place[r + 1] += place[r];
        for (int64_t i = 0; i < n; i++) to[place[(index[from[i]] >> (DIGIT * pass)) & (RADIX - 1)]++] = from[i];
        std::swap(from, to);
    }
    int64_t u = 0;
    for (int64_t i = 0; i < n; i++)
        if (i == 0 || index[order[i]] != index[order[i - 1]]) ids[u] = index[order[i]], starts[u++] = i;
    starts[u] = n;
    return u;
}

// Both gradients in one pass over the different rows, in rising order: each is read once and meets every token that read
// it. rows (u, d) += weight x token; dots (t, b) = row . token. `table` may be null (no dots wanted), `rows` too.
void bag_gradients_f32(const float* table, int64_t d, const int64_t* order, const int64_t* ids, const int64_t* starts,
                       int64_t u, int64_t b, const float* weight, const float* source, float* rows, float* dots,
                       int threads) {
    in_parts(u, threads, [=](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            if (table && r + AHEAD < last) ask_for(table + ids[r + AHEAD] * d, d);
            float* sum = rows ? rows + r * d : nullptr;
            const float* row = table ? table + ids[r] * d : nullptr;
            for (int64_t i = starts[r]; i < starts[r + 1]; i++) {
                const int64_t place = order[i];
                const float* token = source + place / b * d;
                if (sum) {
                    const float w = weight[place];
                    if (i == starts[r])
                        for (int64_t c = 0; c < d; c++) sum[c] = w * token[c];
                    else
                        add1(sum, token, w, d);
                }
                if (row) dots[place] = dot(row, token, d);
            }
        }
    });
}

// One AdamW step of rows ids (u): see engine/row_adamw.py.
void row_adamw_f32(float* parameter, float* exp_avg, float* exp_avg_sq, int32_t* count, int64_t d, const int64_t* ids,
                   const float* grad, int64_t u, double lr, double beta1, double beta2, double eps, double decay,
                   int threads) {
    in_parts(u, threads, [=](int64_t first, int64_t last) {
        const float b1 = float(beta1), b2 = float(beta2), c1 = float(1 - beta1), c2 = float(1 - beta2);
        for (int64_t r = first; r < last; r++) {
            if (r + 2 < last) {
                const int64_t ahead = ids[r + 2] * d;
                ask_for(parameter + ahead, d), ask_for(exp_avg + ahead, d), ask_for(exp_avg_sq + ahead, d);
            }
            const int32_t steps = ++count[ids[r]];
            const float rate = float(lr / (1 - std::pow(beta1, steps)));
            const float scale = float(1 / std::sqrt(1 - std::pow(beta2, steps)));
            const float keep = float(1 - lr * decay), small = float(eps);
            float* __restrict p = parameter + ids[r] * d;
            float* __restrict m = exp_avg + ids[r] * d;
            float* __restrict v = exp_avg_sq + ids[r] * d;
            const float* __restrict g = grad + r * d;
            for (int64_t i = 0; i < d; i++) {
                m[i] = b1 * m[i] + c1 * g[i];
                v[i] = b2 * v[i] + c2 * g[i] * g[i];
                p[i] = keep * p[i] - rate * m[i] / (std::sqrt(v[i]) * scale + small);
            }
        }
    });
}
}
