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

INLINE void add_block(float *weights, const uint64_t words[4], uint32_t scale, int is_wide)
{
    for (int word = 0; word < 4; word++) {
        float *w = weights + 64 * word;
        if (is_wide)
            for (int i = 0; i < 64; i += 8)
                add_8(w + i, (uint32_t)(words[word] >> i) & 0xFF, scale);
        else
            for (int i = 0; i < 64; i += 4)
                add_4(w + i, (uint32_t)(words[word] >> i) & 0xF, scale);
    }
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
