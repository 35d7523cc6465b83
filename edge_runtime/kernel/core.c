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
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define PER_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PER_PROCESSOR
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

/* Sixteen weights, sixteen bits. Written with vector types, so that every compiler sees it. */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef uint32_t lanes __attribute__((vector_size(64), aligned(4)));

INLINE void add_16(float *weights, uint32_t bits, lanes scale)
{
    const lanes position = {1u << 0, 1u << 1, 1u << 2, 1u << 3, 1u << 4, 1u << 5,
                            1u << 6, 1u << 7, 1u << 8, 1u << 9, 1u << 10, 1u << 11,
                            1u << 12, 1u << 13, 1u << 14, 1u << 15};
    const lanes sign = (lanes)(((lanes){0} + bits & position) == position) & UINT32_C(0x80000000);
    floats w;

    memcpy(&w, weights, sizeof w);
    w += (floats)(scale ^ sign);
    memcpy(weights, &w, sizeof w);
}

INLINE void add_block(float *weights, const uint64_t words[4], lanes scale)
{
    for (int word = 0; word < 4; word++)
        for (int part = 0; part < 4; part++)
            add_16(weights + 64 * word + 16 * part, (uint32_t)(words[word] >> 16 * part) & 0xFFFF,
                   scale);
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

/* weights += sum over m of scales[m] * z(seeds[m]); the moves one after the other in each chunk, so
 * that all of them cost one trip to memory. weights[0] has number 256 * first_block in its tensor. */
PER_PROCESSOR
void pairzero_add_moves(float *weights, size_t num_weights, uint64_t tensor_index,
                        uint64_t first_block, const uint64_t *seeds, const float *scales,
                        size_t num_moves)
{
    const size_t chunk = (size_t)CHUNK_BLOCKS * WEIGHTS_PER_BLOCK;

    for (size_t start = 0; start < num_weights; start += chunk) {
        const size_t size = num_weights - start < chunk ? num_weights - start : chunk;
        const uint64_t block = first_block + start / WEIGHTS_PER_BLOCK;
        for (size_t move = 0; move < num_moves; move++) {
            float *w = weights + start;
            uint64_t words[4];
            uint32_t scale_bits;
            memcpy(&scale_bits, &scales[move], sizeof scale_bits);
            const lanes scale = (lanes){0} + scale_bits;
            size_t n = 0;
            for (; (n + 1) * WEIGHTS_PER_BLOCK <= size; n++) {
                sign_block(seeds[move], tensor_index, block + n, words);
                add_block(w + n * WEIGHTS_PER_BLOCK, words, scale);
            }
            if (n * WEIGHTS_PER_BLOCK < size) {
                sign_block(seeds[move], tensor_index, block + n, words);
                add_tail(w + n * WEIGHTS_PER_BLOCK, size - n * WEIGHTS_PER_BLOCK, words,
                         scales[move]);
            }
        }
    }
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
