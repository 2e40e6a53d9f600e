// The end of a greedy decode step, on the device: choose the token, feed it back, count slot and position. With it a
// decode loop copies nothing to the host but the token, and is one CUDA graph.
//
// This header knows CUDA's runtime types and nothing else.
#ifndef VA_EXPORT_GREEDY_STEP_H_
#define VA_EXPORT_GREEDY_STEP_H_

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VA_EXPORT_API __attribute__((visibility("default")))

typedef struct VaGreedyStepParams {
  size_t struct_bytes;  // sizeof(VaGreedyStepParams): a caller compiled against another layout is refused

  const float* logits;    // (batch, vocab), contiguous
  int64_t* token_ids;     // (batch,), written: the likeliest token, the lowest id among equals
  int64_t* past_length;   // (batch,), read and written: one slot more
  int64_t* position_ids;  // (axes, batch), read and written: one more on every axis
  int64_t* chosen;        // (batch,), written: the token again, or -1 where a logit is NaN or infinite

  int64_t batch;  // 1 .. 65535
  int64_t vocab;  // 1 .. 2^31 - 1
  int64_t axes;   // 1 .. 16
} VaGreedyStepParams;

// Queues the step on `stream` and returns: no allocation, no synchronisation, capturable in a CUDA graph. Where the
// logits are not finite, token_ids takes 0, which is a token whatever the vocabulary, and `chosen` tells.
// cudaErrorInvalidValue: a size or pointer outside what is said above.
VA_EXPORT_API cudaError_t va_greedy_step_launch(const VaGreedyStepParams* params, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif  // VA_EXPORT_GREEDY_STEP_H_
