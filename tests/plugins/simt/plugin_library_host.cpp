// libva_plugins.so with its kernels compiled for the CPU: the same plugin objects behind the same symbols.
#define CUDART_VERSION 13000
#define VA_EXPORT_VERSION "0"
#define VA_EXPORT_CUDA_ARCHS "[]"

#include "anchored_attention_host.cpp"
#include "library.cpp"
