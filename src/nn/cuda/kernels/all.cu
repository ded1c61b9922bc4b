// One module of all kernels.
#include "attention.cu"
#include "convolution.cu"
#include "flash.cu"
#include "norm.cu"
#include "pointwise.cu"
