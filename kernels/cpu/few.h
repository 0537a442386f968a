// Products for up to FEW_TOKENS tokens: each weight is read once, as it is stored, and used from its register.
#pragma once

#include "operands.h"

template <class Element>
struct Few {
    typedef Single Kind;
};
template <>
struct Few<BFloat> {
    typedef Pair Kind;
};

// Rows `from` to `from + rows` of one block row, for x [tokens][in_features].
template <class Element>
static void few_rows(const Product& p, const Entry<Element>& entry, long from, long rows, const Element* x, Element* y,
                     long tokens) {
    Floats sums[2][FEW_TOKENS * SLICE];
    const Blocks<Element>* of[2] = {&entry.main, &entry.up};
    const int matrices = p.up ? 2 : 1;
    for (int matrix = 0; matrix < matrices; ++matrix) {
        const Blocks<Element>& blocks = *of[matrix];
        std::memset((void*)sums[matrix], 0, rows * tokens * sizeof(Floats));
        for (long i = 0; i < blocks.count; ++i)
            few<typename Few<Element>::Kind>(blocks.block(i) + from * p.b_in, p.b_in, x + blocks.column(i) * p.b_in,
                                             p.in_features, sums[matrix], rows, tokens, blocks.ahead());
    }
    const long feature = entry.row * p.b_out + from;
    for (long m = 0; m < rows; m += LANES) {
        const Floats bias = p.bias ? load_wide((const Element*)p.bias + feature + m) : Floats{};
        for (long t = 0; t < tokens; ++t) {
            Floats total[2];
            for (int matrix = 0; matrix < matrices; ++matrix) {
                Floats* parts = sums[matrix] + t * rows + m;
                transpose(parts);
                total[matrix] = parts[0];
                for (long lane = 1; lane < LANES; ++lane) total[matrix] += parts[lane];
            }
            const Floats result = activate(total[0] + bias, p.activation);
            store_narrow(y + t * p.out_features + feature + m, p.up ? result * total[1] : result);
        }
    }
}

template <class Element>
static void few_product(const Product& p, Phases& phases, long& phase, const Element* x, Element* y, long tokens,
                        long threads) {
    const long most = slice_rows(p, threads), slices = (p.b_out + most - 1) / most;
    phases.run(phase, p.entries * slices, [&](long item) {
        const long from = item % slices * most, rows = p.b_out - from < most ? p.b_out - from : most;
        few_rows(p, entry_of<Element>(p, item / slices), from, rows, x, y, tokens);
    });
}
