// Products of one block with some tokens; the sums are in registers.
//
// `many`: a vector holds one feature of several tokens, and each weight is broadcast. `few`: a vector holds several
// features of one token, and the lanes of a sum are added up at the end of a block row. Both ask for the weights of the
// block behind while they multiply this one. Without that, rows of a block are too far apart for the processor to
// foresee (16 tokens: half the speed).
#pragma once

#include "vectors.h"

// How the kernels multiply. A `Word` is the 32 bits that a lane takes in one step: a float32, or two bfloat16.
struct Single {
    typedef float Element;
    typedef float Word;
    typedef Floats Words;
    static constexpr long STEP = LANES;  // features of a vector in `few`
    static Words fetch(const Element* from) { return load<Words>(from); }
    static Words fetch_rest(const Element* from) { return load<Words>(from); }
    static Floats add(Floats sum, Words a, Words b) { return sum + a * b; }
};

struct Pair {
    typedef BFloat Element;
    typedef int32_t Word;
    typedef Ints Words;
    static constexpr long STEP = 2 * LANES;
    static Words fetch(const Element* from) { return load<Words>(from); }
    static Words fetch_rest(const Element* from) {  // sixteen elements; a block has a multiple of them
        Words words = {};
        std::memcpy(&words, from, 32);
        return words;
    }
    static Floats add(Floats sum, Words a, Words b) {
#if defined(__AVX512BF16__)
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        const Ints upper = broadcast(int32_t(0xffff0000));
        sum += (Floats)(a << 16) * (Floats)(b << 16);
        return sum + (Floats)(a & upper) * (Floats)(b & upper);
#endif
    }
};

// sums[m][n] += Σ_k weights[m][k] · x[k][n] for M rows and N vectors of tokens. `behind` are the weights that come next.
template <class Kind, int M, int N>
static inline void many_tile(const typename Kind::Word* weights, long distance, const typename Kind::Word* x, long steps,
                             float* sums, long width, const typename Kind::Word* behind) {
    Floats sum[M][N];
    UNROLLED for (int m = 0; m < M; ++m)
        UNROLLED for (int n = 0; n < N; ++n) sum[m][n] = load<Floats>(sums + m * width + n * LANES);
    for (long k = 0; k < steps; ++k) {
        typename Kind::Words tokens[N];
        UNROLLED for (int n = 0; n < N; ++n) tokens[n] = load<typename Kind::Words>(x + k * width + n * LANES);
        _mm_prefetch((const char*)(behind + k * M), _MM_HINT_T0);
        UNROLLED for (int m = 0; m < M; ++m) {
            typename Kind::Words weight = broadcast(weights[m * distance + k]);
            UNROLLED for (int n = 0; n < N; ++n) sum[m][n] = Kind::add(sum[m][n], weight, tokens[n]);
        }
    }
    UNROLLED for (int m = 0; m < M; ++m)
        UNROLLED for (int n = 0; n < N; ++n) store(sums + m * width + n * LANES, sum[m][n]);
}

// The widest panel of tokens, in vectors, and the rows of a tile: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int WIDEST = 3, TILE_ROWS = 8, NARROW_ROWS = 16;
#else
constexpr int WIDEST = 3, TILE_ROWS = 4, NARROW_ROWS = 8;
#endif

// sums[rows][width] += weights[rows][steps] · x[steps][width]; rows of weights are `distance` apart, and `width` is one
// to WIDEST vectors of tokens.
template <class Kind>
static void many(const typename Kind::Word* weights, long distance, const typename Kind::Word* x, long steps, float* sums,
                 long rows, long width, const typename Kind::Word* behind) {
    const long tile = width == LANES ? NARROW_ROWS : TILE_ROWS;
    for (long m = 0; m < rows; m += tile) {
        const typename Kind::Word *first = weights + m * distance, *next = behind + m * distance;
        float* target = sums + m * width;
        if (width == LANES) many_tile<Kind, NARROW_ROWS, 1>(first, distance, x, steps, target, width, next);
        if (width == 2 * LANES) many_tile<Kind, TILE_ROWS, 2>(first, distance, x, steps, target, width, next);
        if (width == 3 * LANES) many_tile<Kind, TILE_ROWS, 3>(first, distance, x, steps, target, width, next);
    }
}

// sums[n][m] += weights[m] · x[n], lane by lane, for M rows and N tokens. `behind`: elements to the weights that follow.
template <class Kind, int M, int N>
static inline void few_tile(const typename Kind::Element* weights, long features, const typename Kind::Element* x,
                            long x_distance, Floats* sums, long rows, long behind) {
    Floats sum[M][N];
    UNROLLED for (int m = 0; m < M; ++m) UNROLLED for (int n = 0; n < N; ++n) sum[m][n] = sums[n * rows + m];
    for (long k = 0; k < features; k += Kind::STEP) {
        const bool whole = k + Kind::STEP <= features;
        typename Kind::Words tokens[N];
        UNROLLED for (int n = 0; n < N; ++n) {
            const typename Kind::Element* from = x + n * x_distance + k;
            tokens[n] = whole ? Kind::fetch(from) : Kind::fetch_rest(from);
        }
        UNROLLED for (int m = 0; m < M; ++m) {
            const typename Kind::Element* from = weights + m * features + k;
            typename Kind::Words weight = whole ? Kind::fetch(from) : Kind::fetch_rest(from);
            _mm_prefetch((const char*)(from + behind), _MM_HINT_T0);
            UNROLLED for (int n = 0; n < N; ++n) sum[m][n] = Kind::add(sum[m][n], weight, tokens[n]);
        }
    }
    UNROLLED for (int m = 0; m < M; ++m) UNROLLED for (int n = 0; n < N; ++n) sums[n * rows + m] = sum[m][n];
}

constexpr long FEW_TOKENS = 4;

// sums[tokens][rows] += weights[rows][features] · x[tokens][features], where a sum is a vector of parts.
template <class Kind>
static void few(const typename Kind::Element* weights, long features, const typename Kind::Element* x, long x_distance,
                Floats* sums, long rows, long tokens, long behind) {
    constexpr int ROWS = 4;
    for (long m = 0; m < rows; m += ROWS) {
        const typename Kind::Element* first = weights + m * features;
        if (tokens == 1) few_tile<Kind, ROWS, 1>(first, features, x, x_distance, sums + m, rows, behind);
        if (tokens == 2) few_tile<Kind, ROWS, 2>(first, features, x, x_distance, sums + m, rows, behind);
        if (tokens == 3) few_tile<Kind, ROWS, 3>(first, features, x, x_distance, sums + m, rows, behind);
        if (tokens == 4) few_tile<Kind, ROWS, 4>(first, features, x, x_distance, sums + m, rows, behind);
    }
}
