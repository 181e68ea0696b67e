// One pass of a stack of pre-norm Llama blocks over a few rows (decode.py): what a decoding step computes, in one call.
//
// Plain C functions over raw pointers, built by kernels/native.py for this CPU: with AVX512_BF16 and VNNI, or with AVX2 (lanes.h).
// Every row's numbers are computed in one order of sums, whatever stands beside it: products go through their inputs one
// pair after the other, attention through the visible keys in the order of the text. So a row has the same bits alone, in a
// batch, in a chunk of a prompt and as a node of a tree of draft tokens, and with any number of threads.
//
//   weights  64 outputs side by side, read once from front to back
//            bf16: [outputs / 64][inputs / 2][64][2]
//            int4: [outputs / 64][inputs / 32][4 tiles][4][16][4] bytes of two codes, with (scale, offset) of every 32 inputs
//            int8: [outputs / 64][inputs / 32][4 tiles][8][16][4] codes + 128, with a scale of every 32 inputs
//   rows     fp32 between the layers, bf16 into every product; for int4 and int8 rounded once more, to 8 bits with a scale
//            for every 32 of them (as llama.cpp does); sums in fp32
//
//   M rows   B requests   H heads   G key/value heads   D head width   T keys   L lanes: 16 queries that attend together

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "lanes.h"
#include "products.h"

extern "C" {

struct Linear {
    const void* weight;   // null: there is no such product
    const uint16_t* groups;  // fp16, [outputs / 64][inputs / 32][2][64] scales and offsets (int4) or [..][1][64] (int8)
    int64_t outputs, inputs, kind;  // kind 0: bf16, 1: int4, 2: int8
};

struct Layer {
    const float* norm1;
    const float* norm_side;  // of `side`, which goes before the rows into q, k and v; null: nothing does
    Linear qkv, out;
    const float* norm2;
    Linear first, down;
};

struct Pass {
    const Layer* layers;
    int64_t depth, dim, heads, groups, width;
    float eps;
    uint16_t* keys;  // (layers, G, slots, D)
    uint16_t* values;
    int64_t slots;
    int64_t rows;   // M
    float* x;       // (M, dim), overwritten
    const float* side;  // (M, dim) or null
    const float* cos;   // (M, D)
    const float* sin;
    int64_t requests;
    const int64_t* counts;  // (B) new rows of each, one request after the other
    const int64_t* places;  // slots of all rows that each request sees, the new ones last
    const int64_t* ends;    // (B) how many these are
    const uint8_t* mask;    // (N, S) of the last S keys, or null: up to itself
    int64_t mask_columns, mask_stride;  // stride from request to request (0: one for all)
    int64_t window;                     // rows that a row sees (0: all); only without a mask
    const int64_t* taps;  // depth of the layers whose inputs are kept
    int64_t tap_count;
    uint16_t* tapped;   // (M, tap_count dim)
    const float* norm;  // the last one, or null: x is the result
    uint16_t* hidden;   // (M, dim)
    Linear head;
    const int64_t* read;  // rows whose logits are wanted
    int64_t read_count;
    float* logits;  // (read_count, outputs)
    int64_t threads;
};

int64_t decode_supported() { return TENFOLD_LANES; }

// Compared at load with the sizes that Python fills (kernels/structures.py).
int64_t size_of(const char* structure) {
    if (!std::strcmp(structure, "Linear")) return sizeof(Linear);
    if (!std::strcmp(structure, "Layer")) return sizeof(Layer);
    if (!std::strcmp(structure, "Pass")) return sizeof(Pass);
    return -1;
}
}

#if TENFOLD_LANES

namespace {

// All threads of a pass meet here between its stages. Waiting threads spin for a moment and then let others run.
class Meeting {
  public:
    void expect(int64_t threads) { threads_ = threads; }
    void wait() {
        if (threads_ == 1) return;
        const int64_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int64_t spin = 0; round_.load(std::memory_order_acquire) == round; spin++) {
            if (spin < 4000) _mm_pause();
            else std::this_thread::yield();
        }
    }

  private:
    int64_t threads_ = 1;
    std::atomic<int64_t> arrived_{0}, round_{0};
};

struct Share {
    int64_t thread, threads;
    int64_t first(int64_t n) const { return n * thread / threads; }
    int64_t last(int64_t n) const { return n * (thread + 1) / threads; }
};

// Rows of a product: bf16, and for 4- and 8-bit weights their codes.
struct Rows {
    const uint16_t* a;
    Codes codes;
};

// y (M, outputs) = or += a W^T for this thread's share of the outputs.
void multiply(const Linear& f, Rows in, int64_t rows, float* y, bool adds, Share share) {
    const int64_t blocks = (f.outputs + OUTPUTS - 1) / OUTPUTS, pairs = f.inputs / 2, groups = f.inputs / GROUP;
    const int64_t bytes = f.inputs * OUTPUTS * (f.kind == 0 ? 4 : f.kind == 2 ? 2 : 1) / 2;
    const int64_t parts = (rows + MOST - 1) / MOST, last = share.last(blocks);
#if TENFOLD_LANES == 512
    const uint16_t* all_rows = in.a;
#else
    std::vector<float> wide(f.kind == 0 ? size_t(rows * f.inputs) : 0);
    size_t i = 0;
    for (; i + LANES <= wide.size(); i += LANES) store(wide.data() + i, widen_at(in.a + i));
    for (; i < wide.size(); i++) {
        const uint32_t bits = uint32_t(in.a[i]) << 16;
        std::memcpy(&wide[i], &bits, 4);
    }
    const float* all_rows = wide.data();
#endif
    for (int64_t o = share.first(blocks); o < last; o++) {
        const char* w = static_cast<const char*>(f.weight) + o * bytes;
        const int64_t left = f.outputs - o * OUTPUTS, lines = o + 1 < last ? bytes / 64 / parts : 0;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t at = rows * part / parts, n = rows * (part + 1) / parts - at;
            const auto* x = all_rows + at * f.inputs;
            const Codes c{in.codes.codes + at * f.inputs, in.codes.scales + at * groups, in.codes.sums + at * groups};
            const auto* words = reinterpret_cast<const uint16_t*>(w);
            const auto* codes = reinterpret_cast<const uint8_t*>(w);
            float* to = y + at * f.outputs + o * OUTPUTS;
            const char* ahead = w + bytes + part * lines * 64;
            const uint16_t* scales = f.groups + o * groups * (f.kind == 1 ? 2 : 1) * OUTPUTS;
#define TENFOLD_CASE(R)                                                                                                   \
    case R:                                                                                                               \
        if (f.kind == 0) product<R>(x, f.inputs, words, pairs, to, f.outputs, left, adds, ahead, lines);                  \
        else if (f.kind == 1)                                                                                             \
            product8<R, 1>(c, f.inputs, codes, scales, groups, to, f.outputs, left, adds, ahead, lines);                  \
        else product8<R, 2>(c, f.inputs, codes, scales, groups, to, f.outputs, left, adds, ahead, lines);                 \
        break;
            switch (n) {
                TENFOLD_CASE(1)
                TENFOLD_CASE(2)
                TENFOLD_CASE(3)
                TENFOLD_CASE(4)
                TENFOLD_CASE(5)
                TENFOLD_CASE(6)
            }
#undef TENFOLD_CASE
        }
    }
}

void to_codes(const uint16_t* row, int64_t inputs, int8_t* codes, float* scales, int32_t* sums) {
    for (int64_t g = 0; g < inputs / GROUP; g++) {
        const Floats a = widen_at(row + g * GROUP), b = widen_at(row + g * GROUP + LANES);
        const float most = largest_of(larger(size(a), size(b)));
        const Floats inverse = all(most > 0 ? 127.0f / most : 0.0f);
        int8_t* to = codes + g * GROUP;
        scales[g] = most / 127.0f;
        sums[g] = codes_to(to, times(a, inverse)) + codes_to(to + LANES, times(b, inverse));
    }
}

// RMSNorm: to = x / rms(x) * weight. dim is a multiple of 16.
void normalise(const float* x, const float* weight, int64_t dim, float eps, uint16_t* to) {
    Floats square = none();
    for (int64_t i = 0; i < dim; i += LANES) {
        const Floats v = load(x + i);
        square = times_add(v, v, square);
    }
    const Floats scale = all(1.0f / std::sqrt(sum_of(square) / float(dim) + eps));
    for (int64_t i = 0; i < dim; i += LANES) narrow_to(to + i, times(times(load(x + i), scale), load(weight + i)));
}

void copy_narrow(const float* x, int64_t n, uint16_t* to) {
    for (int64_t i = 0; i < n; i += LANES) narrow_to(to + i, load(x + i));
}

// Turns a head in place; entry i goes with i + D / 2. D is a multiple of 32.
void turn(float* head, const float* cos, const float* sin, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        const Floats a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
        store(head + i, times_subtract(a, c, times(b, s)));
        store(head + half + i, times_add(b, c, times(a, s)));
    }
}

// gate and up side by side -> silu(gate) * up
void gated(const float* both, int64_t hidden, uint16_t* to) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        const Floats gate = load(both + i), up = load(both + hidden + i);
        const Floats low = subtract(none(), larger(gate, all(-80.0f)));
        const Floats silu = over(gate, add(all(1.0f), exponential(low)));
        narrow_to(to + i, times(silu, up));
    }
}

// One group's heads of one request: which lanes (row, head of the group) see which keys.
struct Queries {
    const float* qkv;  // of the request's first row
    int64_t stride, first_head, repeat, rows, first_lane, lanes, keys, width;
    const uint8_t* mask;
    int64_t columns, window;
    int64_t row(int64_t lane) const { return (first_lane + lane) / repeat; }
    const float* query(int64_t lane) const {
        return qkv + row(lane) * stride + (first_head + (first_lane + lane) % repeat) * width;
    }
};

// The lanes that see each of the last `tail` keys.
void visible(const Queries& q, int64_t tail, uint16_t* bits) {
    std::memset(bits, 0, size_t(tail) * 2);
    for (int64_t lane = 0; lane < q.lanes; lane++) {
        const int64_t row = q.row(lane);
        for (int64_t t = 0; t < tail; t++) {
            const int64_t behind = tail - q.rows + row - t;  // how far the key stands before the row; negative: behind it
            const bool seen = q.mask ? q.mask[row * q.columns + t] != 0
                                     : behind >= 0 && (q.window == 0 || behind < q.window);
            bits[t] |= uint16_t(seen) << lane;
        }
    }
}

constexpr int AT_ONCE = TENFOLD_LANES == 512 ? 6 : 3;  // sums that stay in registers

template <int C>
void weigh(const float* weights, const uint16_t* values, const int64_t* places, int64_t keys, int64_t width, int64_t column,
           int64_t lane, int64_t lanes, const float* inverse, const Queries& q, uint16_t* out, int64_t out_stride) {
    constexpr int MOST = AT_ONCE;
    for (int64_t from = lane; from < lanes; from += MOST) {
        const int64_t n = std::min<int64_t>(MOST, lanes - from);
        Floats sum[MOST][C];
        for (int i = 0; i < MOST; i++)
            for (int c = 0; c < C; c++) sum[i][c] = none();
        if (n == MOST) {
            for (int64_t t = 0; t < keys; t++) {
                const uint16_t* row = values + places[t] * width + column;
                Floats v[C];
                for (int c = 0; c < C; c++) v[c] = widen_at(row + c * LANES);
                for (int i = 0; i < MOST; i++) {
                    const Floats p = all(weights[t * LANES + from + i]);
                    for (int c = 0; c < C; c++) sum[i][c] = times_add(p, v[c], sum[i][c]);
                }
            }
        } else {
            for (int64_t t = 0; t < keys; t++) {
                const uint16_t* row = values + places[t] * width + column;
                Floats v[C];
                for (int c = 0; c < C; c++) v[c] = widen_at(row + c * LANES);
                for (int i = 0; i < MOST - 1; i++) {
                    if (i >= n) break;
                    const Floats p = all(weights[t * LANES + from + i]);
                    for (int c = 0; c < C; c++) sum[i][c] = times_add(p, v[c], sum[i][c]);
                }
            }
        }
        for (int i = 0; i < n; i++) {
            const int64_t l = from + i;
            uint16_t* to = out + q.row(l) * out_stride + (q.first_head + (q.first_lane + l) % q.repeat) * width + column;
            for (int c = 0; c < C; c++) narrow_to(to + c * LANES, times(sum[i][c], all(inverse[l])));
        }
    }
}

// Attention of up to 16 queries. scratch: (keys + 1) * 16 floats, then 2 bytes a key.
void attend(const Queries& q, const uint16_t* keys, const uint16_t* values, const int64_t* places, float* scratch,
            uint16_t* bits, uint16_t* out, int64_t out_stride) {
    const int64_t pairs = q.width / 2;
    alignas(64) uint16_t turned[128 * 2 * LANES];  // [pairs][lanes][2]
    std::memset(turned, 0, size_t(pairs) * 2 * LANES * 2);
    alignas(64) uint16_t one[256];
    for (int64_t lane = 0; lane < q.lanes; lane++) {
        copy_narrow(q.query(lane), q.width, one);
        for (int64_t p = 0; p < pairs; p++) std::memcpy(turned + (p * LANES + lane) * 2, one + 2 * p, 4);
    }
    const int64_t tail = q.mask ? q.columns : q.window ? q.keys : q.rows;
    visible(q, tail, bits);
    int64_t end = q.keys;
    while (end > q.keys - tail && bits[end - 1 - (q.keys - tail)] == 0) end--;
    const Floats scale = all(1.0f / std::sqrt(float(q.width))), low = all(-INFINITY);
    Floats best = low;
    for (int64_t t = 0; t < end; t += AT_ONCE) {
        const int64_t n = std::min<int64_t>(AT_ONCE, end - t);
        const uint16_t* key[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) key[i] = keys + places[t + std::min<int64_t>(i, n - 1)] * q.width;
        Floats sum[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) sum[i] = none();
        for (int64_t p = 0; p < pairs; p++) {
            const Pairs queries = pairs_at(turned + p * 2 * LANES);
            for (int i = 0; i < AT_ONCE; i++) sum[i] = dot_pairs(sum[i], queries, pair(key[i] + 2 * p));
        }
        for (int i = 0; i < n; i++) {
            const int64_t place = t + i - (q.keys - tail);
            const Seen seen = place < 0 ? 0xFFFF : bits[place];
            const Floats score = where(seen, times(sum[i], scale), low);
            best = larger(best, score);
            store(scratch + (t + i) * LANES, score);
        }
    }
    best = larger(best, all(-1e30f));  // lanes that are not used
    Floats total = none();
    for (int64_t t = 0; t < end; t++) {
        const Floats score = load(scratch + t * LANES);
        const Floats weight = where(above(score, low), exponential(subtract(score, best)), none());
        total = add(total, weight);
        store(scratch + t * LANES, weight);
    }
    alignas(64) float inverse[LANES];
    store(inverse, over(all(1.0f), larger(total, all(1e-30f))));
    int64_t column = 0;
    for (; column + 64 <= q.width; column += 64)
        weigh<4>(scratch, values, places, end, q.width, column, 0, q.lanes, inverse, q, out, out_stride);
    for (; column < q.width; column += 32)
        weigh<2>(scratch, values, places, end, q.width, column, 0, q.lanes, inverse, q, out, out_stride);
}

// Memory of a pass, shared by its threads; `attention` is each thread's own.
struct Room {
    std::vector<uint16_t> a, y, h;
    std::vector<float> qkv, both, scales;
    std::vector<int8_t> codes;
    std::vector<int32_t> sums;
    std::vector<int64_t> row_start, place_start, unit_start;
    int64_t scratch, bits;

    void encode(const Linear& f, const uint16_t* a, int64_t row) {
        if (f.kind == 0) return;
        const int64_t at = row * (f.inputs / GROUP);
        to_codes(a + row * f.inputs, f.inputs, codes.data() + row * f.inputs, scales.data() + at, sums.data() + at);
    }
    Rows rows(const uint16_t* a) const { return {a, {codes.data(), scales.data(), sums.data()}}; }
};

struct Aligned {
    explicit Aligned(int64_t floats) : raw(size_t(floats) + 16) {
        at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw.data()) + 63) / 64 * 64);
    }
    std::vector<float> raw;
    float* at;
};

void work(const Pass& p, Room& room, Meeting& meeting, Share share) {
    const int64_t m = p.rows, repeat = p.heads / p.groups, inner = p.heads * p.width;
    const int64_t qkv = (p.heads + 2 * p.groups) * p.width, from = share.first(m), to = share.last(m);
    Aligned scratch(room.scratch);
    std::vector<uint16_t> bits(static_cast<size_t>(room.bits));
    for (int64_t l = 0; l < p.depth; l++) {
        const Layer& layer = p.layers[l];
        const int64_t hidden = layer.down.inputs, pool = l * p.groups * p.slots * p.width;
        for (int64_t r = from; r < to; r++) {
            for (int64_t i = 0; i < p.tap_count; i++)
                if (p.taps[i] == l) copy_narrow(p.x + r * p.dim, p.dim, p.tapped + (r * p.tap_count + i) * p.dim);
            uint16_t* a = room.a.data() + r * layer.qkv.inputs;
            if (layer.norm_side) {
                normalise(p.side + r * p.dim, layer.norm_side, p.dim, p.eps, a);
                a += p.dim;
            }
            normalise(p.x + r * p.dim, layer.norm1, p.dim, p.eps, a);
            room.encode(layer.qkv, room.a.data(), r);
        }
        meeting.wait();
        multiply(layer.qkv, room.rows(room.a.data()), m, room.qkv.data(), false, share);
        meeting.wait();
        for (int64_t b = 0; b < p.requests; b++) {
            const int64_t start = room.row_start[b], n = p.counts[b];
            for (int64_t r = std::max(from, start); r < std::min(to, start + n); r++) {
                float* row = room.qkv.data() + r * qkv;
                const int64_t slot = p.places[room.place_start[b] + p.ends[b] - n + r - start];
                for (int64_t h = 0; h < p.heads + p.groups; h++)
                    turn(row + h * p.width, p.cos + r * p.width, p.sin + r * p.width, p.width);
                for (int64_t g = 0; g < p.groups; g++) {
                    const int64_t place = pool + (g * p.slots + slot) * p.width;
                    copy_narrow(row + (p.heads + g) * p.width, p.width, p.keys + place);
                    copy_narrow(row + (p.heads + p.groups + g) * p.width, p.width, p.values + place);
                }
            }
        }
        meeting.wait();
        const int64_t units = room.unit_start[p.requests];
        for (int64_t u = share.first(units), b = 0; u < share.last(units); u++) {
            while (u >= room.unit_start[b + 1]) b++;
            const int64_t n = p.counts[b], inside = u - room.unit_start[b], g = inside % p.groups;
            Queries q;
            q.qkv = room.qkv.data() + room.row_start[b] * qkv;
            q.stride = qkv, q.first_head = g * repeat, q.repeat = repeat, q.rows = n, q.width = p.width;
            q.first_lane = inside / p.groups * LANES;
            q.lanes = std::min(LANES, n * repeat - q.first_lane);
            q.keys = p.ends[b];
            q.mask = p.mask ? p.mask + b * p.mask_stride : nullptr;
            q.columns = p.mask_columns, q.window = p.window;
            const int64_t head = pool + g * p.slots * p.width;
            attend(q, p.keys + head, p.values + head, p.places + room.place_start[b], scratch.at, bits.data(),
                   room.y.data() + room.row_start[b] * inner, inner);
        }
        meeting.wait();
        for (int64_t r = from; r < to; r++) room.encode(layer.out, room.y.data(), r);
        if (layer.out.kind != 0) meeting.wait();
        multiply(layer.out, room.rows(room.y.data()), m, p.x, true, share);
        meeting.wait();
        for (int64_t r = from; r < to; r++) {
            normalise(p.x + r * p.dim, layer.norm2, p.dim, p.eps, room.a.data() + r * p.dim);
            room.encode(layer.first, room.a.data(), r);
        }
        meeting.wait();
        multiply(layer.first, room.rows(room.a.data()), m, room.both.data(), false, share);
        meeting.wait();
        for (int64_t r = from; r < to; r++) {
            gated(room.both.data() + r * 2 * hidden, hidden, room.h.data() + r * hidden);
            room.encode(layer.down, room.h.data(), r);
        }
        meeting.wait();
        multiply(layer.down, room.rows(room.h.data()), m, p.x, true, share);
        meeting.wait();
    }
    if (!p.norm) return;
    for (int64_t r = from; r < to; r++) normalise(p.x + r * p.dim, p.norm, p.dim, p.eps, p.hidden + r * p.dim);
    meeting.wait();
    if (!p.head.weight || p.read_count == 0) return;
    for (int64_t i = share.first(p.read_count); i < share.last(p.read_count); i++) {
        std::memcpy(room.a.data() + i * p.dim, p.hidden + p.read[i] * p.dim, size_t(p.dim) * 2);
        room.encode(p.head, room.a.data(), i);
    }
    meeting.wait();
    multiply(p.head, room.rows(room.a.data()), p.read_count, p.logits, false, share);
}

// run(meeting, share) in as many threads as there are of those asked for: OpenMP's, which GCC lets us share with torch.
template <class F>
void with_threads(int64_t threads, F run) {
    Meeting meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
#pragma omp single
        meeting.expect(omp_get_num_threads());
        run(meeting, Share{omp_get_thread_num(), omp_get_num_threads()});
    }
#else
    meeting.expect(threads);
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; i++) others.emplace_back([&, i] { run(meeting, Share{i, threads}); });
    run(meeting, Share{0, threads});
    for (auto& other : others) other.join();
#endif
}

}  // namespace

extern "C" {

void decode_pass(const Pass* pass) {
    const Pass& p = *pass;
    const int64_t m = std::max(p.rows, p.read_count), repeat = p.heads / p.groups;
    Room room;
    int64_t widest = p.head.inputs, hidden = 0, longest = 0;
    for (int64_t l = 0; l < p.depth; l++) {
        const Layer& layer = p.layers[l];
        widest = std::max({widest, layer.qkv.inputs, p.dim});
        hidden = std::max(hidden, layer.down.inputs);
    }
    room.a.resize(size_t(m * widest));
    room.y.resize(size_t(m * p.heads * p.width));
    room.h.resize(size_t(m * hidden));
    room.qkv.resize(size_t(m * (p.heads + 2 * p.groups) * p.width));
    room.both.resize(size_t(m * 2 * hidden));
    const int64_t most = m * std::max({widest, hidden, p.heads * p.width});
    room.codes.resize(size_t(most)), room.scales.resize(size_t(most / GROUP + m)), room.sums.resize(size_t(most / GROUP + m));
    room.row_start.assign(1, 0), room.place_start.assign(1, 0), room.unit_start.assign(1, 0);
    for (int64_t b = 0; b < p.requests; b++) {
        room.row_start.push_back(room.row_start[b] + p.counts[b]);
        room.place_start.push_back(room.place_start[b] + p.ends[b]);
        room.unit_start.push_back(room.unit_start[b] + (p.counts[b] * repeat + LANES - 1) / LANES * p.groups);
        longest = std::max(longest, p.ends[b]);
    }
    room.scratch = (longest + 1) * LANES;
    room.bits = std::max(longest, p.mask_columns) + 1;
    with_threads(p.threads, [&](Meeting& meeting, Share share) { work(p, room, meeting, share); });
}

// y (M, outputs) = x W^T with x in bf16; y in fp32.
void decode_linear(const Linear* f, const uint16_t* x, int64_t rows, float* y, int64_t threads) {
    Room room;
    if (f->kind != 0) {
        room.codes.resize(size_t(rows * f->inputs));
        room.scales.resize(size_t(rows * (f->inputs / GROUP))), room.sums.resize(room.scales.size());
        for (int64_t r = 0; r < rows; r++) room.encode(*f, x, r);
    }
    with_threads(threads, [&](Meeting&, Share share) { multiply(*f, room.rows(x), rows, y, false, share); });
}

// The first largest entry of every row.
void decode_argmax(const float* x, int64_t rows, int64_t width, int64_t* best) {
    for (int64_t r = 0; r < rows; r++) {
        const float* row = x + r * width;
        Floats top = all(-INFINITY);
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) top = larger(top, load(row + i));
        float most = largest_of(top);
        for (; i < width; i++) most = std::max(most, row[i]);
        const Floats wanted = all(most);
        int64_t j = 0;
        while (j + LANES <= width && !equal(load(row + j), wanted)) j += LANES;
        while (j < width && row[j] != most) j++;
        best[r] = j < width ? j : 0;
    }
}
}

#else

extern "C" {
void decode_pass(const Pass*) {}
void decode_linear(const Linear*, const uint16_t*, int64_t, float*, int64_t) {}
void decode_argmax(const float*, int64_t, int64_t, int64_t*) {}
}

#endif
