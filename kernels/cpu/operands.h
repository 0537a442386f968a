// What a product is made of, as launch.py describes it, and how its threads share the work.
#pragma once

#include <atomic>

#include "tiles.h"

// 64 bits each, in the order of `launch._product`.
struct Product {
    const char *values, *up, *bias;
    const int32_t *row_list, *offsets, *columns;  // a row list, or offsets and columns of a block-CSR matrix
    int64_t entries, width, b_out, b_in, in_features, out_features, activation, tied, has_places;
};

constexpr long READ_AHEAD = 8192;  // bytes

// The blocks of one block row of a matrix.
template <class Element>
struct Blocks {
    const Element* first;
    const int32_t* columns;
    long count, size;
    bool has_places;
    const Element* block(long i) const { return first + (has_places ? columns[i] >> 16 : i) * size; }
    // Elements from a block to one that is read when its weights have come from memory: blocks of a row and rows lie in
    // the order of reading, and a small block is over too soon.
    long ahead() const { return (READ_AHEAD / long(sizeof(Element)) + size - 1) / size * size; }
    long column(long i) const { return has_places ? columns[i] & 0xffff : columns[i]; }
};

// A block row of the product: its number, its blocks, and those of the up projection if there is a gate.
template <class Element>
struct Entry {
    long row;
    Blocks<Element> main, up;
};

template <class Element>
static Entry<Element> entry_of(const Product& p, long e) {
    const long size = p.b_out * p.b_in;
    const Element *values = (const Element*)p.values, *up = (const Element*)p.up;
    if (!p.row_list) {
        const long start = p.offsets[e], count = p.offsets[e + 1] - start;
        return {e, {values + start * size, p.columns + start, count, size, false}, {}};
    }
    const int32_t *entry = p.row_list + e * p.width, *columns = entry + 4;
    const long start = entry[1], up_start = entry[2], count = entry[3] & 0xffff, up_count = entry[3] >> 16;
    const Blocks<Element> main = {values + start * size, columns, count, size, p.has_places != 0};
    if (!up) return {entry[0], main, {}};
    if (p.tied) return {entry[0], main, {up + start * size, columns, count, size, p.has_places != 0}};
    return {entry[0], main, {up + up_start * size, columns + count, up_count, size, false}};
}

// Threads of torch's own OpenMP, whose entry points launch.py looks up: a second OpenMP would fight it for the cores.
struct Threads {
    void (*start)(void (*work)(void*), void* data, unsigned count, unsigned flags);  // GOMP_parallel
    void (*meet)();  // GOMP_barrier
    long count;
};

// Phases of work that all threads do together: each thread takes the next item until none is left, and waits for the
// others before the next phase.
class Phases {
    const Threads& threads;
    std::atomic<long> taken[3];

public:
    explicit Phases(const Threads& threads) : threads(threads), taken{{0}, {0}, {0}} {}

    // `phase` counts the calls of a thread, from 0 on.
    template <class Work>
    void run(long& phase, long items, Work work) {
        if (phase && threads.count > 1) threads.meet();
        // The counter of the phase before, which nobody is in any more, serves the phase after next.
        taken[(phase + 2) % 3] = 0;
        std::atomic<long>& next = taken[phase++ % 3];
        for (long item = next++; item < items; item = next++) work(item);
    }
};

constexpr long SLICE = 64;  // rows of a block that are summed at a time, at most

// Fewer rows at a time if there are too few block rows for the threads.
static long slice_rows(const Product& p, long threads) {
    long rows = SLICE;
    while (rows > 16 && p.entries * ((p.b_out + rows - 1) / rows) < 2 * threads) rows /= 2;
    return rows;
}

template <class Work>
static void in_threads(const Threads& threads, Work work) {
    if (threads.count > 1)
        threads.start([](void* data) { (*(Work*)data)(); }, &work, unsigned(threads.count), 0);
    else
        work();
}
