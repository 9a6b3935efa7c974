/* Group norm of maps that lie by channels, and its gradient: what channel_norm.py does, in one call instead of twelve.

   Every result depends on one image alone, by an order of additions that its size decides, not the number of images or
   of threads, nor the width of the processor's vectors: channels are side by side, each adds up its own positions, and
   products are not contracted with sums (-ffp-contract=off in pyproject.toml). So all processors give equal bits.

   A map is n images of p positions of c channels, c a multiple of 32. half: its values are bf16, else float32. What
   lies between reading and writing is float32. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef EACH_PROCESSOR
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(__AVX512F__)
#define EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#endif
#define INLINE static inline __attribute__((always_inline))

#ifndef WIDE /* values in a vector; vectors that a processor has no register for would lie in memory */
#ifdef __AVX512F__
#define WIDE 16
#else
#define WIDE 8
#endif
#endif

enum {
    BLOCK = 32, /* channels that are computed together, a cache line of bf16 */
    VECTORS = BLOCK / WIDE,
    PIECE = 32 /* positions that are added up in float32, before their sum is added to a double */
};

/* Vectors as GCC and clang have them. A processor with narrower registers uses several, and computes the same. */
typedef float Floats __attribute__((vector_size(WIDE * 4)));
typedef double Doubles __attribute__((vector_size(WIDE * 8)));
typedef uint32_t Bits __attribute__((vector_size(WIDE * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDE * 2)));
typedef int32_t Mask __attribute__((vector_size(WIDE * 4))); /* all bits of a place are set, or none */

typedef struct {
    int64_t n, p, c, groups;
    int32_t half, half_moves, silu;
    float eps;
    /* by channel, [c]; then by image and channel, bf16 where half_moves, rows so many values apart, or both null */
    const float *weight, *bias;
    const void *scale, *shift;
    int64_t scale_stride, shift_stride;
} Norm;

const int adm_norm_version = 2; /* of the functions' arguments: native_norm.py refuses a library that was built before a change */

INLINE Floats chosen(Mask where, Floats yes, Floats no) { return (Floats)((where & (Mask)yes) | (~where & (Mask)no)); }

INLINE float of_half(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

INLINE float value_of(const void *values, int half, int64_t index) {
    return half ? of_half(((const uint16_t *)values)[index]) : ((const float *)values)[index];
}

INLINE Floats load(const void *map, int half, int64_t index) {
    if (half) {
        Halves halves;
        memcpy(&halves, (const uint16_t *)map + index, sizeof halves);
        return (Floats)(__builtin_convertvector(halves, Bits) << 16);
    }
    Floats values;
    memcpy(&values, (const float *)map + index, sizeof values);
    return values;
}

INLINE void store(Floats values, void *map, int half, int64_t index) {
    if (half) { /* to the nearest, ties to even */
        Bits bits = (Bits)values;
        Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        Mask is_nan = values != values;
        Halves halves = __builtin_convertvector((rounded & ~(Bits)is_nan) | (0x7fc0 & (Bits)is_nan), Halves);
        memcpy((uint16_t *)map + index, &halves, sizeof halves);
    } else
        memcpy((float *)map + index, &values, sizeof values);
}

INLINE void store_doubles(Doubles values, double *to) { memcpy(to, &values, sizeof values); }

INLINE Doubles widened(Floats values) { return __builtin_convertvector(values, Doubles); }

/* exp(-v) as Cephes has it: 2^k exp(r), |r| < ln(2)/2. Beyond +-87 it stays what it is there; NaN stays NaN. */
INLINE Floats exp_minus(Floats v) {
    const Floats most = {0};
    Floats x = -v;
    x = chosen(x > most + 87.0f, most + 87.0f, x);
    x = chosen(x < most - 87.0f, most - 87.0f, x);
    Floats shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the whole number is in the last bits */
    Floats k = shifted - 12582912.0f;
    Floats r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    Floats e = r * 1.9875691500e-4f + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = (e * r * r + r) + 1.0f;
    return e * (Floats)(((Bits)shifted << 23) + 0x3f800000u); /* times 2^k */
}

/* Calls f with `half` and `silu` as constants, so that each kind of map has a loop of its own. */
#define BY_KIND(f, ...)                                                                        \
    (norm->half ? (norm->silu ? f(norm, 1, 1, __VA_ARGS__) : f(norm, 1, 0, __VA_ARGS__))       \
                : (norm->silu ? f(norm, 0, 1, __VA_ARGS__) : f(norm, 0, 0, __VA_ARGS__)))

/* Each channel's gain and bias in one image: those of the norm, modulated; the gain by rstd. */
INLINE void modulated(const Norm *norm, int64_t image, const float *rstd, float *gain, float *bias) {
    for (int64_t k = 0; k < norm->c; k++) {
        gain[k] = norm->weight[k];
        bias[k] = norm->bias[k];
        if (norm->scale) {
            float by = 1.0f + value_of(norm->scale, norm->half_moves, image * norm->scale_stride + k);
            gain[k] *= by;
            bias[k] = bias[k] * by + value_of(norm->shift, norm->half_moves, image * norm->shift_stride + k);
        }
        gain[k] *= rstd[k];
    }
}

/* From each channel's sum to the mean of its group, in each of the group's channels. */
INLINE void mean_by_group(const Norm *norm, const double *sums, float *means) {
    const int64_t width = norm->c / norm->groups;
    const double size = (double)norm->p * (double)width;
    for (int64_t g = 0; g < norm->groups; g++) {
        double sum = 0;
        for (int64_t k = 0; k < width; k++) sum += sums[g * width + k];
        for (int64_t k = 0; k < width; k++) means[g * width + k] = (float)(sum / size);
    }
}

/* One block of channels as vectors: of a map or of a row of floats, from an index on. */
INLINE void load_block(const void *map, int half, int64_t index, Floats block[VECTORS]) {
    for (int k = 0; k < VECTORS; k++) block[k] = load(map, half, index + k * WIDE);
}

/* Adds a block's sums in float32 to those in double. */
INLINE void add_block(const Floats block[VECTORS], Doubles sums[VECTORS]) {
    for (int k = 0; k < VECTORS; k++) sums[k] += widened(block[k]);
}

INLINE void store_block(const Doubles sums[VECTORS], double *to) {
    for (int k = 0; k < VECTORS; k++) store_doubles(sums[k], to + k * WIDE);
}

/* Sums over an image's positions: of the values, or where there are means, of squared distances from them. */
INLINE void add_up(const Norm *norm, int half, const void *x, int64_t image, const float *means, double *sums) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += BLOCK) {
        Doubles sum[VECTORS] = {0};
        Floats mean[VECTORS] = {0};
        if (means) load_block(means, 0, first, mean);
        for (int64_t i = 0; i < p; i += PIECE) {
            const int64_t end = i + PIECE < p ? i + PIECE : p;
            Floats piece[VECTORS] = {0};
            for (int64_t j = i; j < end; j++)
                for (int k = 0; k < VECTORS; k++) {
                    Floats value = load(x, half, (image * p + j) * c + first + k * WIDE);
                    Floats distance = value - mean[k];
                    piece[k] += means ? distance * distance : value;
                }
            add_block(piece, sum);
        }
        store_block(sum, sums + first);
    }
}

/* y = silu(n * gain + bias), n = (x - mean) * rstd. */
INLINE void values_of(
    const Norm *norm, int half, int silu, const void *x, int64_t image, const float *means, const float *gains,
    const float *biases, void *y
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += BLOCK) {
        Floats mean[VECTORS], gain[VECTORS], bias[VECTORS];
        load_block(means, 0, first, mean);
        load_block(gains, 0, first, gain);
        load_block(biases, 0, first, bias);
        for (int64_t i = image * p; i < (image + 1) * p; i++)
            for (int k = 0; k < VECTORS; k++) {
                const int64_t at = i * c + first + k * WIDE;
                Floats value = (load(x, half, at) - mean[k]) * gain[k] + bias[k];
                if (silu) value = value / (1.0f + exp_minus(value));
                store(value, y, half, at);
            }
    }
}

/* Writes y, and moments, mean and rstd of each image and channel: [n, 2, c]. Returns 0, or 1 where there is no memory. */
EACH_PROCESSOR
int adm_norm(const Norm *norm, const void *x, void *y, float *moments) {
    const int64_t c = norm->c;
    double *sums = malloc(c * (sizeof(double) + 2 * sizeof(float)));
    if (!sums) return 1;
    float *gain = (float *)(sums + c), *bias = gain + c;
    for (int64_t image = 0; image < norm->n; image++) {
        float *mean = moments + 2 * image * c, *rstd = mean + c;
        norm->half ? add_up(norm, 1, x, image, NULL, sums) : add_up(norm, 0, x, image, NULL, sums);
        mean_by_group(norm, sums, mean);
        norm->half ? add_up(norm, 1, x, image, mean, sums) : add_up(norm, 0, x, image, mean, sums);
        mean_by_group(norm, sums, rstd);
        for (int64_t k = 0; k < c; k++) rstd[k] = 1.0f / sqrtf(rstd[k] + norm->eps);
        modulated(norm, image, rstd, gain, bias);
        BY_KIND(values_of, x, image, mean, gain, bias, y);
    }
    free(sums);
    return 0;
}

/* Leaves s = d * gain of an image, [p, c], d = dy * silu', and each channel's sums of s and of s * n. Where the norm
   trains, also the sums that the gradients of its parameters are made of, of d and of d * n: [2, c]. */
INLINE void slopes_of(
    const Norm *norm, int half, int silu, int trains, const void *x, const void *dy, int64_t image, const float *means,
    const float *rstds, const float *gains, const float *biases, float *slopes, double *sums,
    double *sums_of_products, float *of_channels
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += BLOCK) {
        Floats mean[VECTORS], rstd[VECTORS], gain[VECTORS], bias[VECTORS];
        load_block(means, 0, first, mean);
        load_block(rstds, 0, first, rstd);
        load_block(gains, 0, first, gain);
        load_block(biases, 0, first, bias);
        Doubles sum[VECTORS] = {0}, sum_of_products[VECTORS] = {0}, channel[VECTORS] = {0}, channel_products[VECTORS] = {0};
        for (int64_t i = 0; i < p; i += PIECE) {
            const int64_t end = i + PIECE < p ? i + PIECE : p;
            Floats piece[VECTORS] = {0}, piece_of_products[VECTORS] = {0};
            Floats channel_piece[VECTORS] = {0}, channel_piece_of_products[VECTORS] = {0};
            for (int64_t j = i; j < end; j++)
                for (int k = 0; k < VECTORS; k++) {
                    const int64_t in_image = j * c + first + k * WIDE, at = image * p * c + in_image;
                    Floats distance = load(x, half, at) - mean[k], d = load(dy, half, at);
                    if (silu) {
                        Floats v = distance * gain[k] + bias[k], sigmoid = 1.0f / (1.0f + exp_minus(v));
                        d *= sigmoid * (1.0f + v * (1.0f - sigmoid));
                    }
                    Floats n = distance * rstd[k], slope = d * gain[k];
                    piece[k] += slope;
                    piece_of_products[k] += slope * n;
                    if (trains) {
                        channel_piece[k] += d;
                        channel_piece_of_products[k] += d * n;
                    }
                    store(slope, slopes, 0, in_image);
                }
            add_block(piece, sum);
            add_block(piece_of_products, sum_of_products);
            if (trains) {
                add_block(channel_piece, channel);
                add_block(channel_piece_of_products, channel_products);
            }
        }
        store_block(sum, sums + first);
        store_block(sum_of_products, sums_of_products + first);
        for (int k = 0; trains && k < VECTORS; k++) {
            const int64_t at = first + k * WIDE;
            store(__builtin_convertvector(channel[k], Floats), of_channels, 0, at);
            store(__builtin_convertvector(channel_products[k], Floats), of_channels + c, 0, at);
        }
    }
}

/* dx = s - mean(s) - n * mean(s * n), means over a group, n = (x - mean) * rstd. */
INLINE void gradient_of(
    const Norm *norm, int half, const void *x, int64_t image, const float *means, const float *rstds,
    const float *slopes, const float *mean_slopes, const float *mean_products, void *dx
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += BLOCK) {
        Floats mean[VECTORS], rstd[VECTORS], mean_slope[VECTORS], mean_product[VECTORS];
        load_block(means, 0, first, mean);
        load_block(rstds, 0, first, rstd);
        load_block(mean_slopes, 0, first, mean_slope);
        load_block(mean_products, 0, first, mean_product);
        for (int64_t i = 0; i < p; i++)
            for (int k = 0; k < VECTORS; k++) {
                const int64_t in_image = i * c + first + k * WIDE, at = image * p * c + in_image;
                Floats n = (load(x, half, at) - mean[k]) * rstd[k], slope = load(slopes, 0, in_image);
                store((slope - mean_slope[k]) - n * mean_product[k], dx, half, at);
            }
    }
}

/* Writes dx, from adm_norm's moments, and unless it is null, channel_sums: slopes and products, [n, 2, c]. Returns 0, or 1
   where there is no memory. */
EACH_PROCESSOR
int adm_norm_gradient(
    const Norm *norm, const void *x, const void *dy, const float *moments, void *dx, float *channel_sums
) {
    const int64_t p = norm->p, c = norm->c;
    double *sums = malloc(c * (2 * sizeof(double) + (4 + p) * sizeof(float)));
    if (!sums) return 1;
    double *sums_two = sums + c;
    float *gain = (float *)(sums_two + c), *bias = gain + c, *one = bias + c, *two = one + c, *slopes = two + c;
    for (int64_t image = 0; image < norm->n; image++) {
        const float *mean = moments + 2 * image * c, *rstd = mean + c;
        float *of_channels = channel_sums ? channel_sums + 2 * image * c : NULL;
        modulated(norm, image, rstd, gain, bias);
        of_channels ? BY_KIND(slopes_of, 1, x, dy, image, mean, rstd, gain, bias, slopes, sums, sums_two, of_channels)
                       : BY_KIND(slopes_of, 0, x, dy, image, mean, rstd, gain, bias, slopes, sums, sums_two, of_channels);
        mean_by_group(norm, sums, one);
        mean_by_group(norm, sums_two, two);
        norm->half ? gradient_of(norm, 1, x, image, mean, rstd, slopes, one, two, dx)
                   : gradient_of(norm, 0, x, image, mean, rstd, slopes, one, two, dx);
    }
    free(sums);
    return 0;
}
