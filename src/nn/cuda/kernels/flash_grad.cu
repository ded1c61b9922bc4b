// The backward pass of flash.cu: probabilities are computed again from the log-sum-exp, P = exp(scale q k^T - lse). With
// delta = rowsum(out dout) and dS = P (dout v^T - delta): dv = P^T dout, dk = scale dS^T q, dq = scale dS k. One kernel goes over the
// queries for each block of keys, the other over the keys for each block of queries: nothing is added up by atomics.
#include "flash.cuh"

// dk and dv (batch, t, heads d) from q, dout (batch, s, heads d), k, v, lse (batch, heads, s), delta (batch, s, heads). A block has
// 16 WARPS keys and takes QUERIES queries at a time. grid (keys / (16 WARPS), batch heads).
template <int D, int WARPS, int QUERIES>
__device__ void flash_keys(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta,
                           float *dk, float *dv, int heads, int s, int t, int d, int causal, float scale) {
    constexpr int LINE = D + 8, KEYS_HERE = 16 * WARPS;
    __shared__ __align__(16) bf16_bits queries[QUERIES * LINE], slopes[QUERIES * LINE], keys[KEYS_HERE * LINE], values[KEYS_HERE * LINE];
    __shared__ float row_lse[QUERIES], row_delta[QUERIES];
    int lane = threadIdx.x % 32, first_key = blockIdx.x * KEYS_HERE, mine = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    q += sample * s * width + head * d;
    dout += sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    load_rows<D, KEYS_HERE, 32 * WARPS>(keys, k, first_key, t, d, width);
    load_rows<D, KEYS_HERE, 32 * WARPS>(values, v, first_key, t, d, width);
    float to_k[D / 8][4] = {}, to_v[D / 8][4] = {};
    float power = scale * LOG2E;
    int start = causal ? first_key / QUERIES * QUERIES : 0;
    for (int first = start; first < s; first += QUERIES) {
        __syncthreads();
        load_rows<D, QUERIES, 32 * WARPS>(queries, q, first, s, d, width);
        load_rows<D, QUERIES, 32 * WARPS>(slopes, dout, first, s, d, width);
        for (int i = threadIdx.x; i < QUERIES; i += 32 * WARPS) {
            bool there = first + i < s;
            row_lse[i] = there ? lse[(size_t)blockIdx.y * s + first + i] * LOG2E : INFINITY;
            row_delta[i] = there ? delta[(sample * s + first + i) * heads + head] : 0.0f;
        }
        __syncthreads();
        float p[QUERIES / 8][4], ds[QUERIES / 8][4];
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++) p[n][0] = p[n][1] = p[n][2] = p[n][3] = ds[n][0] = ds[n][1] = ds[n][2] = ds[n][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            unsigned key[4], value[4];
            rows_of(key, keys + mine * LINE + i * 16 + column, LINE);
            rows_of(value, values + mine * LINE + i * 16 + column, LINE);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                const unsigned *from = (const unsigned *)(queries + (n * 8 + lane / 4) * LINE + i * 16 + column);
                multiply(p[n], key, from[0], from[4]);
                from = (const unsigned *)(slopes + (n * 8 + lane / 4) * LINE + i * 16 + column);
                multiply(ds[n], value, from[0], from[4]);
            }
        }
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int query = n * 8 + column + e % 2;
                bool seen = !(causal && first_key + mine + e / 2 * 8 > first + query);
                p[n][e] = seen ? exp2f(p[n][e] * power - row_lse[query]) : 0.0f;
                ds[n][e] = p[n][e] * (ds[n][e] - row_delta[query]);
            }
        }
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) {
            unsigned a[4];
            pairs_of(a, p[2 * i], p[2 * i + 1]);
            add_product<D>(to_v, a, slopes + (i * 16 + lane % 16) * LINE);
            pairs_of(a, ds[2 * i], ds[2 * i + 1]);
            add_product<D>(to_k, a, queries + (i * 16 + lane % 16) * LINE);
        }
    }
    dk += sample * t * width + head * d;
    dv += sample * t * width + head * d;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = first_key + mine + half * 8;
        if (r >= t) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int c = n * 8 + column;
            if (c >= d) continue;
            *(float2 *)(dk + r * width + c) = make_float2(to_k[n][2 * half] * scale, to_k[n][2 * half + 1] * scale);
            *(float2 *)(dv + r * width + c) = make_float2(to_v[n][2 * half], to_v[n][2 * half + 1]);
        }
    }
}

// dq (batch, s, heads d). A block has 16 WARPS queries and takes KEYS keys at a time. grid (queries / (16 WARPS), batch heads).
template <int D, int WARPS, int KEYS>
__device__ void flash_queries(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta,
                              float *dq, int heads, int s, int t, int d, int causal, float scale) {
    constexpr int LINE = D + 8;
    __shared__ __align__(16) bf16_bits keys[KEYS * LINE], values[KEYS * LINE];
    int lane = threadIdx.x % 32, row = blockIdx.x * 16 * WARPS + threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    unsigned queries[D / 16][4], slopes[D / 16][4];
    load_fragments<D>(queries, q + sample * s * width + head * d, row, column, s, d, width);
    load_fragments<D>(slopes, dout + sample * s * width + head * d, row, column, s, d, width);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        row_lse[half] = r < s ? lse[(size_t)blockIdx.y * s + r] * LOG2E : INFINITY;
        row_delta[half] = r < s ? delta[(sample * s + r) * heads + head] : 0.0f;
    }
    float sum[D / 8][4] = {};
    float power = scale * LOG2E;
    int end = causal ? min(t, (int)(blockIdx.x + 1) * 16 * WARPS) : t;
    for (int first = 0; first < end; first += KEYS) {
        __syncthreads();
        load_rows<D, KEYS, 32 * WARPS>(keys, k, first, t, d, width);
        load_rows<D, KEYS, 32 * WARPS>(values, v, first, t, d, width);
        __syncthreads();
        float ds[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            float p[4] = {};
            ds[n][0] = ds[n][1] = ds[n][2] = ds[n][3] = 0.0f;
            const bf16_bits *key = keys + (n * 8 + lane / 4) * LINE + column, *value = values + (n * 8 + lane / 4) * LINE + column;
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                multiply(p, queries[i], *(const unsigned *)(key + i * 16), *(const unsigned *)(key + i * 16 + 8));
                multiply(ds[n], slopes[i], *(const unsigned *)(value + i * 16), *(const unsigned *)(value + i * 16 + 8));
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = first + n * 8 + column + e % 2;
                bool seen = at < t && !(causal && at > row + e / 2 * 8);
                float probability = seen ? exp2f(p[e] * power - row_lse[e / 2]) : 0.0f;
                ds[n][e] = probability * (ds[n][e] - row_delta[e / 2]);
            }
        }
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            unsigned a[4];
            pairs_of(a, ds[2 * i], ds[2 * i + 1]);
            add_product<D>(sum, a, keys + (i * 16 + lane % 16) * LINE);
        }
    }
    dq += sample * s * width + head * d;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        if (r >= s) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int c = n * 8 + column;
            if (c < d) *(float2 *)(dq + r * width + c) = make_float2(sum[n][2 * half] * scale, sum[n][2 * half + 1] * scale);
        }
    }
}

#define FLASH_GRAD(D, WARPS, TILE)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_keys_##D(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta,     \
                       float *dk, float *dv, int heads, int s, int t, int d, int causal, float scale) {                             \
        flash_keys<D, WARPS, TILE>(q, k, v, dout, lse, delta, dk, dv, heads, s, t, d, causal, scale);                               \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_queries_##D(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta,  \
                          float *dq, int heads, int s, int t, int d, int causal, float scale) {                                     \
        flash_queries<D, WARPS, TILE>(q, k, v, dout, lse, delta, dq, heads, s, t, d, causal, scale);                                \
    }

FLASH_GRAD(16, 4, 64)
FLASH_GRAD(32, 4, 64)
FLASH_GRAD(48, 4, 64)
FLASH_GRAD(64, 4, 64)
FLASH_GRAD(80, 4, 32)
FLASH_GRAD(128, 2, 32)
FLASH_GRAD(160, 2, 32)
