/* Products of a few rows with a tall matrix, y = x W', that read W once. Chapter 51 explains them. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / 4)
#define SUMS 8     /* vectors of sums at a time: they have to stay in registers */
#define AHEAD 1024 /* words from what is multiplied to what is asked for */
#define INLINE static inline __attribute__((always_inline))

typedef int32_t words __attribute__((vector_size(BYTES)));
typedef float floats __attribute__((vector_size(BYTES)));

/* The k-th of the weights in each word, as floats. */
INLINE floats unpack(words w, int parts, int k)
{
    if (parts == 1)
        return (floats)w;
    if (parts == 2)
        return (floats)(k ? w & (int32_t)0xffff0000 : w << 16);
    return __builtin_convertvector((w << (24 - 8 * k)) >> 24, floats);
}

INLINE float total(floats lanes)
{
    float sums[LANES];
    memcpy(sums, &lanes, BYTES);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            sums[i] += sums[i + half];
    return sums[0];
}

INLINE int rows_of(long left)
{
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

INLINE int parts_of(int rows, int parts)
{
    return parts * rows <= SUMS ? parts : SUMS / rows;
}

/* Rows of x (B, C) in the order in which dot reads them, filled up with zeros. */
static void lay_out(float *to, const float *x, long C, long n, long B, int parts)
{
    for (long b = 0, rows; b < B; b += rows) {
        rows = rows_of(B - b);
        const int together = parts_of(rows, parts);
        for (int first = 0; first < parts; first += together)
            for (long c = 0; c < n; c += LANES)
                for (int k = first; k < first + together; k++)
                    for (long r = b; r < b + rows; r++, to += LANES)
                        for (long i = k * n + c; i < k * n + c + LANES; i++)
                            to[i - k * n - c] = i < C ? x[r * C + i] : 0;
    }
}

/* The products of `rows` rows of x with one row of W, n words; V numbers lie between those of two rows of y. */
INLINE void dot(const int32_t *w, float scale, const floats *x, float *y, long V, long n, int rows, int parts)
{
    const int together = parts_of(rows, parts);
    floats sums[SUMS] = {{0}};
    for (int first = 0; first < parts; first += together) {
        floats part[SUMS] = {{0}};
        for (long c = 0; c < n; c += LANES, x += together * rows) {
            words word;
            memcpy(&word, w + c, BYTES);
            if (!first)
                __builtin_prefetch(w + c + AHEAD);
            for (int k = 0; k < together; k++) {
                const floats weight = unpack(word, parts, first + k);
                for (int r = 0; r < rows; r++)
                    part[k * rows + r] += weight * x[k * rows + r];
            }
        }
        for (int k = 0; k < together; k++)
            for (int r = 0; r < rows; r++)
                sums[r] += part[k * rows + r];
    }
    for (int r = 0; r < rows; r++)
        y[r * V] = total(sums[r]) * scale;
}

INLINE void dots(const int32_t *w, float scale, const floats *x, float *y, long V, long n, long B, int parts)
{
    for (long b = 0, rows; b < B; b += rows) {
        const floats *from = x + b * parts * n / LANES;
        rows = rows_of(B - b);
        if (rows == 8)
            dot(w, scale, from, y + b * V, V, n, 8, parts);
        else if (rows == 4)
            dot(w, scale, from, y + b * V, V, n, 4, parts);
        else if (rows == 2)
            dot(w, scale, from, y + b * V, V, n, 2, parts);
        else
            dot(w, scale, from, y + b * V, V, n, 1, parts);
    }
}

/* y (B, V) = x (B, C) W', where W (V, n) has `parts` weights in a word and n is a multiple of 16. Column v of
   the result is multiplied with scale[v], if there is a scale. Returns 0, or 1 when there is no memory. */
int row_product(const int32_t *w, const float *scale, const float *x, float *y, long V, long n, long C, long B,
                int parts)
{
    floats *rows = aligned_alloc(BYTES, B * parts * n * 4);
    if (!rows)
        return 1;
    lay_out((float *)rows, x, C, n, B, parts);
#pragma omp parallel for schedule(static) if (V * n > 16384)
    for (long v = 0; v < V; v++) {
        const float s = scale ? scale[v] : 1;
        if (parts == 1)
            dots(w + v * n, s, rows, y + v, V, n, B, 1);
        else if (parts == 2)
            dots(w + v * n, s, rows, y + v, V, n, B, 2);
        else
            dots(w + v * n, s, rows, y + v, V, n, B, 4);
    }
    free(rows);
    return 0;
}
