// The backward pass of flash.cu: probabilities are computed again from the log-sum-exp, P = exp(scale q k^T - lse). With
// delta = rowsum(out dout) and dS = P (dout v^T - delta): dv = P^T dout, dk = scale dS^T q, dq = scale dS k. One kernel goes over the
// queries for each block of keys, the other over the keys for each block of queries: nothing is added up by atomics.
#include "flash.cuh"

// M tiles (16 x D) of rows in shared memory.
template <int D, int M>
__device__ __forceinline__ void tiles_of(unsigned to[M][D / 16][4], const bf16_bits *rows) {
    int lane = threadIdx.x % 32;
    const bf16_bits *at = rows + lane % 16 * (D + 8) + lane / 16 * 8;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < D / 16; i++) blocks_of(to[m][i], at + m * 16 * (D + 8) + i * 16);
    }
}

// dk and dv (batch, t, heads d) from q, dout (batch, s, heads d), k, v, lse (batch, heads, s), delta (batch, s, heads). D and N as
// flash. A warp has M tiles of 16 keys and takes QUERIES queries at a time, while the next come. HELD: its keys and values stay in
// registers. Where keys are few, several blocks have the same, each for `chunk` queries (a multiple of QUERIES): dk and dv are then
// (gridDim.z, batch, t, heads d), and to be added up. grid (keys / (16 M WARPS), batch heads, s / chunk).
template <int D, int N, int M, int WARPS, int QUERIES, bool HELD>
__device__ void flash_keys(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, const bf16_bits *dout, const float *lse,
                           const float *delta, void *dk, void *dv, int whole, int chunk, int heads, int s, int t, int d, int causal,
                           float scale) {
    constexpr int LINE = D + 8, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS;
    __shared__ __align__(16) bf16_bits queries[2][QUERIES * LINE], slopes[2][QUERIES * LINE], keys[ROWS * LINE], values[ROWS * LINE];
    __shared__ float row_lse[2][QUERIES], row_delta[2][QUERIES];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_key = blockIdx.x * ROWS, column = lane % 4 * 2;
    int mine = first_key + warp * 16 * M + lane / 4;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    q += sample * s * width + head * d;
    dout += sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    lse += (size_t)blockIdx.y * s;
    delta += sample * s * heads + head;
    auto stage_queries = [&](int first, int turn) {
        stage<D, QUERIES, THREADS>(queries[turn], q, first, s, d, width);
        stage<D, QUERIES, THREADS>(slopes[turn], dout, first, s, d, width);
        for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
            bool there = first + i < s;
            row_lse[turn][i] = there ? lse[first + i] * LOG2E : INFINITY;
            row_delta[turn][i] = there ? delta[(size_t)(first + i) * heads] : 0.0f;
        }
    };
    stage<D, ROWS, THREADS>(keys, k, first_key, t, d, width);
    stage<D, ROWS, THREADS>(values, v, first_key, t, d, width);
    int start = blockIdx.z * chunk, end = min(s, start + chunk);
    if (causal) start = max(start, first_key / QUERIES * QUERIES);
    stage_queries(start, 0);
    end_copies();
    await_copies<0>();
    __syncthreads();
    unsigned key[M][D / 16][4], value[M][D / 16][4];
    const bf16_bits *my_keys = keys + warp * 16 * M * LINE, *my_values = values + warp * 16 * M * LINE;
    if (HELD) {
        tiles_of<D, M>(key, my_keys);
        tiles_of<D, M>(value, my_values);
    }
    float to_k[M][N][4] = {}, to_v[M][N][4] = {};
    float power = scale * LOG2E;
    for (int first = start, turn = 0; first < end; first += QUERIES, turn ^= 1) {
        if (first + QUERIES < end) stage_queries(first + QUERIES, turn ^ 1);
        end_copies();
        await_copies<1>();
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < QUERIES; part += 16) {
            float p[M][2][4], ds[M][2][4];
            if (!HELD) tiles_of<D, M>(key, my_keys);
            product_with_rows<D, M>(p, key, queries[turn] + part * LINE);
            if (!HELD) tiles_of<D, M>(value, my_values);
            product_with_rows<D, M>(ds, value, slopes[turn] + part * LINE);
            unsigned a[M][4], b[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    int query = part + e / 4 * 8 + column + e % 2;
                    bool seen = !(causal && mine + m * 16 + e / 2 % 2 * 8 > first + query);
                    float *at = &p[m][e / 4][e % 4], *slope = &ds[m][e / 4][e % 4];
                    *at = seen ? power_of_two(*at * power - row_lse[turn][query]) : 0.0f;
                    *slope = *at * (*slope - row_delta[turn][query]);
                }
                pairs_of(a[m], p[m][0], p[m][1]);
                pairs_of(b[m], ds[m][0], ds[m][1]);
            }
            add_product<N, M, LINE>(to_v, a, slopes[turn] + part * LINE);
            add_product<N, M, LINE>(to_k, b, queries[turn] + part * LINE);
        }
        __syncthreads(); // the next copies go where these queries are
    }
    size_t base = ((size_t)blockIdx.z * (gridDim.y / heads) + sample) * t * width + head * d;
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
#pragma unroll
    for (int m = 0; m < M; m++) {
        store_rows<N>(dk, whole, base, to_k[m], scales, mine + m * 16, column, t, d, width);
        store_rows<N>(dv, whole, base, to_v[m], ones, mine + m * 16, column, t, d, width);
    }
}

// dq (batch, s, heads d). A warp has M tiles of 16 queries and takes KEYS keys at a time, while the next come. grid
// (queries / (16 M WARPS), batch heads).
template <int D, int N, int M, int WARPS, int KEYS>
__device__ void flash_queries(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, const bf16_bits *dout, const float *lse,
                              const float *delta, void *dq, int whole, int heads, int s, int t, int d, int causal, float scale) {
    constexpr int LINE = D + 8, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS;
    __shared__ __align__(16) bf16_bits keys[2][KEYS * LINE], values[2][KEYS * LINE];
    int lane = threadIdx.x % 32, top = blockIdx.x * ROWS + threadIdx.x / 32 * 16 * M, row = top + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads, base = sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    unsigned queries[M][D / 16][4], slopes[M][D / 16][4];
    float row_lse[M][2], row_delta[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        load_fragments<D>(queries[m], q + base, row + m * 16, column, s, d, width);
        load_fragments<D>(slopes[m], dout + base, row + m * 16, column, s, d, width);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + m * 16 + half * 8;
            row_lse[m][half] = r < s ? lse[(size_t)blockIdx.y * s + r] * LOG2E : INFINITY;
            row_delta[m][half] = r < s ? delta[(sample * s + r) * heads + head] : 0.0f;
        }
    }
    float sum[M][N][4] = {};
    float power = scale * LOG2E;
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
        bool whole = first + KEYS <= t && !(causal && first + KEYS > top);
#pragma unroll 1
        for (int part = 0; part < KEYS; part += 16) {
            float p[M][2][4], ds[M][2][4];
            product_with_rows<D, M>(p, queries, keys[turn] + part * LINE);
            product_with_rows<D, M>(ds, slopes, values[turn] + part * LINE);
            unsigned a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    int half = e / 2 % 2, key = first + part + e / 4 * 8 + column + e % 2;
                    bool seen = whole || (key < t && !(causal && key > row + m * 16 + half * 8));
                    float *at = &p[m][e / 4][e % 4], *slope = &ds[m][e / 4][e % 4];
                    float probability = seen ? power_of_two(*at * power - row_lse[m][half]) : 0.0f;
                    *slope = probability * (*slope - row_delta[m][half]);
                }
                pairs_of(a[m], ds[m][0], ds[m][1]);
            }
            add_product<N, M, LINE>(sum, a, keys[turn] + part * LINE);
        }
        __syncthreads(); // the next copies go where these keys are
    }
    const float scales[2] = {scale, scale};
#pragma unroll
    for (int m = 0; m < M; m++) store_rows<N>(dq, whole, base, sum[m], scales, row + m * 16, column, s, d, width);
}

#define FLASH_GRAD(NAME, D, M, WARPS, TILE, HELD)                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_keys_##NAME(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, const bf16_bits *dout, const float *lse,      \
                          const float *delta, void *dk, void *dv, int whole, int chunk, int heads, int s, int t, int d, int causal, \
                          float scale) {                                                                                            \
        flash_keys<D, (NAME + 7) / 8, M, WARPS, TILE, HELD>(q, k, v, dout, lse, delta, dk, dv, whole, chunk, heads, s, t, d,        \
                                                            causal, scale);                                                         \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                        \
        flash_queries_##NAME(const bf16_bits *q, const bf16_bits *k, const bf16_bits *v, const bf16_bits *dout, const float *lse,   \
                             const float *delta, void *dq, int whole, int heads, int s, int t, int d, int causal, float scale) {    \
        flash_queries<D, (NAME + 7) / 8, M, WARPS, TILE>(q, k, v, dout, lse, delta, dq, whole, heads, s, t, d, causal, scale);             \
    }

FLASH_GRAD(16, 16, 2, 4, 32, true)
FLASH_GRAD(32, 32, 2, 4, 32, true)
FLASH_GRAD(40, 48, 2, 4, 32, true)
FLASH_GRAD(64, 64, 2, 2, 32, false)
FLASH_GRAD(80, 80, 1, 4, 32, false)
FLASH_GRAD(128, 128, 1, 2, 16, false)
FLASH_GRAD(160, 160, 1, 2, 16, false)
