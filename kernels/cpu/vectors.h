// Vectors of float32 and what the kernels compute with them: rounding, transposes, activations.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

constexpr long LANES = VECTOR_BYTES / 4;
typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t BFloat;  // the bits of a bfloat16

template <class Vector>
static inline Vector load(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector>
static inline void store(void* to, Vector vector) {
    std::memcpy(to, &vector, sizeof vector);
}

static inline Floats broadcast(float x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(x);
#else
    return (Floats)_mm256_set1_ps(x);
#endif
}

static inline Ints broadcast(int32_t x) {
#if defined(__AVX512F__)
    return (Ints)_mm512_set1_epi32(x);
#else
    return (Ints)_mm256_set1_epi32(x);
#endif
}

static inline float widened(float x) { return x; }

static inline float widened(BFloat x) {
    uint32_t bits = uint32_t(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Rounded to the nearest bfloat16, ties to even, as float32 bits whose lower half is zero. A NaN stays one.
static inline Ints rounded(Floats x) {
    Ints bits = (Ints)x;
    Ints near = (bits + 0x7fff + ((bits >> 16) & 1)) & int32_t(0xffff0000);
    return x == x ? near : broadcast(int32_t(0x7fc00000));
}

// LANES bfloat16 from memory as float32, and float32 to memory as bfloat16.
static inline Floats load_wide(const BFloat* from) {
#if defined(__AVX512F__)
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#else
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#endif
    return (Floats)((Ints)wide << 16);
}

static inline Floats load_wide(const float* from) { return load<Floats>(from); }

static inline void store_narrow(BFloat* to, Floats x) {
    Ints bits = rounded(x);
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)bits, 16)));
#else
    __m256i high = _mm256_srli_epi32((__m256i)bits, 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(packed));
#endif
}

static inline void store_narrow(float* to, Floats x) { store(to, x); }

// Transposes LANES vectors of 32-bit words in place.
static inline void transpose(Floats* rows) {
#if defined(__AVX512F__)
    __m512 *r = (__m512*)rows, u[16];
    for (int g = 0; g < 16; g += 4) {
        __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[g], r[g + 1]));
        __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[g], r[g + 1]));
        __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[g + 2], r[g + 3]));
        __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[g + 2], r[g + 3]));
        u[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        u[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        u[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        u[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int j = 0; j < 4; ++j) {  // a quarter of u[4 g + j] holds one column of the rows 4 g to 4 g + 3
        __m512 even = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), odd = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
        __m512 even2 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
        __m512 odd2 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
        r[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
        r[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
        r[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
#else
    __m256 *r = (__m256*)rows, u[8];
    for (int g = 0; g < 8; g += 4) {
        __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r[g], r[g + 1]));
        __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(r[g], r[g + 1]));
        __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r[g + 2], r[g + 3]));
        __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(r[g + 2], r[g + 3]));
        u[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        u[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        u[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        u[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
        r[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
    }
#endif
}

// e^x: x = n · ln 2 + r, and a polynomial of r that is right to the last bit but one (Cephes).
static inline Floats exponential(Floats x) {
    x = x < -87.3f ? broadcast(-87.3f) : x;
    x = x > 88.3f ? broadcast(88.3f) : x;
    const Floats shift = broadcast(12582912.0f);  // 1.5 · 2²³ rounds to a whole number, in the lowest bits
    Floats whole = x * 1.44269504f + shift;
    Ints power = ((Ints)whole - (Ints)shift + 127) << 23;
    whole -= shift;
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (Floats)power;
}

// The error function by formula 7.1.26 of Abramowitz and Stegun, off by 1.5e-7 at most.
static inline Floats error_function(Floats x) {
    Floats size = x < 0.0f ? -x : x;
    Floats t = 1.0f / (size * 0.3275911f + 1.0f);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Floats value = 1.0f - p * t * exponential(-size * size);
    return x < 0.0f ? -value : value;
}

enum Activation : long { NONE, SILU, GELU, GELU_TANH };  // the order of `ACTIVATIONS` in constants.py

static inline Floats activate(Floats x, long activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    // tanh(u) with u = sqrt(2 / π) · (x + 0.044715 x³); 0.5 · (1 + tanh(u)) is the logistic function of 2 u.
    if (activation == GELU_TANH) return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x)));
    return x;
}
