/* Directions and exact moves, the fast twin of numpy_twin.py: the same bits, about ten times sooner.
 *
 * One Philox block (four 64-bit words) holds the signs of 256 weights. The block is made in integer
 * registers while the vector units work on the weights before it, so the signs are nearly free and
 * a pass costs what reading and writing the weights costs. A sign is applied without a branch: the
 * random bit, moved to the sign position, is XORed into the scale.
 *
 * Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 * Every sum is exact (edge_runtime/lattice.py), so no rounding mode, vector width or contraction
 * can change a bit.
 */
#include "core.h"

#include <math.h>
#include <string.h>

#define DIRECTION_DOMAIN UINT64_C(0x7A2D646972656374) /* "z-direct" */
#define WEIGHTS_PER_BLOCK 256
#define CHUNK_BLOCKS 16 /* 16 KiB of weights: stays in the first-level cache between fused moves */

/* One machine code per vector width, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(PAIRZERO_ONE_TARGET)
#define PER_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HAS_WIDE_REGISTERS __builtin_cpu_supports("avx2")
#elif defined(__AVX2__)
#define PER_PROCESSOR
#define HAS_WIDE_REGISTERS 1
#else
#define PER_PROCESSOR
#define HAS_WIDE_REGISTERS 0
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE void philox_round(uint64_t c[4], uint64_t k0, uint64_t k1)
{
    const unsigned __int128 p0 = (unsigned __int128)UINT64_C(0xD2E7470EE14C6C93) * c[0];
    const unsigned __int128 p1 = (unsigned __int128)UINT64_C(0xCA5A826395121157) * c[2];
    const uint64_t c1 = c[1], c3 = c[3];

    c[0] = (uint64_t)(p1 >> 64) ^ c1 ^ k0;
    c[1] = (uint64_t)p1;
    c[2] = (uint64_t)(p0 >> 64) ^ c3 ^ k1;
    c[3] = (uint64_t)p0;
}

INLINE void philox(const uint64_t counter[4], uint64_t k0, uint64_t k1, uint64_t out[4])
{
    memcpy(out, counter, 4 * sizeof *out);
    for (int round = 0; round < 10; round++) {
        philox_round(out, k0, k1);
        k0 += UINT64_C(0x9E3779B97F4A7C15);
        k1 += UINT64_C(0xBB67AE8584CAA73B);
    }
}

/* Block n of a tensor's signs; numpy raises the counter before it makes a block, hence n + 1. */
INLINE void sign_block(uint64_t seed, uint64_t tensor_index, uint64_t n, uint64_t out[4])
{
    const uint64_t counter[4] = {n + 1, tensor_index, 0, 0};
    philox(counter, seed, DIRECTION_DOMAIN, out);
}

/* A register full of weights and as many bits, added where they lie. The type must be as wide as the
 * register: a wider one, or one copied into a local first, is taken apart weight by weight (4 times
 * slower with gcc 12). Eight lanes serve AVX2 and AVX-512, where memory is the limit; four SSE2 and
 * NEON. */
typedef float floats_8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t lanes_8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float floats_4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t lanes_4 __attribute__((vector_size(16), aligned(4), may_alias));

#define SIGN_BIT UINT32_C(0x80000000)

INLINE void add_8(float *weights, uint32_t bits, uint32_t scale)
{
    const lanes_8 position = {1u << 0, 1u << 1, 1u << 2, 1u << 3, 1u << 4, 1u << 5, 1u << 6, 1u << 7};
    const lanes_8 sign = (lanes_8)((((lanes_8){0} + bits) & position) == position) & SIGN_BIT;

    *(floats_8 *)weights += (floats_8)(sign ^ scale);
}

INLINE void add_4(float *weights, uint32_t bits, uint32_t scale)
{
    const lanes_4 position = {1u << 0, 1u << 1, 1u << 2, 1u << 3};
    const lanes_4 sign = (lanes_4)((((lanes_4){0} + bits) & position) == position) & SIGN_BIT;

    *(floats_4 *)weights += (floats_4)(sign ^ scale);
}

/* 64 weights and the word that holds their signs. */
INLINE void add_word(float *weights, uint64_t word, uint32_t scale, int is_wide)
{
    if (is_wide)
        for (int i = 0; i < 64; i += 8)
            add_8(weights + i, (uint32_t)(word >> i) & 0xFF, scale);
    else
        for (int i = 0; i < 64; i += 4)
            add_4(weights + i, (uint32_t)(word >> i) & 0xF, scale);
}

INLINE void add_block(float *weights, const uint64_t words[4], uint32_t scale, int is_wide)
{
    for (int word = 0; word < 4; word++)
        add_word(weights + 64 * word, words[word], scale, is_wide);
}

INLINE void add_tail(float *weights, size_t num_weights, const uint64_t words[4], float scale)
{
    for (size_t i = 0; i < num_weights; i++)
        weights[i] += words[i / 64] >> i % 64 & 1 ? -scale : scale;
}

void pairzero_philox4x64_10(const uint64_t counter[4], const uint64_t key[2], uint64_t out[4])
{
    philox(counter, key[0], key[1], out);
}

void pairzero_sign_words(uint64_t seed, uint64_t tensor_index, uint64_t first_word, size_t num_words,
                         uint64_t *out)
{
    uint64_t block[4];

    for (size_t i = 0; i < num_words; i++) {
        const uint64_t word = first_word + i;
        if (i == 0 || word % 4 == 0)
            sign_block(seed, tensor_index, word / 4, block);
        out[i] = block[word % 4];
    }
}

INLINE void add_moves(float *weights, size_t num_weights, uint64_t tensor_index,
                      uint64_t first_block, const uint64_t *seeds, const float *scales,
                      size_t num_moves, int is_wide)
{
    const size_t chunk = (size_t)CHUNK_BLOCKS * WEIGHTS_PER_BLOCK;

    for (size_t start = 0; start < num_weights; start += chunk) {
        const size_t size = num_weights - start < chunk ? num_weights - start : chunk;
        const uint64_t block = first_block + start / WEIGHTS_PER_BLOCK;
        for (size_t move = 0; move < num_moves; move++) {
            float *w = weights + start;
            uint64_t words[4];
            uint32_t scale;
            memcpy(&scale, &scales[move], sizeof scale);
            size_t n = 0;
            for (; (n + 1) * WEIGHTS_PER_BLOCK <= size; n++) {
                sign_block(seeds[move], tensor_index, block + n, words);
                add_block(w + n * WEIGHTS_PER_BLOCK, words, scale, is_wide);
            }
            if (n * WEIGHTS_PER_BLOCK < size) {
                sign_block(seeds[move], tensor_index, block + n, words);
                add_tail(w + n * WEIGHTS_PER_BLOCK, size - n * WEIGHTS_PER_BLOCK, words,
                         scales[move]);
            }
        }
    }
}

PER_PROCESSOR
static void add_moves_wide(float *weights, size_t num_weights, uint64_t tensor_index,
                             uint64_t first_block, const uint64_t *seeds, const float *scales,
                             size_t num_moves)
{
    add_moves(weights, num_weights, tensor_index, first_block, seeds, scales, num_moves, 1);
}

static void add_moves_narrow(float *weights, size_t num_weights, uint64_t tensor_index,
                               uint64_t first_block, const uint64_t *seeds, const float *scales,
                               size_t num_moves)
{
    add_moves(weights, num_weights, tensor_index, first_block, seeds, scales, num_moves, 0);
}

/* weights += sum over m of scales[m] * z(seeds[m]); the moves one after the other in each chunk, so
 * that all of them cost one trip to memory. weights[0] has number 256 * first_block in its tensor. */
void pairzero_add_moves(float *weights, size_t num_weights, uint64_t tensor_index,
                        uint64_t first_block, const uint64_t *seeds, const float *scales,
                        size_t num_moves)
{
    (HAS_WIDE_REGISTERS ? add_moves_wide : add_moves_narrow)(
        weights, num_weights, tensor_index, first_block, seeds, scales, num_moves);
}

/* Whole numbers move by whole numbers: the same signs, exact as long as the sums fit 16 bits. Unsigned
 * lanes, because they may wrap on the way. */
typedef uint16_t lanes_of_16 __attribute__((vector_size(16), aligned(2), may_alias));

INLINE void step_8(int16_t *stored, uint32_t bits, uint16_t quanta)
{
    const lanes_of_16 position = {1u << 0, 1u << 1, 1u << 2, 1u << 3,
                                  1u << 4, 1u << 5, 1u << 6, 1u << 7};
    const lanes_of_16 minus =
        (lanes_of_16)((((lanes_of_16){0} + (uint16_t)bits) & position) == position);

    *(lanes_of_16 *)stored += (quanta ^ minus) - minus;
}

/* stored += sum over m of quanta[m] * z(seeds[m]), as pairzero_add_moves. */
PER_PROCESSOR
void pairzero_add_whole_moves(int16_t *stored, size_t num_weights, uint64_t tensor_index,
                              uint64_t first_block, const uint64_t *seeds, const int16_t *quanta,
                              size_t num_moves)
{
    for (size_t start = 0; start < num_weights; start += WEIGHTS_PER_BLOCK) {
        const size_t left = num_weights - start;
        int16_t *s = stored + start;
        for (size_t move = 0; move < num_moves; move++) {
            const uint16_t by = (uint16_t)quanta[move];
            uint64_t words[4];
            sign_block(seeds[move], tensor_index, first_block + start / WEIGHTS_PER_BLOCK, words);
            if (left >= WEIGHTS_PER_BLOCK)
                for (int i = 0; i < WEIGHTS_PER_BLOCK; i += 8)
                    step_8(s + i, (uint32_t)(words[i / 64] >> i % 64) & 0xFF, by);
            else
                for (size_t i = 0; i < left; i++) {
                    const int is_minus = words[i / 64] >> i % 64 & 1;
                    s[i] = (int16_t)((uint16_t)s[i] + (is_minus ? (uint16_t)-by : by));
                }
        }
    }
}

/* A row of weights on its way: scale * z added to those with the numbers first, first + 1, ... */
INLINE void add_to_row(float *row, size_t width, uint64_t first, uint64_t tensor_index,
                       uint64_t seed, float scale, int is_wide)
{
    uint64_t words[4] = {0}, block = UINT64_MAX;
    uint32_t pattern;
    size_t i = 0;

    memcpy(&pattern, &scale, sizeof pattern);
    while (i < width) {
        const uint64_t number = first + i;
        const unsigned bit = number % 64;
        const uint64_t *word = &words[number / 64 % 4];
        const size_t size = width - i < 64 - bit ? width - i : 64 - bit;
        if (number / WEIGHTS_PER_BLOCK != block) {
            block = number / WEIGHTS_PER_BLOCK;
            sign_block(seed, tensor_index, block, words);
        }
        if (size == 64)
            add_word(row + i, *word, pattern, is_wide);
        else
            for (size_t k = 0; k < size; k++)
                row[i + k] += *word >> (bit + k) & 1 ? -scale : scale;
        i += size;
    }
}

INLINE void expand_rows(float *out, const void *stored, size_t bytes, const int64_t *rows,
                        size_t num_rows, size_t width, uint64_t tensor_index,
                        const float *row_scales, const uint64_t *seeds, const float *scales,
                        size_t num_moves, int is_wide)
{
    for (size_t r = 0; r < num_rows; r++) {
        const uint64_t first = (uint64_t)rows[r] * width;
        const float factor = row_scales[rows[r]];
        float *row = out + r * width;
        if (bytes == 2)
            for (size_t i = 0; i < width; i++)
                row[i] = (float)((const int16_t *)stored)[first + i] * factor;
        else
            for (size_t i = 0; i < width; i++)
                row[i] = (float)((const int8_t *)stored)[first + i] * factor;
        for (size_t move = 0; move < num_moves; move++)
            add_to_row(row, width, first, tensor_index, seeds[move], scales[move], is_wide);
    }
}

PER_PROCESSOR
static void expand_rows_wide(float *out, const void *stored, size_t bytes, const int64_t *rows,
                             size_t num_rows, size_t width, uint64_t tensor_index,
                             const float *row_scales, const uint64_t *seeds, const float *scales,
                             size_t num_moves)
{
    expand_rows(out, stored, bytes, rows, num_rows, width, tensor_index, row_scales, seeds, scales,
                num_moves, 1);
}

static void expand_rows_narrow(float *out, const void *stored, size_t bytes, const int64_t *rows,
                               size_t num_rows, size_t width, uint64_t tensor_index,
                               const float *row_scales, const uint64_t *seeds, const float *scales,
                               size_t num_moves)
{
    expand_rows(out, stored, bytes, rows, num_rows, width, tensor_index, row_scales, seeds, scales,
                num_moves, 0);
}

/* out[r] = row_scales[n] * stored[n] + sum over m of scales[m] * z(seeds[m])[n],  n = rows[r], of a
 * matrix of so many bytes a weight, 1 or 2. One rounding an operation, in this order. */
void pairzero_expand_rows(float *out, const void *stored, size_t bytes, const int64_t *rows,
                          size_t num_rows, size_t width, uint64_t tensor_index,
                          const float *row_scales, const uint64_t *seeds, const float *scales,
                          size_t num_moves)
{
    (HAS_WIDE_REGISTERS ? expand_rows_wide : expand_rows_narrow)(
        out, stored, bytes, rows, num_rows, width, tensor_index, row_scales, seeds, scales,
        num_moves);
}

/* The largest abs(weights[i]); NaN if any is NaN. Compared as integers: without its sign bit, a
 * float's pattern grows with its value, and NaN lies above infinity. */
PER_PROCESSOR
float pairzero_max_abs(const float *weights, size_t num_weights)
{
    uint32_t largest = 0;
    float result;

    for (size_t i = 0; i < num_weights; i++) {
        uint32_t bits;
        memcpy(&bits, &weights[i], sizeof bits);
        bits &= UINT32_C(0x7FFFFFFF);
        largest = bits > largest ? bits : largest;
    }
    memcpy(&result, &largest, sizeof result);
    return result;
}
