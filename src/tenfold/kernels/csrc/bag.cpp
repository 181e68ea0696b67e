// Kernels of the weighted bag of rows (bag.py) and of the optimizer that moves those rows (engine/row_adamw.py).
//
// Plain C functions over raw pointers: built by kernels/native.py with whatever C++17 compiler is there, without torch's
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

extern "C" {

// Arguments of a call, filled by field name in kernels/bag_calls.py, which compares their sizes with `size_of` at load.

struct BagCall {
    const void* table;  // (k, d), fp32 or bf16
    int64_t k, d;
    const int64_t* index;  // (t, b)
    const float* other;    // weights (t, b) of a bag, tokens (t, d) of products
    int64_t t, b;
    float* out;  // (t, d) of a bag, (t, b) of products
    int64_t threads;
};

struct GroupCall {
    const int64_t* index;  // (n), below k
    int64_t n, k;
    int64_t *order, *ids, *starts;  // (n), (n), (n + 1)
};

struct GradientCall {
    const float* table;  // or null: no dots
    int64_t d;
    const int64_t *order, *ids, *starts;  // of group_rows
    int64_t u, b;
    const float *weight, *source;  // (t, b), (t, d)
    float* rows;                   // (u, d), or null
    float* dots;                   // (t, b), or null
    int64_t threads;
};

struct RowStepCall {
    float *parameter, *exp_avg, *exp_avg_sq;  // (k, d)
    int32_t* count;                           // (k)
    int64_t d;
    const int64_t* ids;  // (u)
    const float* grad;   // (u, d)
    int64_t u;
    double lr, beta1, beta2, eps, decay;
    int64_t threads;
};
}

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

inline void narrow(float x, float& to) { to = x; }
inline void narrow(float x, bf16& to) {  // to the nearest, of two the even one
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to.bits = uint16_t(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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

// The next four rows are asked for line by line between the sums: all at once they would fill the queue to the memory and
// the sums would wait behind it.
template <class E>
void sums(const E* table, int64_t d, const int64_t* index, const float* weight, int64_t begin, int64_t end, int64_t all,
          float* sum) {
    constexpr int64_t LINE = 64 / sizeof(E);
    std::fill(sum, sum + d, 0.0f);
    int64_t j = begin;
    for (; j + 4 <= end; j += 4) {
        const E *row[4], *next[4];
        for (int64_t i = 0; i < 4; i++) {
            row[i] = table + index[j + i] * d;
            next[i] = table + index[std::min(j + 4 + i, all - 1)] * d;
        }
        int64_t at = 0;
        for (; at + LINE <= d; at += LINE) {
            for (int64_t i = 0; i < 4; i++) __builtin_prefetch(next[i] + at, 0, 2);
            add4(sum + at, row[0] + at, row[1] + at, row[2] + at, row[3] + at, weight + j, LINE);
        }
        add4(sum + at, row[0] + at, row[1] + at, row[2] + at, row[3] + at, weight + j, d - at);
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

// y (t, d) = weight (t, k) table (k, d), reading only rows whose weight is not zero; of each token in rising order.
template <class E>
void nonzero_bag(const E* table, int64_t k, int64_t d, const E* weight, int64_t t, E* out, int threads) {
    in_parts(t, threads, [=](int64_t first, int64_t last) {
        std::vector<int64_t> index(k + 1);
        std::vector<float> kept(k + 1), sum(d);
        for (int64_t i = first; i < last; i++) {
            int64_t n = 0;
            for (int64_t r = 0; r < k; r++) {
                const float w = wide(weight[i * k + r]);
                index[n] = r, kept[n] = w, n += w != 0;  // without a branch, which half the time would be mispredicted
            }
            sums(table, d, index.data(), kept.data(), 0, n, n, sum.data());
            for (int64_t c = 0; c < d; c++) narrow(sum[c], out[i * d + c]);
        }
    });
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

int64_t size_of(const char* structure) {
    if (!std::strcmp(structure, "BagCall")) return sizeof(BagCall);
    if (!std::strcmp(structure, "GroupCall")) return sizeof(GroupCall);
    if (!std::strcmp(structure, "GradientCall")) return sizeof(GradientCall);
    if (!std::strcmp(structure, "RowStepCall")) return sizeof(RowStepCall);
    return -1;
}

int64_t bag_f32(const BagCall* c) {
    return bag(static_cast<const float*>(c->table), c->k, c->d, c->index, c->other, c->t, c->b, c->out, int(c->threads));
}

int64_t bag_bf16(const BagCall* c) {
    return bag(static_cast<const bf16*>(c->table), c->k, c->d, c->index, c->other, c->t, c->b, c->out, int(c->threads));
}

int64_t dots_f32(const BagCall* c) {
    return dots(static_cast<const float*>(c->table), c->k, c->d, c->index, c->other, c->t, c->b, c->out, int(c->threads));
}

int64_t dots_bf16(const BagCall* c) {
    return dots(static_cast<const bf16*>(c->table), c->k, c->d, c->index, c->other, c->t, c->b, c->out, int(c->threads));
}

// In decoding it is called once for each layer and token, so its few arguments come as they are.
void nonzero_bag_f32(const float* table, int64_t k, int64_t d, const float* weight, int64_t t, float* out, int threads) {
    nonzero_bag(table, k, d, weight, t, out, threads);
}

void nonzero_bag_bf16(const bf16* table, int64_t k, int64_t d, const bf16* weight, int64_t t, bf16* out, int threads) {
    nonzero_bag(table, k, d, weight, t, out, threads);
}

// Sorts n indices below k, equal ones in their order: order (n) the places, ids (n) the different indices, starts (n + 1)
// where each one's run begins in `order`. Returns how many there are.
int64_t group_rows(const GroupCall* call) {
    const int64_t *index = call->index, n = call->n, k = call->k;
    int64_t *order = call->order, *ids = call->ids, *starts = call->starts;
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
void bag_gradients_f32(const GradientCall* call) {
    const float *table = call->table, *weight = call->weight, *source = call->source;
    const int64_t *order = call->order, *ids = call->ids, *starts = call->starts, d = call->d, b = call->b;
    float *rows = call->rows, *dots = call->dots;
    in_parts(call->u, int(call->threads), [=](int64_t first, int64_t last) {
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
void row_adamw_f32(const RowStepCall* call) {
    float *parameter = call->parameter, *exp_avg = call->exp_avg, *exp_avg_sq = call->exp_avg_sq;
    int32_t* count = call->count;
    const float* grad = call->grad;
    const int64_t *ids = call->ids, d = call->d;
    const double lr = call->lr, beta1 = call->beta1, beta2 = call->beta2, eps = call->eps, decay = call->decay;
    in_parts(call->u, int(call->threads), [=](int64_t first, int64_t last) {
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
