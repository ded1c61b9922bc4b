// What attention needs beside its products.
#include "common.cuh"

// (batch, s, heads, d) -> (batch, heads, s, d). n counts elements.
template <typename T>
__device__ void heads_apart(const float *x, T *y, size_t n, size_t s, size_t heads, size_t d) {
    for (size_t i = first(); i < n; i += step()) {
        size_t feature = i % d, row = i / d % s, head = i / (d * s) % heads, sample = i / (d * s * heads);
        put(y + i, x[((sample * s + row) * heads + head) * d + feature]);
    }
}

extern "C" __global__ void heads_apart_f32(const float *x, float *y, size_t n, size_t s, size_t heads, size_t d) {
    heads_apart(x, y, n, s, heads, d);
}

extern "C" __global__ void heads_apart_bf16(const float *x, Bf16 *y, size_t n, size_t s, size_t heads, size_t d) {
    heads_apart(x, y, n, s, heads, d);
}

// And back.
extern "C" __global__ void heads_together(const float *x, float *y, size_t n, size_t s, size_t heads, size_t d) {
    for (size_t i = first(); i < n; i += step()) {
        size_t feature = i % d, head = i / d % heads, row = i / (d * heads) % s, sample = i / (d * heads * s);
        y[i] = x[((sample * heads + head) * s + row) * d + feature];
    }
}

// Rows of scores (rows, line >= t) to probabilities, their log-sum-exp beside them: a block for each row (grid.x); what lies
// between t and line becomes 0. Row r stands for query (row + r) % s of its head; where causal, it sees as many keys and its own.
// probabilities may be the scores themselves.
template <typename T>
__device__ void softmax_of(const float *scores, T *probabilities, float *lse, int t, int line, int row, int s, int causal) {
    const float *from = scores + (size_t)blockIdx.x * line;
    T *to = probabilities + (size_t)blockIdx.x * line;
    int seen = causal ? min(t, (row + (int)blockIdx.x) % s + 1) : t;
    float largest = -INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < seen; i += blockDim.x) largest = fmaxf(largest, from[i]);
    largest = block_max(largest);
    for (int i = threadIdx.x; i < seen; i += blockDim.x) sum += expf(from[i] - largest);
    sum = block_sum(sum);
    float scale = 1.0f / sum;
    for (int i = threadIdx.x; i < line; i += blockDim.x) put(to + i, i < seen ? expf(from[i] - largest) * scale : 0.0f);
    if (threadIdx.x == 0) lse[blockIdx.x] = largest + logf(sum);
}

extern "C" __global__ void softmax_f32(const float *scores, float *probabilities, float *lse, int t, int line, int row, int s,
                                       int causal) {
    softmax_of(scores, probabilities, lse, t, line, row, s, causal);
}

extern "C" __global__ void softmax_bf16(const float *scores, Bf16 *probabilities, float *lse, int t, int line, int row, int s,
                                        int causal) {
    softmax_of(scores, probabilities, lse, t, line, row, s, causal);
}

// delta = sum of out dout over each row of d features; a warp for each row, blocks of 32 x 8 threads. Where products are of bf16, dout
// is rounded here as it is there, so that what must cancel does.
template <typename T>
__device__ void attention_delta(const T *out, const T *dout, float *delta, size_t rows, unsigned d, int half) {
    size_t r = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (r >= rows) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < d; i += 32) {
        float slope = get(dout + r * d + i);
        if (half) {
            Bf16 rounded;
            put(&rounded, slope);
            slope = get(&rounded);
        }
        sum += get(out + r * d + i) * slope;
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) delta[r] = sum;
}

extern "C" __global__ void attention_delta_f32(const float *out, const float *dout, float *delta, size_t rows, size_t d, int half) {
    attention_delta(out, dout, delta, rows, (unsigned)d, half);
}

extern "C" __global__ void attention_delta_bf16(const Bf16 *out, const Bf16 *dout, float *delta, size_t rows, size_t d, int half) {
    attention_delta(out, dout, delta, rows, (unsigned)d, half);
}

// From scores S and dP (rows, line) to P = exp(S - lse) and dS = scale P (dP - delta). As softmax_of; both may be in place.
template <typename T>
__device__ void softmax_grad_of(const float *scores, const float *dp, const float *lse, const float *delta, T *p, T *ds, int t,
                                int line, int row, int s, int causal, float scale) {
    size_t base = (size_t)blockIdx.x * line;
    int seen = causal ? min(t, (row + (int)blockIdx.x) % s + 1) : t;
    float l = lse[blockIdx.x], d = delta[blockIdx.x];
    for (int i = threadIdx.x; i < line; i += blockDim.x) {
        float probability = i < seen ? expf(scores[base + i] - l) : 0.0f;
        float slope = i < seen ? scale * probability * (dp[base + i] - d) : 0.0f;
        put(p + base + i, probability);
        put(ds + base + i, slope);
    }
}

extern "C" __global__ void softmax_grad_f32(const float *scores, const float *dp, const float *lse, const float *delta, float *p,
                                            float *ds, int t, int line, int row, int s, int causal, float scale) {
    softmax_grad_of(scores, dp, lse, delta, p, ds, t, line, row, s, causal, scale);
}

extern "C" __global__ void softmax_grad_bf16(const float *scores, const float *dp, const float *lse, const float *delta, Bf16 *p,
                                             Bf16 *ds, int t, int line, int row, int s, int causal, float scale) {
    softmax_grad_of(scores, dp, lse, delta, p, ds, t, line, row, s, causal, scale);
}
