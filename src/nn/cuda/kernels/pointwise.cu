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

extern "C" __global__ void activation(const float *x, float *y, size_t n, int kind) {
    for (size_t i = first(); i < n; i += step()) y[i] = activation_of(kind, x[i]);
}

extern "C" __global__ void activation_grad(const float *x, const float *dy, float *dx, size_t n, int kind) {
    for (size_t i = first(); i < n; i += step()) dx[i] = dy[i] * slope_of(kind, x[i]);
}

// x (rows, 2 half) = [a | g]; y = a gelu(g), (rows, half).
extern "C" __global__ void geglu(const float *x, float *y, size_t n, size_t half) {
    for (size_t i = first(); i < n; i += step()) {
        const float *a = x + i / half * 2 * half + i % half;
        y[i] = *a * activation_of(1, a[half]);
    }
}

extern "C" __global__ void geglu_grad(const float *x, const float *dy, float *dx, size_t n, size_t half) {
    for (size_t i = first(); i < n; i += step()) {
        size_t at = i / half * 2 * half + i % half;
        float a = x[at], g = x[at + half];
        dx[at] = dy[i] * activation_of(1, g);
        dx[at + half] = dy[i] * a * slope_of(1, g);
    }
}

extern "C" __global__ void add(const float *a, const float *b, float *y, size_t n) {
    for (size_t i = first(); i < n; i += step()) y[i] = a[i] + b[i];
}

// x (maps, pixels) + e (maps).
extern "C" __global__ void add_per_map(const float *x, const float *e, float *y, size_t n, size_t pixels) {
    for (size_t i = first(); i < n; i += step()) y[i] = x[i] + e[i / pixels];
}

// Every row (n / width rows of width) becomes the bias.
extern "C" __global__ void fill_rows(const float *bias, float *y, size_t n, size_t width) {
    for (size_t i = first(); i < n; i += step()) y[i] = bias[i % width];
}

// Every pixel of channel c becomes bias c: y (batch, channels, pixels).
extern "C" __global__ void fill_maps(const float *bias, float *y, size_t n, size_t pixels, size_t channels) {
    for (size_t i = first(); i < n; i += step()) y[i] = bias[i / pixels % channels];
}

extern "C" __global__ void to_bf16(const float *x, Bf16 *y, size_t n) {
    for (size_t i = first(); i < n; i += step()) put(y + i, x[i]);
}

// Samples of `wide` elements of a, then `narrow` of b.
extern "C" __global__ void concat(const float *a, const float *b, float *y, size_t n, size_t wide, size_t narrow) {
    for (size_t i = first(); i < n; i += step()) {
        size_t sample = i / (wide + narrow), at = i % (wide + narrow);
        y[i] = at < wide ? a[sample * wide + at] : b[sample * narrow + at - wide];
    }
}

// (batch, m, n) -> (batch, n, m); blocks of 32 x 8 threads, grid (n / 32, m / 32, batch).
extern "C" __global__ void swap(const float *x, float *y, int m, int n) {
    __shared__ float tile[32][33];
    const float *from = x + (size_t)blockIdx.z * m * n;
    float *to = y + (size_t)blockIdx.z * m * n;
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

// (maps, h, w) -> (maps, 2 h, 2 w); n counts the result.
extern "C" __global__ void upsample(const float *x, float *y, size_t n, size_t width) {
    for (size_t i = first(); i < n; i += step()) {
        size_t row = i / (2 * width), column = i % (2 * width);
        y[i] = x[row / 2 * width + column / 2];
    }
}

// n counts the input's gradient.
extern "C" __global__ void upsample_grad(const float *dy, float *dx, size_t n, size_t width) {
    for (size_t i = first(); i < n; i += step()) {
        const float *at = dy + i / width * 4 * width + i % width * 2;
        dx[i] = (at[0] + at[1]) + (at[2 * width] + at[2 * width + 1]);
    }
}

// Sums of the columns of x (rows, width): a block of 32 x 32 threads for 32 columns.
extern "C" __global__ void column_sums(const float *x, float *y, size_t rows, size_t width) {
    __shared__ float parts[32][33];
    size_t column = (size_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (size_t row = threadIdx.y; row < rows; row += 32) sum += x[row * width + column];
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(parts[threadIdx.x][threadIdx.y]);
    column = (size_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < width) y[column] = sum;
}

// Sums of each run of `pixels` elements: a block for each run.
extern "C" __global__ void map_sums(const float *x, float *y, size_t pixels) {
    const float *map = x + (size_t)blockIdx.x * pixels;
    float sum = 0.0f;
    for (size_t i = threadIdx.x; i < pixels; i += blockDim.x) sum += map[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
