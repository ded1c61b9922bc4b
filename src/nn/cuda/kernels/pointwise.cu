// Functions of single elements, and moves.
#include "common.cuh"

// 0: SiLU, 1: exact GELU, 2: CLIP's quick GELU.
__device__ __forceinline__ float activation_of(int kind, float x) {
    if (kind == 0) return x * sigmoid(x);
    if (kind == 1) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return x * sigmoid(1.702f * x);
}

__device__ __forceinline__ float slope_of(int kind, float x) {
    if (kind == 1) {
        float density = 0.39894228040143268f * expf(-0.5f * x * x);
        return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * density;
    }
    float scale = kind == 0 ? 1.0f : 1.702f;
    float s = sigmoid(scale * x);
    // s (1 - s) is 0 far from 0, where x may be large but is finite
    return s + scale * x * s * (1.0f - s);
}

// y[i] = f(x[i] of each operand), 16 bytes at a time where all lie so. Operands and result are of one type.
template <typename T, typename F, typename... X>
__device__ __forceinline__ void each_of(F f, T *y, size_t n, const X *...x) {
    constexpr int N = WIDE<T>;
    size_t wide = aligned(y, x...) ? n / N : 0;
    for (size_t i = first(); i < wide; i += step()) {
        float in[sizeof...(X)][N], out[N];
        int k = 0;
        (get_wide(in[k++], x + i * N), ...);
#pragma unroll
        for (int e = 0; e < N; e++) {
            if constexpr (sizeof...(X) == 1) out[e] = f(in[0][e]);
            if constexpr (sizeof...(X) == 2) out[e] = f(in[0][e], in[1][e]);
        }
        put_wide(y + i * N, out);
    }
    for (size_t i = wide * N + first(); i < n; i += step()) put(y + i, f(get(x + i)...));
}

template <typename T>
__device__ void activation(const T *x, T *y, size_t n, int kind) {
    each_of([=](float x) { return activation_of(kind, x); }, y, n, x);
}

template <typename T>
__device__ void activation_grad(const T *x, const T *dy, T *dx, size_t n, int kind) {
    each_of([=](float x, float dy) { return dy * slope_of(kind, x); }, dx, n, x, dy);
}

// x (rows, 2 half) = [a | g]; y = a gelu(g), (rows, half).
template <typename T>
__device__ void geglu(const T *x, T *y, size_t n, unsigned half) {
    constexpr int N = WIDE<T>;
    if (aligned(x, y) && half % N == 0) {
        unsigned packs = half / N;
        for (unsigned i = first(); i < n / N; i += step()) {
            size_t at = ((size_t)(i / packs) * 2 * packs + i % packs) * N;
            float a[N], g[N];
            get_wide(a, x + at);
            get_wide(g, x + at + half);
#pragma unroll
            for (int e = 0; e < N; e++) a[e] *= activation_of(1, g[e]);
            put_wide(y + (size_t)i * N, a);
        }
        return;
    }
    for (size_t i = first(); i < n; i += step()) {
        const T *a = x + i / half * 2 * half + i % half;
        put(y + i, get(a) * activation_of(1, get(a + half)));
    }
}

// The gradient of both halves; dx may be x.
template <typename T>
__device__ void geglu_grad(const T *x, const T *dy, T *dx, size_t n, unsigned half) {
    constexpr int N = WIDE<T>;
    if (aligned(x, dy, dx) && half % N == 0) {
        unsigned packs = half / N;
        for (unsigned i = first(); i < n / N; i += step()) {
            size_t at = ((size_t)(i / packs) * 2 * packs + i % packs) * N;
            float a[N], g[N], d[N];
            get_wide(a, x + at);
            get_wide(g, x + at + half);
            get_wide(d, dy + (size_t)i * N);
#pragma unroll
            for (int e = 0; e < N; e++) {
                float slope = d[e] * a[e] * slope_of(1, g[e]);
                a[e] = d[e] * activation_of(1, g[e]);
                g[e] = slope;
            }
            put_wide(dx + at, a);
            put_wide(dx + at + half, g);
        }
        return;
    }
    for (size_t i = first(); i < n; i += step()) {
        size_t at = i / half * 2 * half + i % half;
        float a = get(x + at), g = get(x + at + half), d = get(dy + i);
        put(dx + at, d * activation_of(1, g));
        put(dx + at + half, d * a * slope_of(1, g));
    }
}

template <typename T>
__device__ void add(const T *a, const T *b, T *y, size_t n) {
    each_of([](float a, float b) { return a + b; }, y, n, a, b);
}

// y[i] = f(x[i], i / pixels), where runs of `pixels` have one number; 16 bytes at a time where runs are so long.
template <typename T, typename F>
__device__ __forceinline__ void each_of_maps(F f, const T *x, T *y, size_t n, unsigned pixels) {
    constexpr int N = WIDE<T>;
    if (aligned(x, y) && pixels % N == 0) {
        unsigned packs = pixels / N;
        for (unsigned i = first(); i < n / N; i += step()) {
            float values[N], e = f(i / packs);
            get_wide(values, x + (size_t)i * N);
#pragma unroll
            for (int k = 0; k < N; k++) values[k] += e;
            put_wide(y + (size_t)i * N, values);
        }
        return;
    }
    for (size_t i = first(); i < n; i += step()) put(y + i, get(x + i) + f((unsigned)(i / pixels)));
}

// x (maps, pixels) + e (maps).
template <typename T>
__device__ void add_per_map(const T *x, const float *e, T *y, size_t n, unsigned pixels) {
    each_of_maps([=](unsigned map) { return e[map]; }, x, y, n, pixels);
}

// y (batch, channels, pixels) += bias (channels), in place.
template <typename T>
__device__ void bias_maps(const float *bias, T *y, size_t n, unsigned pixels, unsigned channels) {
    each_of_maps([=](unsigned map) { return bias[map % channels]; }, y, y, n, pixels);
}

// Every row (n / width rows of width) becomes the bias.
template <typename T>
__device__ void fill_rows(const float *bias, T *y, size_t n, unsigned width) {
    constexpr int N = WIDE<T>;
    if (aligned(bias, y) && width % N == 0) {
        unsigned packs = width / N;
        for (unsigned i = first(); i < n / N; i += step()) {
            float values[N];
#pragma unroll
            for (int k = 0; k < N; k += 4) get_wide(values + k, bias + i % packs * N + k);
            put_wide(y + (size_t)i * N, values);
        }
        return;
    }
    for (size_t i = first(); i < n; i += step()) put(y + i, bias[i % width]);
}

// The sum of `parts` arrays of n numbers, one after the other.
template <typename T>
__device__ void sum_of_parts(const float *x, T *y, size_t n, int parts) {
    for (size_t i = first(); i < n; i += step()) {
        float sum = x[i];
        for (int part = 1; part < parts; part++) sum += x[part * n + i];
        put(y + i, sum);
    }
}

extern "C" __global__ void sum_of_parts_f32(const float *x, float *y, size_t n, int parts) { sum_of_parts(x, y, n, parts); }
extern "C" __global__ void sum_of_parts_bf16(const float *x, Bf16 *y, size_t n, int parts) { sum_of_parts(x, y, n, parts); }

extern "C" __global__ void to_bf16(const float *x, Bf16 *y, size_t n) {
    size_t wide = aligned(x, y) ? n / 8 : 0;
    for (size_t i = first(); i < wide; i += step()) {
        float values[8];
        get_wide(values, x + i * 8);
        get_wide(values + 4, x + i * 8 + 4);
        put_wide(y + i * 8, values);
    }
    for (size_t i = wide * 8 + first(); i < n; i += step()) put(y + i, x[i]);
}

// Sixteen bits to f32.
template <typename T>
__device__ void widen(const T *x, float *y, size_t n) {
    size_t wide = aligned(x, y) ? n / 8 : 0;
    for (size_t i = first(); i < wide; i += step()) {
        float values[8];
        get_wide(values, x + i * 8);
        put_wide(y + i * 8, values);
        put_wide(y + i * 8 + 4, values + 4);
    }
    for (size_t i = wide * 8 + first(); i < n; i += step()) y[i] = get(x + i);
}

extern "C" __global__ void to_f32(const Bf16 *x, float *y, size_t n) { widen(x, y, n); }
extern "C" __global__ void f16_to_f32(const F16 *x, float *y, size_t n) { widen(x, y, n); }

// Of each sample of `from` elements, `count` from `at` on to the same of samples of `to`, from `there` on. n counts what is moved.
template <typename T>
__device__ void move_parts(const T *x, T *y, size_t n, size_t from, size_t at, size_t to, size_t there, size_t count) {
    constexpr int N = WIDE<T>;
    if (aligned(x, y) && (from | at | to | there | count) % N == 0) {
        unsigned packs = count / N;
        for (unsigned i = first(); i < n / N; i += step()) {
            size_t sample = i / packs, k = (size_t)(i % packs) * N;
            *(uint4 *)(y + sample * to + there + k) = *(const uint4 *)(x + sample * from + at + k);
        }
        return;
    }
    for (size_t i = first(); i < n; i += step()) {
        size_t sample = i / count, k = i % count;
        y[sample * to + there + k] = x[sample * from + at + k];
    }
}

// (batch, m, n) -> (batch, n, m); blocks of 32 x 8 threads, grid (n / 32, m / 32, batch).
template <typename T>
__device__ void swap(const T *x, T *y, int m, int n) {
    __shared__ T tile[32][33];
    const T *from = x + (size_t)blockIdx.z * m * n;
    T *to = y + (size_t)blockIdx.z * m * n;
    int column = blockIdx.x * 32 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += 8) {
        int row = blockIdx.y * 32 + r;
        if (row < m && column < n) tile[r][threadIdx.x] = from[(size_t)row * n + column];
    }
    __syncthreads();
    int row = blockIdx.y * 32 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += 8) {
        int column = blockIdx.x * 32 + r;
        if (row < m && column < n) to[(size_t)column * m + row] = tile[threadIdx.x][r];
    }
}

// Two neighbours; `at` begins a pair.
__device__ __forceinline__ void put_two(float *at, float a, float b) { *(float2 *)at = make_float2(a, b); }
__device__ __forceinline__ void put_two(Bf16 *at, float a, float b) { *(unsigned *)at = pair(a, b); }

// (maps, h, w) -> (maps, 2 h, 2 w); n counts x.
template <typename T>
__device__ void upsample(const T *x, T *y, size_t n, unsigned width) {
    for (size_t i = first(); i < n; i += step()) {
        T *to = y + i / width * 4 * width + i % width * 2;
        float value = get(x + i);
        put_two(to, value, value);
        put_two(to + 2 * width, value, value);
    }
}

// n counts the input's gradient.
template <typename T>
__device__ void upsample_grad(const T *dy, T *dx, size_t n, unsigned width) {
    for (size_t i = first(); i < n; i += step()) {
        const T *at = dy + i / width * 4 * width + i % width * 2;
        put(dx + i, (get(at) + get(at + 1)) + (get(at + 2 * width) + get(at + 2 * width + 1)));
    }
}

#define POINTWISE(SUFFIX, T)                                                                                                        \
    extern "C" __global__ void activation_##SUFFIX(const T *x, T *y, size_t n, int kind) { activation(x, y, n, kind); }             \
    extern "C" __global__ void activation_grad_##SUFFIX(const T *x, const T *dy, T *dx, size_t n, int kind) {                       \
        activation_grad(x, dy, dx, n, kind);                                                                                        \
    }                                                                                                                               \
    extern "C" __global__ void geglu_##SUFFIX(const T *x, T *y, size_t n, size_t half) { geglu(x, y, n, (unsigned)half); }          \
    extern "C" __global__ void geglu_grad_##SUFFIX(const T *x, const T *dy, T *dx, size_t n, size_t half) {                         \
        geglu_grad(x, dy, dx, n, (unsigned)half);                                                                                   \
    }                                                                                                                               \
    extern "C" __global__ void add_##SUFFIX(const T *a, const T *b, T *y, size_t n) { add(a, b, y, n); }                            \
    extern "C" __global__ void add_per_map_##SUFFIX(const T *x, const float *e, T *y, size_t n, size_t pixels) {                    \
        add_per_map(x, e, y, n, (unsigned)pixels);                                                                                  \
    }                                                                                                                               \
    extern "C" __global__ void bias_maps_##SUFFIX(const float *bias, T *y, size_t n, size_t pixels, size_t channels) {              \
        bias_maps(bias, y, n, (unsigned)pixels, (unsigned)channels);                                                                \
    }                                                                                                                               \
    extern "C" __global__ void fill_rows_##SUFFIX(const float *bias, T *y, size_t n, size_t width) {                                \
        fill_rows(bias, y, n, (unsigned)width);                                                                                     \
    }                                                                                                                               \
    extern "C" __global__ void move_parts_##SUFFIX(const T *x, T *y, size_t n, size_t from, size_t at, size_t to, size_t there,     \
                                                   size_t count) {                                                                  \
        move_parts(x, y, n, from, at, to, there, count);                                                                            \
    }                                                                                                                               \
    extern "C" __global__ void swap_##SUFFIX(const T *x, T *y, int m, int n) { swap(x, y, m, n); }                                  \
    extern "C" __global__ void upsample_##SUFFIX(const T *x, T *y, size_t n, size_t width) { upsample(x, y, n, (unsigned)width); }  \
    extern "C" __global__ void upsample_grad_##SUFFIX(const T *dy, T *dx, size_t n, size_t width) {                                 \
        upsample_grad(dy, dx, n, (unsigned)width);                                                                                  \
    }

POINTWISE(f32, float)
POINTWISE(bf16, Bf16)

// Sums of the columns of x (rows, width): a block of 32 x 32 threads for 32 columns.
template <typename T>
__device__ void column_sums(const T *x, float *y, size_t rows, size_t width) {
    __shared__ float parts[32][33];
    size_t column = (size_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (size_t row = threadIdx.y; row < rows; row += 32) sum += get(x + row * width + column);
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(parts[threadIdx.x][threadIdx.y]);
    column = (size_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < width) y[column] = sum;
}

// Sums of each run of `pixels` elements: a block for each run.
template <typename T>
__device__ void map_sums(const T *x, float *y, size_t pixels) {
    const T *map = x + (size_t)blockIdx.x * pixels;
    float sum = 0.0f;
    for (size_t i = threadIdx.x; i < pixels; i += blockDim.x) sum += get(map + i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

extern "C" __global__ void column_sums_f32(const float *x, float *y, size_t rows, size_t width) { column_sums(x, y, rows, width); }
extern "C" __global__ void column_sums_bf16(const Bf16 *x, float *y, size_t rows, size_t width) { column_sums(x, y, rows, width); }
extern "C" __global__ void map_sums_f32(const float *x, float *y, size_t pixels) { map_sums(x, y, pixels); }
extern "C" __global__ void map_sums_bf16(const Bf16 *x, float *y, size_t pixels) { map_sums(x, y, pixels); }
