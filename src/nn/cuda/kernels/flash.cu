// Attention without its scores in memory (FlashAttention 2, Dao 2023): a block has some queries of a head and goes over the keys;
// products of bf16 on the tensor cores with sums in f32, as is the softmax.
#include "flash.cuh"

// The maximum or sum over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// q (batch, s, heads d), k and v (batch, t, heads d) -> out as q (f32 if `whole`), lse (batch, heads, s). D: d rounded up to a multiple of 16, N: d / 8,
// rounded up; d is one of 8, and rows begin at multiples of 16 bytes. A warp has M tiles of 16 queries and takes KEYS keys at a time,
// while the next come. grid (queries / (16 M WARPS), batch heads); 32 WARPS threads.
template <int D, int N, int M, int WARPS, int KEYS>
__device__ void flash(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, void *out, int whole, float *lse, int heads, int s,
                      int t, int d, int causal, float scale) {
    constexpr int LINE = D + 8, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS;
    __shared__ __align__(16) bf16_bits keys[2][KEYS * LINE];
    __shared__ __align__(16) bf16_bits values[2][KEYS * LINE];
    int lane = threadIdx.x % 32, top = blockIdx.x * ROWS + threadIdx.x / 32 * 16 * M, row = top + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    size_t base = sample * s * width + head * d;
    q += base;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;

    unsigned queries[M][D / 16][4];
    float sum[M][N][4] = {}, largest[M][2], total[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        load_fragments<D>(queries[m], q, row + m * 16, column, s, d, width);
        largest[m][0] = largest[m][1] = -INFINITY;
        total[m][0] = total[m][1] = 0.0f;
    }
    scale *= LOG2E; // powers of two below
    int end = causal ? min(t, (int)(blockIdx.x + 1) * ROWS) : t;
    stage<D, KEYS, THREADS>(keys[0], k, 0, t, d, width);
    stage<D, KEYS, THREADS>(values[0], v, 0, t, d, width);
    end_copies();
    for (int first = 0, turn = 0; first < end; first += KEYS, turn ^= 1) {
        if (first + KEYS < end) {
            stage<D, KEYS, THREADS>(keys[turn ^ 1], k, first + KEYS, t, d, width);
            stage<D, KEYS, THREADS>(values[turn ^ 1], v, first + KEYS, t, d, width);
        }
        end_copies();
        await_copies<1>();
        __syncthreads();
        float scores[KEYS / 16][M][2][4];
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) product_with_rows<D, M>(scores[i], queries, keys[turn] + i * 16 * LINE);
        if (first + KEYS > t || (causal && first + KEYS > top)) {
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 8; e++) {
                        int key = first + i * 16 + e / 4 * 8 + column + e % 2;
                        bool seen = key < t && !(causal && key > row + m * 16 + e / 2 % 2 * 8);
                        if (!seen) scores[i][m][e / 4][e % 4] = -INFINITY;
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = -INFINITY;
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
                    for (int n = 0; n < 2; n++) most = fmaxf(most, fmaxf(scores[i][m][n][2 * half], scores[i][m][n][2 * half + 1]));
                }
                most = fmaxf(largest[m][half], row_max(most));
                float safe = most == -INFINITY ? 0.0f : most * scale;
                float keep = power_of_two(largest[m][half] * scale - safe);
                largest[m][half] = most;
                float here = 0.0f;
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
                    for (int n = 0; n < 2; n++) {
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; e++) {
                            float p = power_of_two(scores[i][m][n][e] * scale - safe);
                            scores[i][m][n][e] = p;
                            here += p;
                        }
                    }
                }
                total[m][half] = total[m][half] * keep + here;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    sum[m][n][2 * half] *= keep;
                    sum[m][n][2 * half + 1] *= keep;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            unsigned p[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) pairs_of(p[m], scores[i][m][0], scores[i][m][1]);
            add_product<N, M, LINE>(sum, p, values[turn] + i * 16 * LINE);
        }
        __syncthreads(); // the next copies go where these keys are
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float all[2] = {row_sum(total[m][0]), row_sum(total[m][1])};
        float part[2] = {1.0f / all[0], 1.0f / all[1]};
        store_rows<N>(out, whole, base, sum[m], part, row + m * 16, column, s, d, width);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + m * 16 + half * 8;
            if (r < s && lane % 4 == 0) {
                lse[(size_t)blockIdx.y * s + r] = largest[m][half] * scale * 0.69314718055994531f + logf(all[half]);
            }
        }
    }
}

#define FLASH(NAME, D, M, WARPS, KEYS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_##NAME(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, void *out, int whole, float *lse, int heads,       \
                     int s, int t, int d, int causal, float scale) {                                                                \
        flash<D, (NAME + 7) / 8, M, WARPS, KEYS>(q, k, v, out, whole, lse, heads, s, t, d, causal, scale);                                 \
    }

FLASH(16, 16, 2, 4, 64)
FLASH(32, 32, 2, 4, 64)
FLASH(40, 48, 2, 4, 64)
FLASH(64, 64, 2, 4, 64)
FLASH(80, 80, 1, 4, 64)
FLASH(128, 128, 1, 4, 32)
FLASH(160, 160, 1, 4, 32)
