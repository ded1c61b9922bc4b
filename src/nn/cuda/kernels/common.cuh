// What all kernels share. No CUDA header is needed: bf16 is handled as bits.
#pragma once

typedef unsigned short bf16_bits;

// What an operand of a product is stored as.
struct Bf16 {
    bf16_bits bits;
};

__device__ __forceinline__ void put(float *to, float value) { *to = value; }

// Round to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void put(Bf16 *to, float value) {
    bf16_bits bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    to->bits = bits;
}

__device__ __forceinline__ float get(const float *from) { return *from; }
__device__ __forceinline__ float get(const Bf16 *from) { return __uint_as_float((unsigned)from->bits << 16); }

// The first element of this thread, and how far it is to its next.
__device__ __forceinline__ size_t first() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t step() { return (size_t)gridDim.x * blockDim.x; }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

// The block's sum, in every thread; the order of the additions is fixed. Threads: a multiple of 32, at most 1024.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : -INFINITY;
    return warp_max(x);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
