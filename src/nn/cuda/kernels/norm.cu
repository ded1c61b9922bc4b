// Group and layer normalisation, forward and backward.
#include "common.cuh"

__device__ __forceinline__ float silu_slope(float y) {
    float s = sigmoid(y);
    return s + y * s * (1.0f - s);
}

// Where a block of a group works: its `chunk` of the group's `size` elements, from a multiple of 8 on.
struct Chunk {
    unsigned begin, end;
};

__device__ __forceinline__ Chunk chunk_of(unsigned size) {
    unsigned length = (size + gridDim.y - 1) / gridDim.y;
    length = (length + 7) / 8 * 8;
    unsigned begin = blockIdx.y * length;
    unsigned end = begin + length < size ? begin + length : size;
    return {begin, end < begin ? begin : end};
}

// Sums of x - x_0 and of its square over each chunk of each group (x_0: the group's first element, so that a large mean costs no
// precision). grid (batch groups, chunks); parts (batch groups, chunks, 2), then x_0 (batch groups).
template <typename T>
__device__ void group_sums(const T *x, float *parts, unsigned size) {
    constexpr int N = WIDE<T>;
    const T *group = x + (size_t)blockIdx.x * size;
    float origin = get(group), sum = 0.0f, squares = 0.0f;
    Chunk chunk = chunk_of(size);
    if (size % N == 0 && aligned(x)) {
        for (unsigned i = chunk.begin + threadIdx.x * N; i < chunk.end; i += blockDim.x * N) {
            float values[N];
            get_wide(values, group + i);
#pragma unroll
            for (int e = 0; e < N; e++) {
                float d = values[e] - origin;
                sum += d;
                squares += d * d;
            }
        }
    } else {
        for (unsigned i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
            float d = get(group + i) - origin;
            sum += d;
            squares += d * d;
        }
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        float *to = parts + 2 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
        to[0] = sum;
        to[1] = squares;
        if (blockIdx.y == 0) parts[2 * (size_t)gridDim.x * gridDim.y + blockIdx.x] = origin;
    }
}

// Adds the chunks' two sums, in order.
__device__ __forceinline__ void sums_of(const float *parts, double &first, double &second) {
    first = second = 0.0;
    const float *of = parts + 2 * (size_t)blockIdx.x * gridDim.y;
    for (unsigned i = 0; i < gridDim.y; i++) {
        first += of[2 * i];
        second += of[2 * i + 1];
    }
}

// y = w h + b with h = (x - mean) rstd, then SiLU where asked; the first chunk's block writes stats (batch groups, 2). y may be x.
template <typename T>
__device__ void group_norm(const T *x, const float *parts, const float *w, const float *b, T *y, float *stats, unsigned size,
                           unsigned pixels, int groups, float eps, int silu) {
    constexpr int N = WIDE<T>;
    size_t base = (size_t)blockIdx.x * size;
    const T *group = x + base;
    double sum, squares;
    sums_of(parts, sum, squares);
    double shift = sum / size, variance = squares / size - shift * shift;
    float mean = (float)(parts[2 * (size_t)gridDim.x * gridDim.y + blockIdx.x] + shift);
    float rstd = (float)(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps));
    if (!(variance == variance)) rstd = (float)variance; // NaN stays NaN
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = rstd;
    }
    unsigned channel = blockIdx.x % groups * (size / pixels);
    Chunk chunk = chunk_of(size);
    if (pixels % N == 0 && aligned(x, y)) {
        for (unsigned i = chunk.begin + threadIdx.x * N; i < chunk.end; i += blockDim.x * N) {
            unsigned c = channel + i / pixels;
            float values[N], slope = w[c], shift = b[c];
            get_wide(values, group + i);
#pragma unroll
            for (int e = 0; e < N; e++) {
                float v = (values[e] - mean) * rstd * slope + shift;
                values[e] = silu ? v * sigmoid(v) : v;
            }
            put_wide(y + base + i, values);
        }
        return;
    }
    for (unsigned i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        unsigned c = channel + i / pixels;
        float v = (get(group + i) - mean) * rstd * w[c] + b[c];
        put(y + base + i, silu ? v * sigmoid(v) : v);
    }
}

// g = w dy' and h of an element; dy' = dy silu'(y) where SiLU follows.
__device__ __forceinline__ void slopes(float x, float dy, float w, float b, float mean, float rstd, int silu, float &h, float &dn) {
    h = (x - mean) * rstd;
    dn = silu ? dy * silu_slope(w * h + b) : dy;
}

// Sums of g and of g h over each chunk; as group_sums.
template <typename T>
__device__ void group_grad_sums(const T *x, const T *dy, const float *w, const float *b, const float *stats, float *parts,
                                unsigned size, unsigned pixels, int groups, int silu) {
    constexpr int N = WIDE<T>;
    float mean = stats[2 * blockIdx.x], rstd = stats[2 * blockIdx.x + 1], sum = 0.0f, along = 0.0f;
    unsigned channel = blockIdx.x % groups * (size / pixels);
    size_t base = (size_t)blockIdx.x * size;
    Chunk chunk = chunk_of(size);
    if (pixels % N == 0 && aligned(x, dy)) {
        for (unsigned i = chunk.begin + threadIdx.x * N; i < chunk.end; i += blockDim.x * N) {
            unsigned c = channel + i / pixels;
            float values[N], slope[N], weight = w[c], bias = b[c];
            get_wide(values, x + base + i);
            get_wide(slope, dy + base + i);
#pragma unroll
            for (int e = 0; e < N; e++) {
                float h, dn;
                slopes(values[e], slope[e], weight, bias, mean, rstd, silu, h, dn);
                float g = weight * dn;
                sum += g;
                along += g * h;
            }
        }
    } else {
        for (unsigned i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
            unsigned c = channel + i / pixels;
            float h, dn;
            slopes(get(x + base + i), get(dy + base + i), w[c], b[c], mean, rstd, silu, h, dn);
            float g = w[c] * dn;
            sum += g;
            along += g * h;
        }
    }
    sum = block_sum(sum);
    along = block_sum(along);
    if (threadIdx.x == 0) {
        float *to = parts + 2 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
        to[0] = sum;
        to[1] = along;
    }
}

// dx = rstd (g - mean(g) - h mean(g h)).
template <typename T>
__device__ void group_norm_grad(const T *x, const T *dy, const float *w, const float *b, const float *stats, const float *parts, T *dx,
                                unsigned size, unsigned pixels, int groups, int silu) {
    constexpr int N = WIDE<T>;
    double first, second;
    sums_of(parts, first, second);
    float mean_g = (float)(first / size), mean_gh = (float)(second / size);
    float mean = stats[2 * blockIdx.x], rstd = stats[2 * blockIdx.x + 1];
    unsigned channel = blockIdx.x % groups * (size / pixels);
    size_t base = (size_t)blockIdx.x * size;
    Chunk chunk = chunk_of(size);
    if (pixels % N == 0 && aligned(x, dy, dx)) {
        for (unsigned i = chunk.begin + threadIdx.x * N; i < chunk.end; i += blockDim.x * N) {
            unsigned c = channel + i / pixels;
            float values[N], slope[N], weight = w[c], bias = b[c];
            get_wide(values, x + base + i);
            get_wide(slope, dy + base + i);
#pragma unroll
            for (int e = 0; e < N; e++) {
                float h, dn;
                slopes(values[e], slope[e], weight, bias, mean, rstd, silu, h, dn);
                values[e] = rstd * (weight * dn - mean_g - h * mean_gh);
            }
            put_wide(dx + base + i, values);
        }
        return;
    }
    for (unsigned i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        unsigned c = channel + i / pixels;
        float h, dn;
        slopes(get(x + base + i), get(dy + base + i), w[c], b[c], mean, rstd, silu, h, dn);
        put(dx + base + i, rstd * (w[c] * dn - mean_g - h * mean_gh));
    }
}

// dw and db of a channel: a block each. x (batch, channels, pixels).
template <typename T>
__device__ void group_weight_grad(const T *x, const T *dy, const float *w, const float *b, const float *stats, float *dw, float *db,
                                  size_t batch, size_t pixels, int channels, int groups, int silu) {
    int c = blockIdx.x, group = c / (channels / groups);
    float to_w = 0.0f, to_b = 0.0f;
    for (size_t sample = 0; sample < batch; sample++) {
        const float *stat = stats + 2 * (sample * groups + group);
        size_t base = (sample * channels + c) * pixels;
        for (size_t i = threadIdx.x; i < pixels; i += blockDim.x) {
            float h, dn;
            slopes(get(x + base + i), get(dy + base + i), w[c], b[c], stat[0], stat[1], silu, h, dn);
            to_w += dn * h;
            to_b += dn;
        }
    }
    to_w = block_sum(to_w);
    to_b = block_sum(to_b);
    if (threadIdx.x == 0) {
        dw[c] = to_w;
        db[c] = to_b;
    }
}

// Calls f(element, value) for each of a row's elements that are this lane's.
template <typename T, typename F>
__device__ __forceinline__ void each_of_row(const T *row, unsigned n, F f) {
    constexpr int N = WIDE<T>;
    if (n % N == 0 && aligned(row)) {
        for (unsigned i = threadIdx.x * N; i < n; i += 32 * N) {
            float values[N];
            get_wide(values, row + i);
#pragma unroll
            for (int e = 0; e < N; e++) f(i + e, values[e]);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < n; i += 32) f(i, get(row + i));
}

// The same for two rows, writing what f(element, value, value) gives.
template <typename T, typename F>
__device__ __forceinline__ void write_row(const T *a, const T *b, T *y, unsigned n, F f) {
    constexpr int N = WIDE<T>;
    if (n % N == 0 && aligned(a, b, y)) {
        for (unsigned i = threadIdx.x * N; i < n; i += 32 * N) {
            float left[N], right[N];
            get_wide(left, a + i);
            get_wide(right, b + i);
#pragma unroll
            for (int e = 0; e < N; e++) left[e] = f(i + e, left[e], right[e]);
            put_wide(y + i, left);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < n; i += 32) put(y + i, f(i, get(a + i), get(b + i)));
}

// A warp for each row; blocks of 32 x 8 threads. stats (rows, 2).
template <typename T>
__device__ void layer_norm(const T *x, const float *w, const float *b, T *y, float *stats, size_t rows, unsigned n, float eps) {
    size_t r = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    const T *row = x + r * n;
    float sum = 0.0f, squares = 0.0f;
    each_of_row(row, n, [&](unsigned, float x) { sum += x; });
    float mean = warp_sum(sum) / n;
    each_of_row(row, n, [&](unsigned, float x) { squares += (x - mean) * (x - mean); });
    float rstd = 1.0f / sqrtf(warp_sum(squares) / n + eps);
    write_row(row, row, y + r * n, n, [=](unsigned i, float x, float) { return (x - mean) * rstd * w[i] + b[i]; });
    if (threadIdx.x == 0) {
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
}

template <typename T>
__device__ void layer_norm_grad(const T *x, const T *dy, const float *w, const float *stats, T *dx, size_t rows, unsigned n) {
    size_t r = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    float mean = stats[2 * r], rstd = stats[2 * r + 1], sum = 0.0f, along = 0.0f;
    const T *row = x + r * n, *slope = dy + r * n;
    constexpr int N = WIDE<T>;
    auto take = [&](unsigned i, float x, float dy) {
        float g = w[i] * dy;
        sum += g;
        along += g * ((x - mean) * rstd);
    };
    if (n % N == 0 && aligned(row, slope)) {
        for (unsigned i = threadIdx.x * N; i < n; i += 32 * N) {
            float left[N], right[N];
            get_wide(left, row + i);
            get_wide(right, slope + i);
#pragma unroll
            for (int e = 0; e < N; e++) take(i + e, left[e], right[e]);
        }
    } else {
        for (unsigned i = threadIdx.x; i < n; i += 32) take(i, get(row + i), get(slope + i));
    }
    float mean_g = warp_sum(sum) / n, mean_gh = warp_sum(along) / n;
    write_row(row, slope, dx + r * n, n, [=](unsigned i, float x, float dy) {
        return rstd * (w[i] * dy - mean_g - (x - mean) * rstd * mean_gh);
    });
}

// dw and db: a block of 32 x 32 threads for 32 features.
template <typename T>
__device__ void layer_weight_grad(const T *x, const T *dy, const float *stats, float *dw, float *db, size_t rows, size_t n) {
    __shared__ float parts[2][32][33];
    size_t column = (size_t)blockIdx.x * 32 + threadIdx.x;
    float to_w = 0.0f, to_b = 0.0f;
    if (column < n) {
        for (size_t r = threadIdx.y; r < rows; r += 32) {
            float g = get(dy + r * n + column);
            to_w += g * ((get(x + r * n + column) - stats[2 * r]) * stats[2 * r + 1]);
            to_b += g;
        }
    }
    parts[0][threadIdx.y][threadIdx.x] = to_w;
    parts[1][threadIdx.y][threadIdx.x] = to_b;
    __syncthreads();
    to_w = warp_sum(parts[0][threadIdx.x][threadIdx.y]);
    to_b = warp_sum(parts[1][threadIdx.x][threadIdx.y]);
    column = (size_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < n) {
        dw[column] = to_w;
        db[column] = to_b;
    }
}

#define NORMS(SUFFIX, T)                                                                                                            \
    extern "C" __global__ void group_sums_##SUFFIX(const T *x, float *parts, size_t size) { group_sums(x, parts, (unsigned)size); } \
    extern "C" __global__ void group_norm_##SUFFIX(const T *x, const float *parts, const float *w, const float *b, T *y,            \
                                                   float *stats, size_t size, size_t pixels, int groups, float eps, int silu) {     \
        group_norm(x, parts, w, b, y, stats, (unsigned)size, (unsigned)pixels, groups, eps, silu);                                  \
    }                                                                                                                               \
    extern "C" __global__ void group_grad_sums_##SUFFIX(const T *x, const T *dy, const float *w, const float *b,                    \
                                                        const float *stats, float *parts, size_t size, size_t pixels, int groups,   \
                                                        int silu) {                                                                 \
        group_grad_sums(x, dy, w, b, stats, parts, (unsigned)size, (unsigned)pixels, groups, silu);                                 \
    }                                                                                                                               \
    extern "C" __global__ void group_norm_grad_##SUFFIX(const T *x, const T *dy, const float *w, const float *b,                    \
                                                        const float *stats, const float *parts, T *dx, size_t size, size_t pixels,  \
                                                        int groups, int silu) {                                                     \
        group_norm_grad(x, dy, w, b, stats, parts, dx, (unsigned)size, (unsigned)pixels, groups, silu);                             \
    }                                                                                                                               \
    extern "C" __global__ void group_weight_grad_##SUFFIX(const T *x, const T *dy, const float *w, const float *b,                  \
                                                          const float *stats, float *dw, float *db, size_t batch, size_t pixels,    \
                                                          int channels, int groups, int silu) {                                     \
        group_weight_grad(x, dy, w, b, stats, dw, db, batch, pixels, channels, groups, silu);                                       \
    }                                                                                                                               \
    extern "C" __global__ void layer_norm_##SUFFIX(const T *x, const float *w, const float *b, T *y, float *stats, size_t rows,     \
                                                   size_t n, float eps) {                                                           \
        layer_norm(x, w, b, y, stats, rows, (unsigned)n, eps);                                                                      \
    }                                                                                                                               \
    extern "C" __global__ void layer_norm_grad_##SUFFIX(const T *x, const T *dy, const float *w, const float *stats, T *dx,         \
                                                        size_t rows, size_t n) {                                                    \
        layer_norm_grad(x, dy, w, stats, dx, rows, (unsigned)n);                                                                    \
    }                                                                                                                               \
    extern "C" __global__ void layer_weight_grad_##SUFFIX(const T *x, const T *dy, const float *stats, float *dw, float *db,        \
                                                          size_t rows, size_t n) {                                                  \
        layer_weight_grad(x, dy, stats, dw, db, rows, n);                                                                           \
    }

NORMS(f32, float)
NORMS(bf16, Bf16)
