// What one custom op looks like from outside, written as a table. The plugin creator, the plugin's checks and
// the JSON that va_plugins_contract() returns all read the same table, so they cannot disagree.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "NvInferRuntime.h"

namespace va_export {

constexpr int kMaxRank = 4;

struct FieldSpec {
  const char* name;
  nvinfer1::PluginFieldType type;
};

struct TensorSpec {
  const char* name;
  const char* type;  // "T": one of OpContract::element_types, the same for every T; else "float32" or "int64"
  int rank;
  const char* dims[kMaxRank];  // symbols; equal symbols are equal sizes, in this tensor and across tensors
  bool optional;               // only trailing inputs are
};

struct LimitSpec {
  const char* name;  // "max_..."
  int value;
};

struct OpContract {
  const char* name;
  const char* version;
  const char* name_space;
  std::vector<FieldSpec> fields;  // all required
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<nvinfer1::DataType> element_types;
  std::vector<LimitSpec> limits;

  int required_inputs() const;
};

// A tensor's sizes, with kUnknown for a dimension known only at run time.
using Sizes = std::vector<int64_t>;
constexpr int64_t kUnknown = -1;

// "float16", "int64", ...: the names that the contract and the messages use.
const char* type_name(nvinfer1::DataType type);
const char* type_name(nvinfer1::PluginFieldType type);

// Whether a tensor of this spec may have this type, where `element` is the type of the first T.
bool type_fits(const OpContract& op, const TensorSpec& spec, nvinfer1::DataType type, nvinfer1::DataType element);

// The reason why these inputs do not fit the op, or "" where they do: count, then element types, or ranks and
// sizes.
std::string input_type_fault(const OpContract& op, const nvinfer1::DataType* types, int count);
std::string input_shape_fault(const OpContract& op, const std::vector<Sizes>& inputs);

// One op of the contract as a JSON object.
std::string to_json(const OpContract& op);

}  // namespace va_export
