// What TensorRT does with a plugin, without TensorRT: the object that a plugin library's getCreators makes is built
// from fields, serialised, made again, asked for its workspace, attached to contexts and enqueued. For checks; it is
// no part of libva_plugins.so.
#ifndef VA_EXPORT_PLUGIN_HOST_H_
#define VA_EXPORT_PLUGIN_HOST_H_

#include "anchored_attention/anchored_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct VaPluginHostPlugin VaPluginHostPlugin;  // an IPluginV3

// An input's or output's description. type: TensorRT's DataType; rank at most 8.
typedef struct VaPluginHostTensor {
  int32_t rank;
  int32_t type;
  int64_t sizes[8];
} VaPluginHostTensor;

// The two symbols of TensorRT's plugin library protocol, as dlsym gives them. Messages are collected from now on.
VA_EXPORT_API void va_plugin_host_use(void* get_creators, void* set_logger_finder);

// What the library logged since the last call.
VA_EXPORT_API const char* va_plugin_host_log(void);

// AnchoredAttention from params' scale and is_causal, through serialisation when `serialised` is not 0. NULL: the
// creator refused, or the library has none of that name.
VA_EXPORT_API VaPluginHostPlugin* va_plugin_host_make(const VaAnchoredAttentionParams* params, int serialised);
// A clone of `plugin`, attached to a context of its own.
VA_EXPORT_API VaPluginHostPlugin* va_plugin_host_attach(VaPluginHostPlugin* plugin);
VA_EXPORT_API void va_plugin_host_release(VaPluginHostPlugin* plugin);

// The name under which TensorRT keeps the plugin's timings.
VA_EXPORT_API const char* va_plugin_host_timing_cache_id(VaPluginHostPlugin* plugin);

// The checks of a build in TensorRT's order, for tensors of fixed size: `inputs` inputs, then the output. 0, or what
// refuses: 1 the types of the inputs, 2 a combination of formats, 3 the configuration (ranks and sizes); 4: the plugin
// would give its output another type.
VA_EXPORT_API int va_plugin_host_build(VaPluginHostPlugin* plugin, const VaPluginHostTensor* tensors, int32_t inputs);

// Bytes that the plugin declares when params' sizes are the largest of the profile.
VA_EXPORT_API size_t va_plugin_host_workspace_bytes(VaPluginHostPlugin* plugin,
                                                    const VaAnchoredAttentionParams* params);

// onShapeChange and enqueue with params' sizes, dtype and pointers; its tensors are contiguous, its strides not read.
// Gives TensorRT's status: 0, or the plugin's own.
VA_EXPORT_API int va_plugin_host_enqueue(VaPluginHostPlugin* context, const VaAnchoredAttentionParams* params,
                                         cudaStream_t stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // VA_EXPORT_PLUGIN_HOST_H_
