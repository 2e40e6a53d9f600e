#if defined(__x86_64__)
#define VA_ISA avx2
#define VA_VECTOR_BYTES 32
#define VA_PANEL_VECTORS 2
#include "solver/column_step.inc"
#endif
