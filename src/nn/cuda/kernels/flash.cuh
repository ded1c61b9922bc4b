// Fragments of products on the tensor cores; PTX ISA, "Matrix Fragments for mma.m16n8k16". A lane has the rows lane / 4 and
// lane / 4 + 8, and of each pairs of columns from lane % 4 * 2 on.
#pragma once
#include "common.cuh"

#define LOG2E 1.4426950408889634f

__device__ __forceinline__ unsigned pair(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// c (16 x 8) += a (16 x 16) b (16 x 8).
__device__ __forceinline__ void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two 8 x 8 blocks of rows that lie in shared memory, transposed; lanes 0 to 15 give the rows' addresses.
__device__ __forceinline__ void transposed(unsigned &b0, unsigned &b1, const bf16_bits *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(b0), "=r"(b1) : "r"(at) : "memory");
}

// a (16 x 16) from rows in shared memory; `at`: this lane's first pair.
__device__ __forceinline__ void rows_of(unsigned a[4], const bf16_bits *at, int line) {
    a[0] = *(const unsigned *)at;
    a[1] = *(const unsigned *)(at + 8 * line);
    a[2] = *(const unsigned *)(at + 8);
    a[3] = *(const unsigned *)(at + 8 * line + 8);
}

// a (16 x 16) from two sums (16 x 8) side by side.
__device__ __forceinline__ void pairs_of(unsigned a[4], const float left[4], const float right[4]) {
    a[0] = pair(left[0], left[1]);
    a[1] = pair(left[2], left[3]);
    a[2] = pair(right[0], right[1]);
    a[3] = pair(right[2], right[3]);
}

// sum (16 x D) += a (16 x 16) b (16 x D); `row`: of b's rows in shared memory, that of lane % 16.
template <int D>
__device__ __forceinline__ void add_product(float sum[D / 8][4], const unsigned a[4], const bf16_bits *row) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        unsigned b0, b1;
        transposed(b0, b1, row + n * 8);
        multiply(sum[n], a, b0, b1);
    }
}

// Rows of d features (a multiple of 4), `width` apart, to shared memory as bf16 in lines of D + 8; what is not there becomes 0.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_rows(bf16_bits *to, const float *from, int first, int rows, int d, size_t width) {
    for (int i = threadIdx.x; i < ROWS * D / 4; i += THREADS) {
        int r = i / (D / 4), c = i % (D / 4) * 4;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + r < rows && c < d) x = *(const float4 *)(from + (first + r) * width + c);
        *(uint2 *)(to + r * (D + 8) + c) = make_uint2(pair(x.x, x.y), pair(x.z, x.w));
    }
}

// The lane's parts of 16 rows of features, in registers.
template <int D>
__device__ __forceinline__ void load_fragments(unsigned to[D / 16][4], const float *from, int row, int column, int rows, int d,
                                               size_t width) {
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            int r = row + part % 2 * 8, c = i * 16 + column + part / 2 * 8;
            float2 x = r < rows && c < d ? *(const float2 *)(from + r * width + c) : make_float2(0.0f, 0.0f);
            to[i][part] = pair(x.x, x.y);
        }
    }
}
