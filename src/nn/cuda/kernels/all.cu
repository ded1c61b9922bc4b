// One module of all kernels.
#include "attention.cu"
#include "convolution.cu"
#include "flash.cu"
#include "flash_f32.cu"
#include "flash_grad.cu"
#include "norm.cu"
#include "pointwise.cu"
