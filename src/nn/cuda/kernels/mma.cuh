// The tensor cores' instructions, and copies that need no registers; PTX ISA, "Matrix Fragments for mma.m16n8k16". A lane has the rows
// lane / 4 and lane / 4 + 8, and of each pairs of columns from lane % 4 * 2 on.
#pragma once
#include "common.cuh"

#define LOG2E 1.4426950408889634f

// 2^x; 2^-infinity is 0.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// c (16 x 8) += a (16 x 16) b (16 x 8).
__device__ __forceinline__ void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// To the nearest number of TF32.
__device__ __forceinline__ float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// x becomes the high of two such numbers, the sum of which it was.
__device__ __forceinline__ void split(float &x, float &rest) {
    float whole = x;
    x = to_tf32(whole);
    rest = to_tf32(whole - x);
}

// c (16 x 8) += a (16 x 8) b (8 x 8), of numbers that TF32 holds. A lane has of a the rows lane / 4 and lane / 4 + 8 of column lane % 4,
// then of column lane % 4 + 4; of b the rows lane % 4 and lane % 4 + 4 of column lane / 4.
__device__ __forceinline__ void multiply_tf32(float c[4], const float a[4], const float b[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Four 8 x 8 blocks in shared memory; lane l gives the address of row l % 8 of block l / 8.
__device__ __forceinline__ void blocks_of(unsigned to[4], const bf16_bits *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// The same, each block transposed.
__device__ __forceinline__ void transposed_blocks_of(unsigned to[4], const bf16_bits *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// Two of them; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void transposed_pair_of(unsigned to[2], const bf16_bits *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(at) : "memory");
}

// 16 bytes to shared memory on the way; zeros if they are not there. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_16(void *to, const void *from, bool there) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(at), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until all but the last `GROUPS` groups of this thread are there.
template <int GROUPS>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
}
