// Columns of a convolution, and back.
#include "common.cuh"

// Sizes of a convolution.
struct Geometry {
    int inputs, height, width, kernel, stride, padding, out_height, out_width;
};

// x (images, inputs, height, width) -> columns (images, inputs k k, rows out_width) of the rows of the result from `row` on.
// grid.y counts images. A thread has one input channel and one pixel of the result, and writes its k k taps.
template <typename T>
__device__ void columns_of(const T *x, T *columns, Geometry g, int row, int rows) {
    unsigned pixels = rows * g.out_width, taps = g.kernel * g.kernel;
    unsigned n = g.inputs * pixels;
    x += (size_t)blockIdx.y * g.inputs * g.height * g.width;
    columns += (size_t)blockIdx.y * n * taps;
    for (unsigned i = first(); i < n; i += step()) {
        unsigned channel = i / pixels, pixel = i % pixels;
        int top = ((int)(pixel / g.out_width) + row) * g.stride - g.padding;
        int left = (int)(pixel % g.out_width) * g.stride - g.padding;
        const T *map = x + (size_t)channel * g.height * g.width;
        T *to = columns + (size_t)channel * taps * pixels + pixel;
        for (int y = top; y < top + g.kernel; y++) {
            for (int c = left; c < left + g.kernel; c++, to += pixels) {
                bool inside = y >= 0 && y < g.height && c >= 0 && c < g.width;
                put(to, inside ? get(map + (size_t)y * g.width + c) : 0.0f);
            }
        }
    }
}

// The same of a 3x3 kernel with stride 1 and padding 1, where 16 bytes divide a row: a thread has neighbouring pixels, which it reads
// once for the three taps of a line. x and columns are aligned.
template <typename T>
__device__ void columns_of_3x3(const T *x, T *columns, Geometry g, int row, int rows) {
    constexpr int N = WIDE<T>;
    unsigned pixels = rows * g.width, packs = pixels / N, n = g.inputs * packs;
    x += (size_t)blockIdx.y * g.inputs * g.height * g.width;
    columns += (size_t)blockIdx.y * g.inputs * 9 * pixels;
    for (unsigned i = first(); i < n; i += step()) {
        unsigned channel = i / packs, pixel = i % packs * N;
        int top = (int)(pixel / g.width) + row - 1, left = pixel % g.width;
        const T *map = x + (size_t)channel * g.height * g.width + left;
        T *to = columns + (size_t)channel * 9 * pixels + pixel;
#pragma unroll
        for (int k = 0; k < 3; k++) {
            int y = top + k;
            float line[N + 2];
#pragma unroll
            for (int e = 0; e < N + 2; e++) line[e] = 0.0f;
            if (y >= 0 && y < g.height) {
                const T *from = map + y * g.width;
                get_wide(line + 1, from);
                if (left > 0) line[0] = get(from - 1);
                if (left + N < g.width) line[N + 1] = get(from + N);
            }
#pragma unroll
            for (int tap = 0; tap < 3; tap++) put_wide(to + (size_t)(3 * k + tap) * pixels, line + tap);
        }
    }
}

extern "C" __global__ void columns_f32(const float *x, float *columns, Geometry g, int row, int rows) {
    columns_of(x, columns, g, row, rows);
}

extern "C" __global__ void columns_bf16(const Bf16 *x, Bf16 *columns, Geometry g, int row, int rows) {
    columns_of(x, columns, g, row, rows);
}

extern "C" __global__ void columns_3x3_f32(const float *x, float *columns, Geometry g, int row, int rows) {
    columns_of_3x3(x, columns, g, row, rows);
}

extern "C" __global__ void columns_3x3_bf16(const Bf16 *x, Bf16 *columns, Geometry g, int row, int rows) {
    columns_of_3x3(x, columns, g, row, rows);
}

// The transpose: each element of dx gathers the columns that read it, tap by tap. grid.y counts images.
template <typename T>
__device__ void columns_grad(const float *columns, T *dx, Geometry g) {
    size_t map = (size_t)g.height * g.width, pixels = (size_t)g.out_height * g.out_width;
    size_t n = g.inputs * map, taps = (size_t)g.kernel * g.kernel;
    dx += blockIdx.y * n;
    columns += blockIdx.y * (size_t)g.inputs * taps * pixels;
    for (size_t i = first(); i < n; i += step()) {
        size_t channel = i / map;
        int y = (int)(i % map / g.width), x = (int)(i % g.width);
        const float *from = columns + channel * taps * pixels;
        float sum = 0.0f;
        for (int ky = 0; ky < g.kernel; ky++) {
            for (int kx = 0; kx < g.kernel; kx++, from += pixels) {
                int down = y + g.padding - ky, right = x + g.padding - kx;
                if (down < 0 || right < 0 || down % g.stride || right % g.stride) continue;
                int oy = down / g.stride, ox = right / g.stride;
                if (oy < g.out_height && ox < g.out_width) sum += from[(size_t)oy * g.out_width + ox];
            }
        }
        put(dx + i, sum);
    }
}

extern "C" __global__ void columns_grad_f32(const float *columns, float *dx, Geometry g) { columns_grad(columns, dx, g); }
extern "C" __global__ void columns_grad_bf16(const float *columns, Bf16 *dx, Geometry g) { columns_grad(columns, dx, g); }

// The kernel of the input's gradient: w (outputs, inputs, 9) -> (inputs, outputs, 9), the taps in reverse. A block has 32 x 32 kernels,
// which lie in lines on either side. grid (inputs / 32, outputs / 32).
template <typename T>
__device__ void flip_of(const T *w, T *flipped, int outputs, int inputs) {
    constexpr int LINE = 32 * 9;
    __shared__ T tile[32][LINE + 2];
    int output = blockIdx.y * 32, input = blockIdx.x * 32, high = min(32, outputs - output), wide = min(32, inputs - input) * 9;
    for (int i = threadIdx.x; i < 32 * LINE; i += blockDim.x) {
        int row = i / LINE, column = i % LINE;
        if (row < high && column < wide) tile[row][column] = w[((size_t)(output + row) * inputs + input) * 9 + column];
    }
    __syncthreads();
    high = min(32, inputs - input), wide = min(32, outputs - output) * 9;
    for (int i = threadIdx.x; i < 32 * LINE; i += blockDim.x) {
        int row = i / LINE, column = i % LINE;
        if (row < high && column < wide) {
            flipped[((size_t)(input + row) * outputs + output) * 9 + column] = tile[column / 9][row * 9 + 8 - column % 9];
        }
    }
}

extern "C" __global__ void flip_f32(const float *w, float *flipped, int outputs, int inputs) {
    flip_of(w, flipped, outputs, inputs);
}

extern "C" __global__ void flip_bf16(const Bf16 *w, Bf16 *flipped, int outputs, int inputs) {
    flip_of(w, flipped, outputs, inputs);
}
