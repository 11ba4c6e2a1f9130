// Quantizes made-up weights with ggml's own ggml_quantize_chunk and prints, for each type and distribution, the hash
// of all blocks and the bytes of the first. crates/quant/tests/weights/mod.rs makes the same weights: integers from
// splitmix64, scaled by powers of two or through single float operations, so that no libm is involved.
//
// With COLUMNS, the hashes of all types for each distribution of weights, in rows of so many, and of importance; `-` where
// ggml's validation refuses what it made. Types of 256 weights take the rows two at a time where COLUMNS is no multiple.
//
// Usage: ggml_blocks SEED WEIGHTS [COLUMNS]    (built and run by ggml_blocks.sh)
#include "ggml.h"

#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint64_t next(void) {
    uint64_t z = (state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static uint32_t below(uint32_t n) { return (uint32_t) ((next() >> 32) % n); }
static float    unit(void)        { return (float) (int32_t) (next() >> 40) * 0x1p-24f; }
static float    from_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static uint32_t to_bits(float f)         { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

// Twelve uniforms: variance 1 once scaled by 2^-24.
static float normal(void) {
    int64_t sum = 0;
    for (int i = 0; i < 12; ++i) { sum += (int64_t) (next() >> 40); }
    return (float) (int32_t) (sum - 6 * (INT64_C(1) << 24)) * 0x1p-24f;
}

static float bf16_rounded(float f) {
    uint32_t bits = to_bits(f);
    return from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

// Drops the 13 bits that f16 lacks; for normal f16 numbers only.
static float f16_rounded(float f) {
    uint32_t bits = to_bits(f);
    return from_bits((bits + 0xfff + ((bits >> 13) & 1)) & 0xffffe000u);
}

static float power_of_two(int exponent) { return from_bits((uint32_t) (exponent + 127) << 23); }

static const char * const NAMES[] = {
    "normal", "heavy_tailed", "uniform", "constants", "zeros", "denormals", "outlier", "alternating", "bf16", "f16",
    "near_f16_max", "mixed_scales", "ternary", "positive", "negative", "sparse", "ramp", "vanishing", "f16_subnormal",
    "integers", "block_fates",
};
enum { N_NAMES = sizeof(NAMES) / sizeof(NAMES[0]) };

static void fill(int which, float * x, int64_t n) {
    float    value = 0.0f;
    float    other = 0.0f;
    uint32_t spot  = 0;
    for (int64_t i = 0; i < n; ++i) {
        switch (which) {
            case 0: x[i] = normal() * 0x1p-6f; break;
            case 1: { float a = normal(); float b = normal(); float c = b < 0 ? -b : b; x[i] = (a / (c + 0x1p-6f)) * 0x1p-7f; } break;
            case 2: x[i] = (unit() - 0.5f) * 0x1p-4f; break;
            case 3: if (i % 32 == 0) { value = normal() * 0x1p-5f; } x[i] = value; break;
            case 4: x[i] = i % 3 == 0 ? -0.0f : 0.0f; break;
            case 5: { uint32_t r = (uint32_t) (next() >> 32); x[i] = from_bits((r & 0x80000000u) | (r & 0x7fffffu) >> (r >> 27 & 15)); } break;
            case 6: if (i % 256 == 0) { spot = below(256); } x[i] = normal() * 0x1p-8f; if (i % 256 == spot) { x[i] = x[i] * 0x1p9f; } break;
            case 7: value = unit() * 0x1p-5f; x[i] = i % 2 ? -value : value; break;
            case 8: x[i] = bf16_rounded(normal() * 0x1p-6f); break;
            case 9: x[i] = f16_rounded(normal() * 0x1p-6f + 0x1p-9f); break;
            case 10: x[i] = f16_rounded((unit() - 0.5f) * 131008.0f); break;
            case 11: if (i % 16 == 0) { value = power_of_two((int) below(24) - 20); } x[i] = normal() * value; break;
            case 12: if (i % 256 == 0) { value = unit() * 0x1p-4f; } x[i] = value * (float) ((int) below(3) - 1); break;
            case 13: x[i] = unit() * 0x1p-5f + 0x1p-8f; break;
            case 14: x[i] = -0x1p-8f - unit() * 0x1p-5f; break;
            case 15: value = normal(); x[i] = below(10) ? 0.0f : value * 0x1p-5f; break;
            case 16: if (i % 256 == 0) { value = normal(); other = unit() * 0x1p-8f; } x[i] = value + other * (float) (int) (i % 256); break;
            case 17: if (i % 16 == 0) { value = power_of_two(-56 + (int) below(12)); } x[i] = normal() * value; break;
            case 18: x[i] = normal() * 0x1p-23f; break;
            case 19: x[i] = (float) ((int) below(31) - 15); break;
            // Each sub-block of 16: zeros, a constant, normals, tiny normals, or one weight among zeros.
            default:
                if (i % 16 == 0) { spot = below(5); value = normal(); }
                other = normal() * 0x1p-6f;
                x[i] = spot == 0 ? 0.0f : spot == 1 ? value : spot == 2 ? other : spot == 3 ? other * 0x1p-20f : i % 16 == 5 ? value : 0.0f;
                break;
        }
    }
}

static const char * const IMPORTANCE[] = { "ones", "squares", "sparse", "zeros", "denormals", "wide", "dead_blocks" };
enum { N_IMPORTANCE = sizeof(IMPORTANCE) / sizeof(IMPORTANCE[0]) };

static void fill_importance(int which, float * w, int64_t n) {
    float value = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        switch (which) {
            case 0: w[i] = 1.0f; break;
            case 1: value = normal(); w[i] = value * value; break;
            case 2: value = unit(); w[i] = below(4) ? 0.0f : value; break;
            case 3: w[i] = 0.0f; break;
            case 4: w[i] = from_bits((uint32_t) (next() >> 32) & 0x7fffffu); break;
            case 5: value = power_of_two((int) below(40) - 20); w[i] = unit() * value; break;
            default: value = unit(); w[i] = i / 16 % 3 == 1 ? 0.0f : value; break;
        }
    }
}

static uint64_t fnv1a(const uint8_t * bytes, size_t n) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; ++i) { hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3); }
    return hash;
}

static const enum ggml_type TYPES[] = {
    GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
    GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ3_XXS,
    GGML_TYPE_IQ1_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ3_S, GGML_TYPE_IQ2_S, GGML_TYPE_IQ4_XS, GGML_TYPE_IQ1_M, GGML_TYPE_TQ1_0,
    GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4,
};
enum { N_TYPES = sizeof(TYPES) / sizeof(TYPES[0]) };

static void with_importance(uint64_t seed, int64_t n, int64_t columns, float * x, uint8_t * out) {
    float * w = malloc(sizeof(float) * 2 * columns);
    for (int which = 0; which < N_NAMES; ++which) {
        state = seed * 1000 + (uint64_t) which;
        fill(which, x, n);
        for (int how = 0; how < N_IMPORTANCE; ++how) {
            state = seed * 1000 + 500 + (uint64_t) how;
            fill_importance(how, w, 2 * columns);
            printf("%s %s", NAMES[which], IMPORTANCE[how]);
            for (int t = 0; t < N_TYPES; ++t) {
                const int64_t cols  = columns % ggml_blck_size(TYPES[t]) ? 2 * columns : columns;
                const size_t  bytes = ggml_quantize_chunk(TYPES[t], x, out, 0, n / cols, cols, w);
                if (ggml_validate_row_data(TYPES[t], out, bytes)) { printf(" %016" PRIx64, fnv1a(out, bytes)); } else { printf(" -"); }
            }
            printf("\n");
        }
    }
    free(w);
}

int main(int argc, char ** argv) {
    if (argc != 3 && argc != 4) { fprintf(stderr, "usage: %s SEED WEIGHTS [COLUMNS]\n", argv[0]); return 2; }
    const uint64_t seed = strtoull(argv[1], NULL, 10);
    const int64_t  n    = strtoll(argv[2], NULL, 10);
    float *   x   = malloc(sizeof(float) * n);
    uint8_t * out = malloc(2 * n + 64);
    if (argc == 4) {
        with_importance(seed, n, strtoll(argv[3], NULL, 10), x, out);
        return 0;
    }
    for (int which = 0; which < N_NAMES; ++which) {
        state = seed * 1000 + (uint64_t) which;
        fill(which, x, n);
        printf("weights %s %016" PRIx64 "\n", NAMES[which], fnv1a((const uint8_t *) x, sizeof(float) * n));
        for (int t = 0; t < N_TYPES; ++t) {
            if (ggml_quantize_requires_imatrix(TYPES[t])) { continue; }
            const size_t bytes = ggml_quantize_chunk(TYPES[t], x, out, 0, 1, n, NULL);
            if (!ggml_validate_row_data(TYPES[t], out, bytes)) { fprintf(stderr, "%s %s: not a valid row\n", NAMES[which], ggml_type_name(TYPES[t])); return 1; }
            printf("%s %s %016" PRIx64 " ", ggml_type_name(TYPES[t]), NAMES[which], fnv1a(out, bytes));
            for (size_t i = 0; i < ggml_type_size(TYPES[t]); ++i) { printf("%02x", out[i]); }
            printf("\n");
        }
    }
    free(x); free(out);
    return 0;
}
