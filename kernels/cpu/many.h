// Products for many tokens, in panels: activations written as [features][tokens], up to 48 tokens wide. A product that
// another follows leaves its result in this form.
#pragma once

#include "few.h"

constexpr long CHUNK = 128;  // columns of a block that are read at a time
constexpr long PANEL = WIDEST * LANES;

// How bfloat16 is multiplied, and how many features a word of a panel holds. Processors without products of pairs widen
// each block to float32 first.
template <class Element>
struct Many {
    typedef Single Kind;
    static constexpr long PACKED = 1;
};
#if defined(__AVX512BF16__)
template <>
struct Many<BFloat> {
    typedef Pair Kind;
    static constexpr long PACKED = 2;
};
#endif

// Tokens in panels that are as equal as whole vectors allow, none wider than PANEL.
struct Panels {
    long tokens, vectors, count;
    explicit Panels(long tokens)
        : tokens(tokens), vectors((tokens + LANES - 1) / LANES), count((vectors + WIDEST - 1) / WIDEST) {}
    long start(long panel) const { return vectors * panel / count * LANES; }
    long width(long panel) const { return start(panel + 1) - start(panel); }
    long held(long panel) const { return tokens - start(panel) < width(panel) ? tokens - start(panel) : width(panel); }
};

// LANES words of x [count][distance] and of all its tokens, as rows of a panel. Where x ends the panel is zero.
template <class Element>
static void pack(const Element* x, long distance, long count, long features, float* panel, long width) {
    constexpr long PACKED = Many<Element>::PACKED;
    const long words = features / PACKED < LANES ? features / PACKED : LANES;
    for (long t = 0; t < width; t += LANES) {
        Floats tile[LANES];
        for (long lane = 0; lane < LANES; ++lane) {
            tile[lane] = Floats{};
            if (t + lane >= count) continue;
            const Element* from = x + (t + lane) * distance;
            if (PACKED == 1)
                tile[lane] = load_wide(from);
            else
                std::memcpy((void*)&tile[lane], from, words * sizeof(float));
        }
        transpose(tile);
        for (long word = 0; word < words; ++word) store(panel + word * width + t, tile[word]);
    }
}

// sums[rows][width] += the blocks of a block row, from row `from` of each on, times a panel.
template <class Element>
static void add_blocks(const Blocks<Element>& blocks, const Product& p, long from, long rows, const float* panel,
                       long width, float* sums) {
    typedef typename Many<Element>::Kind Kind;
    typedef typename Kind::Word Word;
    constexpr long PACKED = Many<Element>::PACKED;
    for (long i = 0; i < blocks.count; ++i) {
        const Element* block = blocks.block(i) + from * p.b_in;
        for (long k = 0; k < p.b_in; k += CHUNK) {
            const long steps = (p.b_in - k < CHUNK ? p.b_in - k : CHUNK) / PACKED;
            const Word* x = (const Word*)panel + (blocks.column(i) * p.b_in + k) / PACKED * width;
            if constexpr (sizeof(Element) * PACKED < sizeof(Word)) {
                float wide[SLICE * CHUNK];
                for (long m = 0; m < rows; ++m)
                    for (long j = 0; j < steps; j += LANES)
                        store(wide + m * steps + j, load_wide(block + m * p.b_in + k + j));
                many<Kind>(wide, steps, x, steps, sums, rows, width, wide);
            } else {
                const Word* weights = (const Word*)(block + k);
                many<Kind>(weights, p.b_in / PACKED, x, steps, sums, rows, width, weights + blocks.ahead() / PACKED);
            }
        }
    }
}

// Results [rows][width] as rows of a panel, from feature `feature` on.
static void keep_panel(const float* results, long feature, long rows, long width, float* panel, const float*) {
    std::memcpy(panel + feature * width, results, rows * width * sizeof(float));
}

static void keep_panel(const float* results, long feature, long rows, long width, float* panel, const BFloat*) {
    typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    constexpr long PACKED = Many<BFloat>::PACKED;
    panel += feature / PACKED * width;
    for (long m = 0; m < rows; m += PACKED)
        for (long n = 0; n < width; n += LANES) {
            Bits bits = (Bits)rounded(load<Floats>(results + m * width + n));
            if (PACKED == 2) bits = bits >> 16 | (Bits)rounded(load<Floats>(results + (m + 1) * width + n));
            store(panel + m / PACKED * width + n, bits);
        }
}

// Results [rows][width] as columns of y [count][distance].
template <class Element>
static void keep_columns(const float* results, long rows, long width, Element* y, long distance, long count) {
    for (long t = 0; t < count; t += LANES)
        for (long m = 0; m < rows; m += LANES) {
            Floats tile[LANES];
            for (long lane = 0; lane < LANES; ++lane) tile[lane] = load<Floats>(results + (m + lane) * width + t);
            transpose(tile);
            for (long lane = 0; lane < LANES && t + lane < count; ++lane)
                store_narrow(y + (t + lane) * distance + m, tile[lane]);
        }
}

// Rows `from` to `from + rows` of one block row for one panel. The result goes to the panel `hidden`, or to
// y [count][out_features] if there is none.
template <class Element>
static void many_rows(const Product& p, const Entry<Element>& entry, long from, long rows, const float* panel, long width,
                      float* hidden, Element* y, long count) {
    float sums[2][SLICE * PANEL];
    const long feature = entry.row * p.b_out + from;
    for (long m = 0; m < rows; ++m) {
        const Floats bias = broadcast(p.bias ? widened(((const Element*)p.bias)[feature + m]) : 0.0f);
        for (long n = 0; n < width; n += LANES) store(sums[0] + m * width + n, bias);
    }
    add_blocks(entry.main, p, from, rows, panel, width, sums[0]);
    if (p.up) {
        std::memset(sums[1], 0, rows * width * sizeof(float));
        add_blocks(entry.up, p, from, rows, panel, width, sums[1]);
    }
    if (p.activation != NONE || p.up)
        for (long n = 0; n < rows * width; n += LANES) {
            const Floats result = activate(load<Floats>(sums[0] + n), p.activation);
            store(sums[0] + n, p.up ? result * load<Floats>(sums[1] + n) : result);
        }
    if (hidden)
        keep_panel(sums[0], feature, rows, width, hidden, (const Element*)nullptr);
    else
        keep_columns(sums[0], rows, width, y + feature, p.out_features, count);
}

// All panels of a group; they are `distance` words apart, those of the result `hidden_distance`.
template <class Element>
static void many_product(const Product& p, Phases& phases, long& phase, const Panels& panels, const float* packed,
                         long distance, float* hidden, long hidden_distance, Element* y, long threads) {
    const long most = slice_rows(p, threads / panels.count), slices = p.entries * ((p.b_out + most - 1) / most);
    // A slice serves all panels of the group, unless there are too few slices for the threads.
    const long wanted = slices ? (4 * threads + slices - 1) / slices : 1;
    const long parts = wanted < panels.count ? wanted : panels.count;
    phases.run(phase, slices * parts, [&](long item) {
        const long slice = item / parts, part = item % parts, each = slices / p.entries;
        const Entry<Element> entry = entry_of<Element>(p, slice / each);
        const long from = slice % each * most, rows = p.b_out - from < most ? p.b_out - from : most;
        for (long n = panels.count * part / parts; n < panels.count * (part + 1) / parts; ++n)
            many_rows(p, entry, from, rows, packed + n * distance, panels.width(n),
                      hidden ? hidden + n * hidden_distance : nullptr, y + panels.start(n) * p.out_features,
                      panels.held(n));
    });
}
