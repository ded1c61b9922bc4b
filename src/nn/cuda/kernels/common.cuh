// What all kernels share. No CUDA header is needed: bf16 and f16 are handled as bits.
#pragma once

typedef unsigned short bf16_bits;

// What an operand of a product is stored as.
struct Bf16 {
    bf16_bits bits;
};

// What frozen weights may be stored as, to be widened; nothing is rounded to it.
struct F16 {
    unsigned short bits;
};

__device__ __forceinline__ void put(float *to, float value) { *to = value; }

// Round to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void put(Bf16 *to, float value) {
    bf16_bits bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    to->bits = bits;
}

// Two of them, the low one first.
__device__ __forceinline__ unsigned pair(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float get(const float *from) { return *from; }
__device__ __forceinline__ float get(const Bf16 *from) { return __uint_as_float((unsigned)from->bits << 16); }

__device__ __forceinline__ float get(const F16 *from) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(from->bits));
    return value;
}

// As many numbers as 16 bytes hold: what a thread reads and writes at a time, where it can.
template <typename T>
constexpr int WIDE = 16 / sizeof(T);

__device__ __forceinline__ void get_wide(float to[4], const float *from) {
    float4 x = *(const float4 *)from;
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

__device__ __forceinline__ void get_wide(float to[8], const Bf16 *from) {
    uint4 x = *(const uint4 *)from;
    unsigned pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void get_wide(float to[8], const F16 *from) {
    uint4 x = *(const uint4 *)from;
    unsigned pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        F16 low = {(unsigned short)pairs[i]}, high = {(unsigned short)(pairs[i] >> 16)};
        to[2 * i] = get(&low);
        to[2 * i + 1] = get(&high);
    }
}

__device__ __forceinline__ void put_wide(float *to, const float from[4]) {
    *(float4 *)to = make_float4(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ void put_wide(Bf16 *to, const float from[8]) {
    *(uint4 *)to = make_uint4(pair(from[0], from[1]), pair(from[2], from[3]), pair(from[4], from[5]), pair(from[6], from[7]));
}

// Whether all of these addresses are multiples of 16.
template <typename... T>
__device__ __forceinline__ bool aligned(const T *...at) {
    return (((size_t)at | ...) & 15) == 0;
}

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
