// As flash.cu and flash_grad.cu, of f32 operands: products in TF32, or (SPLIT) of numbers split into two that TF32 holds, which together
// have 22 of f32's 24 bits; the smallest of the four parts of a product is left out, and it is off by no more than sums in f32 are. Heads have up to D features, a multiple of 8.
#include "mma.cuh"

// N numbers as TF32 has them, with what they lack.
template <bool SPLIT, int N>
__device__ __forceinline__ void parts_of(float x[N], float low[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (SPLIT) {
            split(x[i], low[i]);
        } else {
            x[i] = to_tf32(x[i]);
        }
    }
}

// M tiles c (16 x 8) += a (16 x 8) b (8 x 8); the small parts first.
template <bool SPLIT, int M>
__device__ __forceinline__ void add_parts(float c[M][4], const float a[M][4], const float a_low[M][4], const float b[2],
                                          const float b_low[2]) {
    if (SPLIT) {
#pragma unroll
        for (int m = 0; m < M; m++) multiply_tf32(c[m], a_low[m], b);
#pragma unroll
        for (int m = 0; m < M; m++) multiply_tf32(c[m], a[m], b_low);
    }
#pragma unroll
    for (int m = 0; m < M; m++) multiply_tf32(c[m], a[m], b);
}

// Rows of d features (a multiple of 8), `width` apart, to shared memory in lines of D + 4, so that the lanes of a fragment read
// different banks; what is not there becomes 0. Ends no group of copies.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void stage_f32(float *to, const float *from, int first, int rows, int d, size_t width) {
    for (int i = threadIdx.x; i < ROWS * (D / 4); i += THREADS) {
        int r = i / (D / 4), c = i % (D / 4) * 4;
        bool there = first + r < rows && c < d;
        copy_16(to + r * (D + 4) + c, there ? from + (size_t)(first + r) * width + c : from, there);
    }
}

// The lane's parts of M tiles (16 x D) of rows, from memory; `top`: the first row.
template <int D, int M>
__device__ __forceinline__ void load_f32(float to[M][D / 8][4], const float *from, int top, int rows, int d, size_t width) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int r = top + m * 16 + lane / 4 + e % 2 * 8, c = i * 8 + lane % 4 + e / 2 * 4;
                to[m][i][e] = r < rows && c < d ? from[r * width + c] : 0.0f;
            }
        }
    }
}

// b (8 x 8): transposed from eight rows in shared memory. `at`: that of the lane, rows + lane / 4 * LINE + lane % 4.
template <bool SPLIT>
__device__ __forceinline__ void columns_from(float b[2], float low[2], const float *at) {
    b[0] = at[0];
    b[1] = at[4];
    parts_of<SPLIT, 2>(b, low);
}

// b (8 x 8): eight rows in shared memory, in the order in which `probabilities` takes columns. `at`: that of the lane, rows +
// lane % 4 * 2 * LINE + lane / 4.
template <bool SPLIT, int LINE>
__device__ __forceinline__ void rows_from(float b[2], float low[2], const float *at) {
    b[0] = at[0];
    b[1] = at[LINE];
    parts_of<SPLIT, 2>(b, low);
}

// A sum (16 x 8) as a factor: its columns in the order 0, 2, 4, 6, 1, 3, 5, 7, in which a lane has what it needs.
template <bool SPLIT>
__device__ __forceinline__ void factor_of(float a[4], float low[4], const float sum[4]) {
    a[0] = sum[0];
    a[1] = sum[2];
    a[2] = sum[1];
    a[3] = sum[3];
    parts_of<SPLIT, 4>(a, low);
}

// Rows (16 x D) to memory, times `scale` by row.
template <int D>
__device__ __forceinline__ void store_f32(float *to, const float tile[D / 8][4], const float scale[2], int row, int rows, int d,
                                          size_t width) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + half * 8;
        if (r >= rows) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int c = n * 8 + threadIdx.x % 4 * 2;
            if (c >= d) continue;
            *(float2 *)(to + r * width + c) = make_float2(tile[n][2 * half] * scale[half], tile[n][2 * half + 1] * scale[half]);
        }
    }
}

// The maximum or sum over the four lanes that share a row.
__device__ __forceinline__ float lanes_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float lanes_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// As flash. Each tile of keys is summed by itself: the tensor cores cut sums off instead of rounding them.
template <int D, int M, int WARPS, int KEYS, bool SPLIT>
__device__ void flash_whole(const float *q, const float *k, const float *v, float *out, float *lse, int heads, int s, int t, int d,
                            int causal, float scale) {
    constexpr int LINE = D + 4, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS, N = D / 8, K = KEYS / 8;
    __shared__ __align__(16) float keys[2][KEYS * LINE];
    __shared__ __align__(16) float values[2][KEYS * LINE];
    int lane = threadIdx.x % 32, top = blockIdx.x * ROWS + threadIdx.x / 32 * 16 * M, row = top + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads;
    q += sample * s * width + head * d;
    out += sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    float queries[M][N][4], sum[M][N][4] = {}, largest[M][2], total[M][2];
    load_f32<D, M>(queries, q, top, s, d, width);
#pragma unroll
    for (int m = 0; m < M; m++) {
        largest[m][0] = largest[m][1] = -INFINITY;
        total[m][0] = total[m][1] = 0.0f;
    }
    scale *= LOG2E; // powers of two below
    int end = causal ? min(t, (int)(blockIdx.x + 1) * ROWS) : t;
    stage_f32<D, KEYS, THREADS>(keys[0], k, 0, t, d, width);
    stage_f32<D, KEYS, THREADS>(values[0], v, 0, t, d, width);
    end_copies();
    for (int first = 0, turn = 0; first < end; first += KEYS, turn ^= 1) {
        if (first + KEYS < end) {
            stage_f32<D, KEYS, THREADS>(keys[turn ^ 1], k, first + KEYS, t, d, width);
            stage_f32<D, KEYS, THREADS>(values[turn ^ 1], v, first + KEYS, t, d, width);
        }
        end_copies();
        await_copies<1>();
        __syncthreads();
        float scores[K][M][4] = {};
        const float *key = keys[turn] + lane / 4 * LINE + lane % 4;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float a[M][4], a_low[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int e = 0; e < 4; e++) a[m][e] = queries[m][i][e];
                parts_of<SPLIT, 4>(a[m], a_low[m]);
            }
#pragma unroll
            for (int n = 0; n < K; n++) {
                float b[2], b_low[2];
                columns_from<SPLIT>(b, b_low, key + n * 8 * LINE + i * 8);
                add_parts<SPLIT, M>(scores[n], a, a_low, b, b_low);
            }
        }
        bool whole = first + KEYS <= t && !(causal && first + KEYS > top);
        float keep[M][2];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = -INFINITY;
#pragma unroll
                for (int n = 0; n < K; n++) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        int at = first + n * 8 + column + e % 2;
                        bool seen = whole || (at < t && !(causal && at > row + m * 16 + half * 8));
                        if (!seen) scores[n][m][e] = -INFINITY;
                        most = fmaxf(most, scores[n][m][e]);
                    }
                }
                most = fmaxf(largest[m][half], lanes_max(most));
                float safe = most == -INFINITY ? 0.0f : most;
                keep[m][half] = power_of_two((largest[m][half] - safe) * scale);
                largest[m][half] = most;
                float here = 0.0f;
#pragma unroll
                for (int n = 0; n < K; n++) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        float p = power_of_two((scores[n][m][e] - safe) * scale);
                        scores[n][m][e] = p;
                        here += p;
                    }
                }
                total[m][half] = total[m][half] * keep[m][half] + here;
            }
        }
        float p[K][M][4], p_low[K][M][4];
#pragma unroll
        for (int i = 0; i < K; i++) {
#pragma unroll
            for (int m = 0; m < M; m++) factor_of<SPLIT>(p[i][m], p_low[i][m], scores[i][m]);
        }
        const float *value = values[turn] + lane % 4 * 2 * LINE + lane / 4;
#pragma unroll
        for (int n = 0; n < N; n++) {
            float here[M][4] = {};
#pragma unroll
            for (int i = 0; i < K; i++) {
                float b[2], b_low[2];
                rows_from<SPLIT, LINE>(b, b_low, value + i * 8 * LINE + n * 8);
                add_parts<SPLIT, M>(here, p[i], p_low[i], b, b_low);
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[m][n][e] = sum[m][n][e] * keep[m][e / 2] + here[m][e];
            }
        }
        __syncthreads(); // the next copies go where these keys are
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float all[2] = {lanes_sum(total[m][0]), lanes_sum(total[m][1])};
        float part[2] = {1.0f / all[0], 1.0f / all[1]};
        store_f32<D>(out, sum[m], part, row + m * 16, s, d, width);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + m * 16 + half * 8;
            if (r < s && lane % 4 == 0) {
                lse[(size_t)blockIdx.y * s + r] = largest[m][half] * scale * 0.69314718055994531f + logf(all[half]);
            }
        }
    }
}

// As flash_keys.
template <int D, int M, int WARPS, int QUERIES, bool SPLIT>
__device__ void flash_whole_keys(const float *q, const float *k, const float *v, const float *dout, const float *lse,
                                 const float *delta, float *dk, float *dv, int chunk, int heads, int s, int t, int d, int causal,
                                 float scale) {
    constexpr int LINE = D + 4, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS, N = D / 8;
    __shared__ __align__(16) float queries[2][QUERIES * LINE], slopes[2][QUERIES * LINE], keys[ROWS * LINE], values[ROWS * LINE];
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
        stage_f32<D, QUERIES, THREADS>(queries[turn], q, first, s, d, width);
        stage_f32<D, QUERIES, THREADS>(slopes[turn], dout, first, s, d, width);
        for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
            bool there = first + i < s;
            row_lse[turn][i] = there ? lse[first + i] * LOG2E : INFINITY;
            row_delta[turn][i] = there ? delta[(size_t)(first + i) * heads] : 0.0f;
        }
    };
    stage_f32<D, ROWS, THREADS>(keys, k, first_key, t, d, width);
    stage_f32<D, ROWS, THREADS>(values, v, first_key, t, d, width);
    int start = blockIdx.z * chunk, end = min(s, start + chunk);
    if (causal) start = max(start, first_key / QUERIES * QUERIES);
    stage_queries(start, 0);
    end_copies();
    const float *my_key = keys + (warp * 16 * M + lane / 4) * LINE + lane % 4;
    const float *my_value = values + (warp * 16 * M + lane / 4) * LINE + lane % 4;
    float to_k[M][N][4] = {}, to_v[M][N][4] = {};
    float power = scale * LOG2E;
    for (int first = start, turn = 0; first < end; first += QUERIES, turn ^= 1) {
        if (first + QUERIES < end) stage_queries(first + QUERIES, turn ^ 1);
        end_copies();
        await_copies<1>();
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < QUERIES; part += 16) {
            float p[2][M][4] = {}, ds[2][M][4] = {};
            const float *query = queries[turn] + (part + lane / 4) * LINE + lane % 4;
            const float *slope = slopes[turn] + (part + lane / 4) * LINE + lane % 4;
#pragma unroll
            for (int i = 0; i < N; i++) {
                float a[2][M][4], a_low[2][M][4];
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int at = (m * 16 + e % 2 * 8) * LINE + i * 8 + e / 2 * 4;
                        a[0][m][e] = my_key[at];
                        a[1][m][e] = my_value[at];
                    }
                    parts_of<SPLIT, 4>(a[0][m], a_low[0][m]);
                    parts_of<SPLIT, 4>(a[1][m], a_low[1][m]);
                }
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    float b[2], b_low[2];
                    columns_from<SPLIT>(b, b_low, query + n * 8 * LINE + i * 8);
                    add_parts<SPLIT, M>(p[n], a[0], a_low[0], b, b_low);
                    columns_from<SPLIT>(b, b_low, slope + n * 8 * LINE + i * 8);
                    add_parts<SPLIT, M>(ds[n], a[1], a_low[1], b, b_low);
                }
            }
            float f[2][M][4], f_low[2][M][4], g[2][M][4], g_low[2][M][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int at = part + n * 8 + column + e % 2;
                        bool seen = !(causal && mine + m * 16 + e / 2 * 8 > first + at);
                        p[n][m][e] = seen ? power_of_two(p[n][m][e] * power - row_lse[turn][at]) : 0.0f;
                        ds[n][m][e] = p[n][m][e] * (ds[n][m][e] - row_delta[turn][at]);
                    }
                    factor_of<SPLIT>(f[n][m], f_low[n][m], p[n][m]);
                    factor_of<SPLIT>(g[n][m], g_low[n][m], ds[n][m]);
                }
            }
            query = queries[turn] + (part + lane % 4 * 2) * LINE + lane / 4;
            slope = slopes[turn] + (part + lane % 4 * 2) * LINE + lane / 4;
#pragma unroll
            for (int n = 0; n < N; n++) {
                float here_v[M][4] = {}, here_k[M][4] = {};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float b[2], b_low[2];
                    rows_from<SPLIT, LINE>(b, b_low, slope + i * 8 * LINE + n * 8);
                    add_parts<SPLIT, M>(here_v, f[i], f_low[i], b, b_low);
                    rows_from<SPLIT, LINE>(b, b_low, query + i * 8 * LINE + n * 8);
                    add_parts<SPLIT, M>(here_k, g[i], g_low[i], b, b_low);
                }
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        to_v[m][n][e] += here_v[m][e];
                        to_k[m][n][e] += here_k[m][e];
                    }
                }
            }
        }
        __syncthreads(); // the next copies go where these queries are
    }
    size_t base = ((size_t)blockIdx.z * (gridDim.y / heads) + sample) * t * width + head * d;
    dk += base;
    dv += base;
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
#pragma unroll
    for (int m = 0; m < M; m++) {
        store_f32<D>(dk, to_k[m], scales, mine + m * 16, t, d, width);
        store_f32<D>(dv, to_v[m], ones, mine + m * 16, t, d, width);
    }
}

// As flash_queries.
template <int D, int M, int WARPS, int KEYS, bool SPLIT>
__device__ void flash_whole_queries(const float *q, const float *k, const float *v, const float *dout, const float *lse,
                                    const float *delta, float *dq, int heads, int s, int t, int d, int causal, float scale) {
    constexpr int LINE = D + 4, THREADS = 32 * WARPS, ROWS = 16 * M * WARPS, N = D / 8;
    __shared__ __align__(16) float keys[2][KEYS * LINE], values[2][KEYS * LINE];
    int lane = threadIdx.x % 32, top = blockIdx.x * ROWS + threadIdx.x / 32 * 16 * M, row = top + lane / 4, column = lane % 4 * 2;
    size_t width = (size_t)heads * d, head = blockIdx.y % heads, sample = blockIdx.y / heads, base = sample * s * width + head * d;
    k += sample * t * width + head * d;
    v += sample * t * width + head * d;
    float queries[M][N][4], slopes[M][N][4], row_lse[M][2], row_delta[M][2];
    load_f32<D, M>(queries, q + base, top, s, d, width);
    load_f32<D, M>(slopes, dout + base, top, s, d, width);
#pragma unroll
    for (int m = 0; m < M; m++) {
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
    stage_f32<D, KEYS, THREADS>(keys[0], k, 0, t, d, width);
    stage_f32<D, KEYS, THREADS>(values[0], v, 0, t, d, width);
    end_copies();
    for (int first = 0, turn = 0; first < end; first += KEYS, turn ^= 1) {
        if (first + KEYS < end) {
            stage_f32<D, KEYS, THREADS>(keys[turn ^ 1], k, first + KEYS, t, d, width);
            stage_f32<D, KEYS, THREADS>(values[turn ^ 1], v, first + KEYS, t, d, width);
        }
        end_copies();
        await_copies<1>();
        __syncthreads();
        bool whole = first + KEYS <= t && !(causal && first + KEYS > top);
#pragma unroll 1
        for (int part = 0; part < KEYS; part += 16) {
            float p[2][M][4] = {}, ds[2][M][4] = {};
            const float *key = keys[turn] + (part + lane / 4) * LINE + lane % 4;
            const float *value = values[turn] + (part + lane / 4) * LINE + lane % 4;
#pragma unroll
            for (int i = 0; i < N; i++) {
                float a[2][M][4], a_low[2][M][4];
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        a[0][m][e] = queries[m][i][e];
                        a[1][m][e] = slopes[m][i][e];
                    }
                    parts_of<SPLIT, 4>(a[0][m], a_low[0][m]);
                    parts_of<SPLIT, 4>(a[1][m], a_low[1][m]);
                }
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    float b[2], b_low[2];
                    columns_from<SPLIT>(b, b_low, key + n * 8 * LINE + i * 8);
                    add_parts<SPLIT, M>(p[n], a[0], a_low[0], b, b_low);
                    columns_from<SPLIT>(b, b_low, value + n * 8 * LINE + i * 8);
                    add_parts<SPLIT, M>(ds[n], a[1], a_low[1], b, b_low);
                }
            }
            float g[2][M][4], g_low[2][M][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int at = first + part + n * 8 + column + e % 2;
                        bool seen = whole || (at < t && !(causal && at > row + m * 16 + e / 2 * 8));
                        float probability = seen ? power_of_two(p[n][m][e] * power - row_lse[m][e / 2]) : 0.0f;
                        ds[n][m][e] = probability * (ds[n][m][e] - row_delta[m][e / 2]);
                    }
                    factor_of<SPLIT>(g[n][m], g_low[n][m], ds[n][m]);
                }
            }
            key = keys[turn] + (part + lane % 4 * 2) * LINE + lane / 4;
#pragma unroll
            for (int n = 0; n < N; n++) {
                float here[M][4] = {};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float b[2], b_low[2];
                    rows_from<SPLIT, LINE>(b, b_low, key + i * 8 * LINE + n * 8);
                    add_parts<SPLIT, M>(here, g[i], g_low[i], b, b_low);
                }
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[m][n][e] += here[m][e];
                }
            }
        }
        __syncthreads(); // the next copies go where these keys are
    }
    const float scales[2] = {scale, scale};
#pragma unroll
    for (int m = 0; m < M; m++) store_f32<D>(dq + base, sum[m], scales, row + m * 16, s, d, width);
}

#define FLASH_WHOLE(KIND, SPLIT, D, M, KEYS, GRAD_WARPS, QUERIES, QM)                                                                   \
    extern "C" __global__ void __launch_bounds__(128)                                                                               \
        flash_##KIND##_##D(const float *q, const float *k, const float *v, float *out, float *lse, int heads, int s, int t, int d,  \
                           int causal, float scale) {                                                                               \
        flash_whole<D, M, 4, KEYS, SPLIT>(q, k, v, out, lse, heads, s, t, d, causal, scale);                                        \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * GRAD_WARPS)                                                                   \
        flash_##KIND##_keys_##D(const float *q, const float *k, const float *v, const float *dout, const float *lse,                \
                                const float *delta, float *dk, float *dv, int chunk, int heads, int s, int t, int d, int causal,    \
                                float scale) {                                                                                      \
        flash_whole_keys<D, M, GRAD_WARPS, QUERIES, SPLIT>(q, k, v, dout, lse, delta, dk, dv, chunk, heads, s, t, d, causal,        \
                                                           scale);                                                                  \
    }                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                               \
        flash_##KIND##_queries_##D(const float *q, const float *k, const float *v, const float *dout, const float *lse,             \
                                   const float *delta, float *dq, int heads, int s, int t, int d, int causal, float scale) {        \
        flash_whole_queries<D, QM, 4, KEYS, SPLIT>(q, k, v, dout, lse, delta, dq, heads, s, t, d, causal, scale);                    \
    }

#ifdef TF32
FLASH_WHOLE(tf32, false, 40, 2, 32, 2, 32, 1)
FLASH_WHOLE(tf32, false, 64, 1, 32, 2, 16, 1)
FLASH_WHOLE(tf32, false, 80, 1, 32, 2, 16, 1)
#else
FLASH_WHOLE(f32, true, 40, 2, 32, 2, 32, 1)
FLASH_WHOLE(f32, true, 64, 1, 32, 2, 16, 1)
FLASH_WHOLE(f32, true, 80, 1, 32, 2, 16, 1)
#endif
