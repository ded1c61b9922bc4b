// Fragments of attention's products.
#pragma once
#include "mma.cuh"

// a (16 x 16) from two sums (16 x 8) side by side.
__device__ __forceinline__ void pairs_of(unsigned a[4], const float left[4], const float right[4]) {
    a[0] = pair(left[0], left[1]);
    a[1] = pair(left[2], left[3]);
    a[2] = pair(right[0], right[1]);
    a[3] = pair(right[2], right[3]);
}

// Rows of d features (a multiple of 8), `width` apart, to shared memory in lines of D + 8, so that eight rows of a block lie in
// different banks; what is not there becomes 0. Ends no group of copies.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void stage(bf16_bits *to, const bf16_bits *from, int first, int rows, int d, size_t width) {
    for (int i = threadIdx.x; i < ROWS * (D / 8); i += THREADS) {
        int r = i / (D / 8), c = i % (D / 8) * 8;
        bool there = first + r < rows && c < d;
        copy_16(to + r * (D + 8) + c, there ? from + (size_t)(first + r) * width + c : from, there);
    }
}

// The lane's parts of 16 rows of features, from memory. `row`, `column`: its first.
template <int D>
__device__ __forceinline__ void load_fragments(unsigned to[D / 16][4], const bf16_bits *from, int row, int column, int rows, int d,
                                               size_t width) {
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            int r = row + part % 2 * 8, c = i * 16 + column + part / 2 * 8;
            to[i][part] = r < rows && c < d ? *(const unsigned *)(from + r * width + c) : 0;
        }
    }
}

// sum (16 x 16, of M tiles) = a (16 x D, of M tiles) b^T, where b's 16 rows begin at `rows` in shared memory.
template <int D, int M>
__device__ __forceinline__ void product_with_rows(float sum[M][2][4], const unsigned a[M][D / 16][4], const bf16_bits *rows) {
    int lane = threadIdx.x % 32;
    const bf16_bits *at = rows + (lane % 8 + lane / 16 * 8) * (D + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sum[m][0][e] = sum[m][1][e] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        unsigned b[4];
        blocks_of(b, at + i * 16);
#pragma unroll
        for (int m = 0; m < M; m++) {
            multiply(sum[m][0], a[m][i], b[0], b[1]);
            multiply(sum[m][1], a[m][i], b[2], b[3]);
        }
    }
}

// sum (16 x 8 N, of M tiles) += a (16 x 16, of M tiles) b, where b's 16 rows begin at `rows` in shared memory, `LINE` apart.
template <int N, int M, int LINE>
__device__ __forceinline__ void add_product(float sum[M][N][4], const unsigned a[M][4], const bf16_bits *rows) {
    int lane = threadIdx.x % 32;
    const bf16_bits *at = rows + lane % 16 * LINE + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n + 1 < N; n += 2) {
        unsigned b[4];
        transposed_blocks_of(b, at + n * 8);
#pragma unroll
        for (int m = 0; m < M; m++) {
            multiply(sum[m][n], a[m], b[0], b[1]);
            multiply(sum[m][n + 1], a[m], b[2], b[3]);
        }
    }
    if (N % 2 == 1) {
        unsigned b[2];
        transposed_pair_of(b, rows + lane % 16 * LINE + (N - 1) * 8);
#pragma unroll
        for (int m = 0; m < M; m++) multiply(sum[m][N - 1], a[m], b[0], b[1]);
    }
}

// A tile (16 x 8 N) to memory, from `base` on, times `scale` by row (of row and row + 8); as f32 if `whole`, as bf16 otherwise.
template <int N>
__device__ __forceinline__ void store_rows(void *to, int whole, size_t base, const float tile[N][4], const float scale[2], int row,
                                           int column, int rows, int d, size_t width) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        if (r >= rows) continue;
#pragma unroll
        for (int n = 0; n < N; n++) {
            int c = n * 8 + column;
            if (c >= d) continue;
            float low = tile[n][2 * half] * scale[half], high = tile[n][2 * half + 1] * scale[half];
            size_t at = base + r * width + c;
            if (whole) {
                *(float2 *)((float *)to + at) = make_float2(low, high);
            } else {
                *(unsigned *)((bf16_bits *)to + at) = pair(low, high);
            }
        }
    }
}
