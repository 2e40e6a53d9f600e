#define VA_ISA baseline
#define VA_VECTOR_BYTES 16
#define VA_PANEL_VECTORS 2
#include "solver/column_step.inc"
