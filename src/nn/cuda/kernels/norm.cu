// Group and layer normalisation, forward and backward.
#include "common.cuh"

__device__ __forceinline__ float silu_slope(float y) {
    float s = sigmoid(y);
    return s + y * s * (1.0f - s);
}

// Where a block of a group works: its `chunk` of the group's `size` elements.
struct Chunk {
    size_t begin, end;
};

__device__ __forceinline__ Chunk chunk_of(size_t size) {
    size_t length = (size + gridDim.y - 1) / gridDim.y;
    size_t begin = blockIdx.y * length;
    size_t end = begin + length < size ? begin + length : size;
    return {begin, end < begin ? begin : end};
}

// Sums of x - x_0 and of its square over each chunk of each group (x_0: the group's first element, so that a large mean costs no
// precision). grid (batch groups, chunks); parts (batch groups, chunks, 2).
extern "C" __global__ void group_sums(const float *x, float *parts, size_t size) {
    const float *group = x + blockIdx.x * size;
    float origin = group[0], sum = 0.0f, squares = 0.0f;
    Chunk chunk = chunk_of(size);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        float d = group[i] - origin;
        sum += d;
        squares += d * d;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        float *to = parts + 2 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
        to[0] = sum;
        to[1] = squares;
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

// y = w h + b with h = (x - mean) rstd, then SiLU where asked; the first chunk's block writes stats (batch groups, 2).
extern "C" __global__ void group_norm(const float *x, const float *parts, const float *w, const float *b, float *y, float *stats,
                                      size_t size, size_t pixels, int groups, float eps, int silu) {
    const float *group = x + blockIdx.x * size;
    double sum, squares;
    sums_of(parts, sum, squares);
    double shift = sum / size, variance = squares / size - shift * shift;
    float mean = (float)(group[0] + shift);
    float rstd = (float)(1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps));
    if (!(variance == variance)) rstd = (float)variance; // NaN stays NaN
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = rstd;
    }
    size_t channel = blockIdx.x % groups * (size / pixels);
    Chunk chunk = chunk_of(size);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        size_t c = channel + i / pixels;
        float v = (group[i] - mean) * rstd * w[c] + b[c];
        y[blockIdx.x * size + i] = silu ? v * sigmoid(v) : v;
    }
}

// g = w dy' and h of an element; dy' = dy silu'(y) where SiLU follows.
__device__ __forceinline__ void slopes(float x, float dy, float w, float b, float mean, float rstd, int silu, float &h, float &dn) {
    h = (x - mean) * rstd;
    dn = silu ? dy * silu_slope(w * h + b) : dy;
}

// Sums of g and of g h over each chunk; as group_sums.
extern "C" __global__ void group_grad_sums(const float *x, const float *dy, const float *w, const float *b, const float *stats,
                                           float *parts, size_t size, size_t pixels, int groups, int silu) {
    float mean = stats[2 * blockIdx.x], rstd = stats[2 * blockIdx.x + 1], sum = 0.0f, along = 0.0f;
    size_t channel = blockIdx.x % groups * (size / pixels), base = blockIdx.x * size;
    Chunk chunk = chunk_of(size);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        size_t c = channel + i / pixels;
        float h, dn;
        slopes(x[base + i], dy[base + i], w[c], b[c], mean, rstd, silu, h, dn);
        float g = w[c] * dn;
        sum += g;
        along += g * h;
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
extern "C" __global__ void group_norm_grad(const float *x, const float *dy, const float *w, const float *b, const float *stats,
                                           const float *parts, float *dx, size_t size, size_t pixels, int groups, int silu) {
    double first, second;
    sums_of(parts, first, second);
    float mean_g = (float)(first / size), mean_gh = (float)(second / size);
    float mean = stats[2 * blockIdx.x], rstd = stats[2 * blockIdx.x + 1];
    size_t channel = blockIdx.x % groups * (size / pixels), base = blockIdx.x * size;
    Chunk chunk = chunk_of(size);
    for (size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        size_t c = channel + i / pixels;
        float h, dn;
        slopes(x[base + i], dy[base + i], w[c], b[c], mean, rstd, silu, h, dn);
        dx[base + i] = rstd * (w[c] * dn - mean_g - h * mean_gh);
    }
}

// dw and db of a channel: a block each. x (batch, channels, pixels).
extern "C" __global__ void group_weight_grad(const float *x, const float *dy, const float *w, const float *b, const float *stats,
                                             float *dw, float *db, size_t batch, size_t pixels, int channels, int groups, int silu) {
    int c = blockIdx.x, group = c / (channels / groups);
    float to_w = 0.0f, to_b = 0.0f;
    for (size_t sample = 0; sample < batch; sample++) {
        const float *stat = stats + 2 * (sample * groups + group);
        size_t base = (sample * channels + c) * pixels;
        for (size_t i = threadIdx.x; i < pixels; i += blockDim.x) {
            float h, dn;
            slopes(x[base + i], dy[base + i], w[c], b[c], stat[0], stat[1], silu, h, dn);
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

// Mean and reciprocal deviation of a row, by one warp.
__device__ __forceinline__ void row_stats(const float *row, size_t n, float eps, float &mean, float &rstd) {
    float sum = 0.0f, squares = 0.0f;
    for (size_t i = threadIdx.x; i < n; i += 32) sum += row[i];
    mean = warp_sum(sum) / n;
    for (size_t i = threadIdx.x; i < n; i += 32) squares += (row[i] - mean) * (row[i] - mean);
    rstd = 1.0f / sqrtf(warp_sum(squares) / n + eps);
}

// A warp for each row; blocks of 32 x 8 threads. stats (rows, 2) where wanted.
extern "C" __global__ void layer_norm(const float *x, const float *w, const float *b, float *y, float *stats, size_t rows, size_t n,
                                      float eps) {
    size_t r = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    const float *row = x + r * n;
    float mean, rstd;
    row_stats(row, n, eps, mean, rstd);
    for (size_t i = threadIdx.x; i < n; i += 32) y[r * n + i] = (row[i] - mean) * rstd * w[i] + b[i];
    if (stats && threadIdx.x == 0) {
        stats[2 * r] = mean;
        stats[2 * r + 1] = rstd;
    }
}

extern "C" __global__ void layer_norm_grad(const float *x, const float *dy, const float *w, const float *stats, float *dx,
                                           size_t rows, size_t n) {
    size_t r = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    float mean = stats[2 * r], rstd = stats[2 * r + 1], sum = 0.0f, along = 0.0f;
    for (size_t i = threadIdx.x; i < n; i += 32) {
        float g = w[i] * dy[r * n + i];
        sum += g;
        along += g * ((x[r * n + i] - mean) * rstd);
    }
    sum = warp_sum(sum) / n;
    along = warp_sum(along) / n;
    for (size_t i = threadIdx.x; i < n; i += 32) {
        float h = (x[r * n + i] - mean) * rstd;
        dx[r * n + i] = rstd * (w[i] * dy[r * n + i] - sum - h * along);
    }
}

// dw and db: a block of 32 x 32 threads for 32 features.
extern "C" __global__ void layer_weight_grad(const float *x, const float *dy, const float *stats, float *dw, float *db, size_t rows,
                                             size_t n) {
    __shared__ float parts[2][32][33];
    size_t column = (size_t)blockIdx.x * 32 + threadIdx.x;
    float to_w = 0.0f, to_b = 0.0f;
    if (column < n) {
        for (size_t r = threadIdx.y; r < rows; r += 32) {
            float g = dy[r * n + column];
            to_w += g * ((x[r * n + column] - stats[2 * r]) * stats[2 * r + 1]);
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
