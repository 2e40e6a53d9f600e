#if defined(__x86_64__)
#define VA_ISA avx512
#define VA_VECTOR_BYTES 64
#define VA_PANEL_VECTORS 4
#include "solver/column_step.inc"
#endif
