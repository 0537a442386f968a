// A block-sparse product with its epilogue, or two of them with the hidden activations between: a whole MLP.
//
// Threads take one block row after the other. Each output is summed by one thread in one order, so equal inputs give
// equal bits, whatever the number of threads. Sums are float32; hidden activations are rounded to the dtype of x once.

#include <cstdlib>

#include "many.h"

namespace {

constexpr long GROUP_BYTES = 8 << 20;  // about what the activations of a group of panels take

// Memory of the calling thread that stays for its next call: fresh memory costs a page fault for each 4 KiB.
struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;

    void* of(size_t wanted) {
        if (wanted > bytes) {
            std::free(memory);
            wanted = (wanted + 4095) / 4096 * 4096;
            memory = std::aligned_alloc(64, wanted);
            bytes = memory ? wanted : 0;
        }
        return memory;
    }
    ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;

template <class Element>
int run_few(const Product& first, const Product* second, const Element* x, Element* y, long tokens,
            const Threads& threads) {
    Element* hidden = second ? (Element*)scratch.of(tokens * first.out_features * sizeof(Element)) : y;
    if (!hidden) return 1;
    Phases phases(threads);
    in_threads(threads, [&] {
        long phase = 0;
        few_product(first, phases, phase, x, hidden, tokens, threads.count);
        if (second) few_product(*second, phases, phase, (const Element*)hidden, y, tokens, threads.count);
    });
    return 0;
}

template <class Element>
int run_many(const Product& first, const Product* second, const Element* x, Element* y, long tokens,
             const Threads& threads) {
    constexpr long PACKED = Many<Element>::PACKED;
    const long words = first.in_features / PACKED, distance = words * PANEL;
    const long hidden_distance = second ? first.out_features / PACKED * PANEL : 0;
    const long all = Panels(tokens).count, fit = GROUP_BYTES / ((distance + hidden_distance) * long(sizeof(float)));
    const long group = fit < 1 ? 1 : fit < all ? fit : all;
    float* packed = (float*)scratch.of(group * (distance + hidden_distance) * sizeof(float));
    if (!packed) return 1;
    float* hidden = second ? packed + group * distance : nullptr;
    const long out_features = second ? second->out_features : first.out_features;
    Phases phases(threads);
    in_threads(threads, [&] {
        long phase = 0;
        for (long start = 0; start < tokens; start += group * PANEL) {
            const Panels panels(tokens - start < group * PANEL ? tokens - start : group * PANEL);
            const long strips = (words + LANES - 1) / LANES;
            phases.run(phase, panels.count * strips, [&](long item) {
                const long n = item / strips, word = item % strips * LANES, width = panels.width(n);
                pack(x + (start + panels.start(n)) * first.in_features + word * PACKED, first.in_features,
                     panels.held(n), (words - word) * PACKED, packed + n * distance + word * width, width);
            });
            Element* to = y + start * out_features;
            many_product(first, phases, phase, panels, packed, distance, hidden, hidden_distance, to, threads.count);
            if (second)
                many_product<Element>(*second, phases, phase, panels, hidden, hidden_distance, nullptr, 0, to,
                                      threads.count);
        }
    });
    return 0;
}

template <class Element>
int run(const Product& first, const Product* second, const void* x, void* y, long tokens, const Threads& threads) {
    if (tokens <= FEW_TOKENS) return run_few(first, second, (const Element*)x, (Element*)y, tokens, threads);
    return run_many(first, second, (const Element*)x, (Element*)y, tokens, threads);
}

}  // namespace

// `first`, and `second` on its result unless that is null: x [tokens][in] to y [tokens][out], float32 or bfloat16.
// Returns 0, or 1 if there is no memory.
extern "C" int blast_products(const Product* first, const Product* second, const void* x, void* y, int64_t tokens,
                              int64_t bfloat16, int64_t threads, void* start, void* meet) {
    const Threads team = {(decltype(Threads::start))start, (decltype(Threads::meet))meet, long(threads)};
    if (bfloat16) return run<BFloat>(*first, second, x, y, tokens, team);
    return run<float>(*first, second, x, y, tokens, team);
}
