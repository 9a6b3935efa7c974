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
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#endif
#define INLINE static inline __attribute__((always_inline))
#define EACH for (int k = 0; k < WIDE; k++) /* of the channels that are computed together */

enum {
    WIDE = 32, /* channels: two registers of the widest */
    PIECE = 32 /* positions that are added up in float32, before their sum is added to a double */
};

typedef struct {
    int64_t n, p, c, groups;
    int32_t half, half_moves, silu;
    float eps;
    /* by channel, [c]; then by image and channel, bf16 where half_moves, rows so many values apart, or both null */
    const float *weight, *bias;
    const void *scale, *shift;
    int64_t scale_stride, shift_stride;
} Norm;

INLINE float of_half(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

INLINE uint16_t to_half(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return value != value ? 0x7fc0 : rounded;
}

INLINE float value_of(const void *values, int half, int64_t index) {
    return half ? of_half(((const uint16_t *)values)[index]) : ((const float *)values)[index];
}

INLINE void load(const void *map, int half, int64_t index, float *restrict to) {
    EACH to[k] = value_of(map, half, index + k);
}

INLINE void store(const float *restrict from, void *map, int half, int64_t index) {
    if (half)
        EACH ((uint16_t *)map)[index + k] = to_half(from[k]);
    else
        EACH ((float *)map)[index + k] = from[k];
}

/* exp(-v) as Cephes has it: 2^k exp(r), |r| < ln(2)/2. Beyond +-87 it stays what it is there; NaN stays NaN. */
INLINE float exp_minus(float v) {
    float x = -v;
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the whole number is in the last bits */
    float k = shifted - 12582912.0f;
    float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = (e * r * r + r) + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u; /* 2^k */
    float power;
    memcpy(&power, &bits, 4);
    return e * power;
}

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

/* Sums over an image's positions: of the values, or where there are means, of squared distances from them. */
INLINE void add_up(const Norm *norm, const void *x, int half, int64_t image, const float *means, double *sums) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += WIDE) {
        double sum[WIDE] = {0};
        float mean[WIDE] = {0};
        if (means) EACH mean[k] = means[first + k];
        for (int64_t i = 0; i < p; i += PIECE) {
            const int64_t end = i + PIECE < p ? i + PIECE : p;
            float piece[WIDE] = {0}, value[WIDE];
            for (int64_t j = i; j < end; j++) {
                load(x, half, (image * p + j) * c + first, value);
                if (means)
                    EACH {
                        float distance = value[k] - mean[k];
                        piece[k] += distance * distance;
                    }
                else
                    EACH piece[k] += value[k];
            }
            EACH sum[k] += piece[k];
        }
        EACH sums[first + k] = sum[k];
    }
}

/* y = silu(n * gain + bias), n = (x - mean) * rstd. */
INLINE void values_of(
    const Norm *norm, const void *x, int half, int silu, int64_t image, const float *means, const float *gains,
    const float *biases, void *y
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += WIDE) {
        float mean[WIDE], gain[WIDE], bias[WIDE], value[WIDE];
        EACH mean[k] = means[first + k], gain[k] = gains[first + k], bias[k] = biases[first + k];
        for (int64_t i = image * p; i < (image + 1) * p; i++) {
            load(x, half, i * c + first, value);
            EACH value[k] = (value[k] - mean[k]) * gain[k] + bias[k];
            if (silu) EACH value[k] = value[k] / (1.0f + exp_minus(value[k]));
            store(value, y, half, i * c + first);
        }
    }
}

/* Writes y, and mean and rstd of each image and channel, [n, c]. Returns 0, or 1 where there is no memory. */
EACH_PROCESSOR
int adm_norm(const Norm *norm, const void *x, void *y, float *means, float *rstds) {
    const int64_t c = norm->c;
    double *sums = malloc(c * (sizeof(double) + 2 * sizeof(float)));
    if (!sums) return 1;
    float *gain = (float *)(sums + c), *bias = gain + c;
    for (int64_t image = 0; image < norm->n; image++) {
        float *mean = means + image * c, *rstd = rstds + image * c;
        norm->half ? add_up(norm, x, 1, image, NULL, sums) : add_up(norm, x, 0, image, NULL, sums);
        mean_by_group(norm, sums, mean);
        norm->half ? add_up(norm, x, 1, image, mean, sums) : add_up(norm, x, 0, image, mean, sums);
        mean_by_group(norm, sums, rstd);
        for (int64_t k = 0; k < c; k++) rstd[k] = 1.0f / sqrtf(rstd[k] + norm->eps);
        modulated(norm, image, rstd, gain, bias);
        if (norm->half && norm->silu)
            values_of(norm, x, 1, 1, image, mean, gain, bias, y);
        else if (norm->half)
            values_of(norm, x, 1, 0, image, mean, gain, bias, y);
        else if (norm->silu)
            values_of(norm, x, 0, 1, image, mean, gain, bias, y);
        else
            values_of(norm, x, 0, 0, image, mean, gain, bias, y);
    }
    free(sums);
    return 0;
}

/* Leaves n and s = dy * silu' * gain of an image, [p, c], and each channel's sums of s and of s * n. */
INLINE void slopes_of(
    const Norm *norm, const void *x, const void *dy, int half, int silu, int64_t image, const float *means,
    const float *rstds, const float *gains, const float *biases, float *normed, float *slopes, double *sums,
    double *sums_of_products
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += WIDE) {
        double sum[WIDE] = {0}, sum_of_products[WIDE] = {0};
        float mean[WIDE], rstd[WIDE], gain[WIDE], bias[WIDE];
        EACH mean[k] = means[first + k], rstd[k] = rstds[first + k];
        EACH gain[k] = gains[first + k], bias[k] = biases[first + k];
        for (int64_t i = 0; i < p; i += PIECE) {
            const int64_t end = i + PIECE < p ? i + PIECE : p;
            float piece[WIDE] = {0}, piece_of_products[WIDE] = {0}, value[WIDE], slope[WIDE];
            for (int64_t j = i; j < end; j++) {
                load(x, half, (image * p + j) * c + first, value);
                load(dy, half, (image * p + j) * c + first, slope);
                EACH {
                    float distance = value[k] - mean[k], s = slope[k];
                    if (silu) {
                        float v = distance * gain[k] + bias[k], sigmoid = 1.0f / (1.0f + exp_minus(v));
                        s *= sigmoid * (1.0f + v * (1.0f - sigmoid));
                    }
                    value[k] = distance * rstd[k];
                    slope[k] = s * gain[k];
                    piece[k] += slope[k];
                    piece_of_products[k] += slope[k] * value[k];
                }
                store(value, normed, 0, j * c + first);
                store(slope, slopes, 0, j * c + first);
            }
            EACH sum[k] += piece[k], sum_of_products[k] += piece_of_products[k];
        }
        EACH sums[first + k] = sum[k], sums_of_products[first + k] = sum_of_products[k];
    }
}

/* dx = s - mean(s) - n * mean(s * n), means over a group. */
INLINE void gradient_of(
    const Norm *norm, int half, int64_t image, const float *normed, const float *slopes, const float *means,
    const float *means_of_products, void *dx
) {
    const int64_t p = norm->p, c = norm->c;
    for (int64_t first = 0; first < c; first += WIDE) {
        float mean[WIDE], mean_of_products[WIDE], n[WIDE], slope[WIDE];
        EACH mean[k] = means[first + k], mean_of_products[k] = means_of_products[first + k];
        for (int64_t i = 0; i < p; i++) {
            load(normed, 0, i * c + first, n);
            load(slopes, 0, i * c + first, slope);
            EACH slope[k] = (slope[k] - mean[k]) - n[k] * mean_of_products[k];
            store(slope, dx, half, (image * p + i) * c + first);
        }
    }
}

/* Writes dx, from what adm_norm has left. Returns 0, or 1 where there is no memory. */
EACH_PROCESSOR
int adm_norm_gradient(
    const Norm *norm, const void *x, const void *dy, const float *means, const float *rstds, void *dx
) {
    const int64_t p = norm->p, c = norm->c;
    double *sums = malloc(c * (2 * sizeof(double) + (4 + 2 * p) * sizeof(float)));
    if (!sums) return 1;
    double *sums_two = sums + c;
    float *gain = (float *)(sums_two + c), *bias = gain + c, *one = bias + c, *two = one + c;
    float *n = two + c, *slopes = n + p * c;
    for (int64_t image = 0; image < norm->n; image++) {
        const float *mean = means + image * c, *rstd = rstds + image * c;
        modulated(norm, image, rstd, gain, bias);
        if (norm->half && norm->silu)
            slopes_of(norm, x, dy, 1, 1, image, mean, rstd, gain, bias, n, slopes, sums, sums_two);
        else if (norm->half)
            slopes_of(norm, x, dy, 1, 0, image, mean, rstd, gain, bias, n, slopes, sums, sums_two);
        else if (norm->silu)
            slopes_of(norm, x, dy, 0, 1, image, mean, rstd, gain, bias, n, slopes, sums, sums_two);
        else
            slopes_of(norm, x, dy, 0, 0, image, mean, rstd, gain, bias, n, slopes, sums, sums_two);
        mean_by_group(norm, sums, one);
        mean_by_group(norm, sums_two, two);
        norm->half ? gradient_of(norm, 1, image, n, slopes, one, two, dx)
                   : gradient_of(norm, 0, image, n, slopes, one, two, dx);
    }
    free(sums);
    return 0;
}
