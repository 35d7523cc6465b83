/* The arithmetic of edge_runtime.kernel, free of Python: see core.c. */
#ifndef PAIRZERO_KERNEL_CORE_H
#define PAIRZERO_KERNEL_CORE_H

#include <stddef.h>
#include <stdint.h>

void pairzero_philox4x64_10(const uint64_t counter[4], const uint64_t key[2], uint64_t out[4]);

void pairzero_sign_words(uint64_t seed, uint64_t tensor_index, uint64_t first_word, size_t num_words,
                         uint64_t *out);

void pairzero_add_moves(float *weights, size_t num_weights, uint64_t tensor_index,
                        uint64_t first_block, const uint64_t *seeds, const float *scales,
                        size_t num_moves);

void pairzero_add_whole_moves(int16_t *stored, size_t num_weights, uint64_t tensor_index,
                              uint64_t first_block, const uint64_t *seeds, const int16_t *quanta,
                              size_t num_moves);

void pairzero_expand_rows(float *out, const void *stored, size_t bytes, const int64_t *rows,
                          size_t num_rows, size_t width, uint64_t tensor_index,
                          const float *row_scales, const uint64_t *seeds, const float *scales,
                          size_t num_moves);

float pairzero_max_abs(const float *weights, size_t num_weights);

#endif
