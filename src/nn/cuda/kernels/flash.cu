// Attention without its scores in memory (FlashAttention 2, Dao 2023): a block has some queries of a head and goes over the keys, 64
// at a time; products of bf16 on the tensor cores with sums in f32, as is the softmax.
#include "flash.cuh"

#define KEYS 64

// The maximum or sum over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// q (batch, s, heads d), k and v (batch, t, heads d) -> out as q, lse (batch, heads, s). D: d rounded up to a multiple of 16; d is one
// of 4, and rows begin at multiples of 16 bytes. grid (queries / (16 WARPS), batch heads); 32 WARPS threads.
template <int D, int WARPS>
__device__ void flash(const float *q, const float *k, const float *v, float *out, float *lse, int heads, int s, int t, int d,
                      int causal, float scale) {
    constexpr int LINE = D + 8; // so that eight rows of a fragment lie in different banks
    __shared__ __align__(16) bf16_bits keys[KEYS * LINE];
    __shared__ __align__(16) bf16_bits values[KEYS * LINE];
    int lane = threadIdx.x % 32, row = blockIdx.x * 16 * WARPS + threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    q += sample * s * width + head * d;
    out += sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;

    unsigned queries[D / 16][4];
    load_fragments<D>(queries, q, row, column, s, d, width);
    float sum[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    scale *= LOG2E; // powers of two below
    int end = causal ? min(t, (int)(blockIdx.x + 1) * 16 * WARPS) : t;
    for (int first = 0; first < end; first += KEYS) {
        __syncthreads();
        load_rows<D, KEYS, 32 * WARPS>(keys, k, first, t, d, width);
        load_rows<D, KEYS, 32 * WARPS>(values, v, first, t, d, width);
        __syncthreads();
        float scores[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
            const bf16_bits *from = keys + (n * 8 + lane / 4) * LINE + column;
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                multiply(scores[n], queries[i], *(const unsigned *)(from + i * 16), *(const unsigned *)(from + i * 16 + 8));
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int key = first + n * 8 + column + e % 2;
                bool seen = key < t && !(causal && key > row + e / 2 * 8);
                scores[n][e] = seen ? scores[n][e] * scale : -INFINITY;
            }
        }
        float keep[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = fmaxf(largest[half], row_max(most));
            float safe = most == -INFINITY ? 0.0f : most;
            keep[half] = exp2f(largest[half] - safe);
            largest[half] = most;
            float here = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                scores[n][2 * half] = exp2f(scores[n][2 * half] - safe);
                scores[n][2 * half + 1] = exp2f(scores[n][2 * half + 1] - safe);
                here += scores[n][2 * half] + scores[n][2 * half + 1];
            }
            total[half] = total[half] * keep[half] + here;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            sum[n][0] *= keep[0];
            sum[n][1] *= keep[0];
            sum[n][2] *= keep[1];
            sum[n][3] *= keep[1];
        }
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            unsigned p[4];
            pairs_of(p, scores[2 * i], scores[2 * i + 1]);
            add_product<D>(sum, p, values + (i * 16 + lane % 16) * LINE);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        float all = row_sum(total[half]);
        if (r >= s) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int c = n * 8 + column;
            if (c < d) *(float2 *)(out + r * width + c) = make_float2(sum[n][2 * half] / all, sum[n][2 * half + 1] / all);
        }
        if (lane % 4 == 0) lse[(size_t)blockIdx.y * s + r] = largest[half] * 0.69314718055994531f + logf(all);
    }
}

#define FLASH(D, WARPS)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_##D(const float *q, const float *k, const float *v, float *out, float *lse, int heads, int s, int t, int d,           \
                  int causal, float scale) {                                                                                        \
        flash<D, WARPS>(q, k, v, out, lse, heads, s, t, d, causal, scale);                                                          \
    }

FLASH(16, 4)
FLASH(32, 4)
FLASH(48, 4)
FLASH(64, 4)
FLASH(80, 4)
FLASH(128, 4)
FLASH(160, 4)
#undef KEYS
