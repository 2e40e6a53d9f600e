// SubspaceScore, version 1: the C interface to the CUDA kernels.
//
// Sharing score and subspace of every visual token of a video (arXiv 2509.25151, "Subspace-to-Scaler"): optional PCA,
// sparse self-expression by ADMM, spectral clustering of its affinity, row sum times cluster size, min-max normalised.
// va_export/anchor/ is the same in Python and has the algebra.
//
// This header knows CUDA's runtime types and nothing else: no TensorRT, no PyTorch. The TensorRT plugin
// (plugin.cpp) and va_export.native call the same two functions.
#ifndef VA_EXPORT_SUBSPACE_SCORE_H_
#define VA_EXPORT_SUBSPACE_SCORE_H_

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef VA_EXPORT_API
#define VA_EXPORT_API __attribute__((visibility("default")))
#endif

#define VA_SUBSPACE_SCORE_MAX_TOKENS 65536
#define VA_SUBSPACE_SCORE_MAX_DIM 32768
#define VA_SUBSPACE_SCORE_MAX_PCA_RANK 256
#define VA_SUBSPACE_SCORE_MAX_SUBSPACES 128

// Element type of the tokens.
enum VaSubspaceScoreDtype { VA_SCORE_FLOAT16 = 0, VA_SCORE_BFLOAT16 = 1, VA_SCORE_FLOAT32 = 2 };

// What became of the tokens. Where it is not VA_SCORE_SOLVED, every score is 0, which leaves attention plain, and every
// label is -1, which says so, or 0 where all tokens are equal. scorable.h has the bounds.
enum VaSubspaceScoreStatus {
  VA_SCORE_SOLVED = 0,
  VA_SCORE_EQUAL_TOKENS = 1,  // no token recurs more than another
  VA_SCORE_NOT_FINITE = 2,    // the tokens hold NaN or infinity
  VA_SCORE_LONE_TOKEN = 3,    // a token is zero or orthogonal to every other: lambda_e or lambda_z is infinite
  VA_SCORE_OVERFLOW = 4,      // the solver left float32's range: absurd rho or alphas
  VA_SCORE_NO_RESULT = 5      // the solver stopped at max_iter with a residual that leaves no score
};

// What a launch found out, written on the device.
typedef struct VaSubspaceScoreReport {
  int32_t status;      // VaSubspaceScoreStatus
  int32_t iterations;  // of ADMM
  float residual;      // max row sum of |A - C| after the last; converged means below eps
  float reserved;
  double lambda_e;  // for the tokens as given; 0 where nothing was solved
  double lambda_z;
} VaSubspaceScoreReport;

typedef struct VaSubspaceScoreParams {
  size_t struct_bytes;  // sizeof(VaSubspaceScoreParams): a caller compiled against another layout is refused

  const void* tokens;             // (tokens, dim), contiguous
  float* sharing_score;           // (tokens,), in [0, 1]
  int64_t* labels;                // (tokens,), in 0 .. n_subspaces - 1; -1: no score
  float* self_expression;         // (tokens, tokens), C; NULL: not wanted
  VaSubspaceScoreReport* report;  // device memory; NULL: not wanted
  void* workspace;                // device memory, aligned to 256 bytes
  size_t workspace_bytes;         // at least va_subspace_score_workspace_bytes

  int64_t token_count;  // max(2, n_subspaces) .. VA_SUBSPACE_SCORE_MAX_TOKENS
  int64_t dim;          // 1 .. VA_SUBSPACE_SCORE_MAX_DIM

  int32_t dtype;        // VaSubspaceScoreDtype
  int32_t n_subspaces;  // 1 .. VA_SUBSPACE_SCORE_MAX_SUBSPACES
  int32_t pca_rank;     // 0 (none) .. min(token_count, dim, VA_SUBSPACE_SCORE_MAX_PCA_RANK)
  int32_t max_iter;     // >= 1
  float rho;            // 1e-20 .. 1e20, as alpha_e and alpha_z
  float alpha_e;
  float alpha_z;
  float eps;  // > 0, finite
} VaSubspaceScoreParams;

// Bytes of device memory that a launch with these sizes, or with fewer tokens, needs as workspace (no pointer is read);
// 0 where the sizes are outside what is said above.
VA_EXPORT_API size_t va_subspace_score_workspace_bytes(const VaSubspaceScoreParams* params);

// Queues the whole op on `stream` and returns: a memset and five cooperative kernels. Allocates nothing and does not
// synchronise; ADMM's and the eigensolver's convergence are tested on the device. Deterministic: equal inputs give
// equal bits, whatever the number of multiprocessors. cudaErrorInvalidValue: a size, pointer or option outside what is
// said above; cudaErrorNotSupported: the device has no cooperative launch; any other error is CUDA's own.
VA_EXPORT_API cudaError_t va_subspace_score_launch(const VaSubspaceScoreParams* params, cudaStream_t stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // VA_EXPORT_SUBSPACE_SCORE_H_
