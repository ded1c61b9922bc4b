// All kernels but those of attention that keep no scores: they take the driver long to compile, and not every run needs each.
#include "attention.cu"
#include "convolution.cu"
#include "norm.cu"
#include "pointwise.cu"
