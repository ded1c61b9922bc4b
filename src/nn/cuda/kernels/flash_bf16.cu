// Attention of bf16.
#include "flash.cu"
#include "flash_grad.cu"
