#include "op_contract.h"

#include <cstring>
#include <map>

namespace va_export {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

std::string quoted(const std::string& text) {
  return '"' + text + '"';
}

// [f(item), f(item), ...]
template <typename Items, typename ToText>
std::string json_list(const Items& items, ToText to_text) {
  std::string text = "[";
  for (const auto& item : items) {
    if (text.size() > 1) text += ", ";
    text += to_text(item);
  }
  return text + "]";
}

std::string symbols(const TensorSpec& spec) {
  std::string text;
  for (int axis = 0; axis < spec.rank; ++axis) text += (axis ? ", " : "") + std::string(spec.dims[axis]);
  return text;
}

std::string tensor_json(const TensorSpec& spec) {
  const std::vector<std::string> dims(spec.dims, spec.dims + spec.rank);
  return "{\"name\": " + quoted(spec.name) + ", \"type\": " + quoted(spec.type) +
         ", \"dims\": " + json_list(dims, quoted) + ", \"optional\": " + (spec.optional ? "true" : "false") + "}";
}

bool is_element(const TensorSpec& spec) {
  return std::strcmp(spec.type, "T") == 0;
}

std::string count_fault(const OpContract& op, size_t count) {
  const size_t least = op.required_inputs(), most = op.inputs.size();
  if (count >= least && count <= most) return "";
  return "it has " + std::to_string(count) + " inputs, expected " + std::to_string(least) +
         (most > least ? " to " + std::to_string(most) : "");
}

}  // namespace

int OpContract::required_inputs() const {
  int count = 0;
  for (const TensorSpec& spec : inputs) count += spec.optional ? 0 : 1;
  return count;
}

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kBOOL:
      return "bool";
    case DataType::kUINT8:
      return "uint8";
    case DataType::kFP8:
      return "float8";
    default:
      return "an element type unknown to this plugin";
  }
}

const char* type_name(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT32:
      return "float32";
    case PluginFieldType::kFLOAT64:
      return "float64";
    case PluginFieldType::kFLOAT16:
      return "float16";
    case PluginFieldType::kINT32:
      return "int32";
    case PluginFieldType::kINT64:
      return "int64";
    case PluginFieldType::kCHAR:
      return "char";
    default:
      return "a field type unknown to this plugin";
  }
}

bool type_fits(const OpContract& op, const TensorSpec& spec, DataType type, DataType element) {
  if (!is_element(spec)) return std::strcmp(spec.type, type_name(type)) == 0;
  for (const DataType known : op.element_types) {
    if (known == type) return type == element;
  }
  return false;
}

std::string input_type_fault(const OpContract& op, const DataType* types, int count) {
  const std::string fault = count_fault(op, count);
  if (!fault.empty()) return fault;
  const TensorSpec& first = op.inputs[0];  // a T in every op
  for (int i = 0; i < count; ++i) {
    const TensorSpec& spec = op.inputs[i];
    if (type_fits(op, spec, types[i], types[0])) continue;
    const std::string actual = std::string(spec.name) + " is " + type_name(types[i]);
    if (!is_element(spec)) return actual + ", expected " + spec.type;
    if (type_fits(op, first, types[i], types[i])) {
      return actual + " but " + first.name + " is " + type_name(types[0]) + ": they must be equal";
    }
    const auto name = [](DataType type) { return std::string(type_name(type)); };
    return actual + ", expected one of " + json_list(op.element_types, name);
  }
  return "";
}

std::string input_shape_fault(const OpContract& op, const std::vector<Sizes>& inputs) {
  const std::string fault = count_fault(op, inputs.size());
  if (!fault.empty()) return fault;
  struct Known {
    int64_t size;
    const char* tensor;
  };
  std::map<std::string, Known> known;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorSpec& spec = op.inputs[i];
    if (inputs[i].size() != static_cast<size_t>(spec.rank)) {
      return std::string(spec.name) + " has " + std::to_string(inputs[i].size()) + " dimensions, expected " +
             std::to_string(spec.rank) + ": (" + symbols(spec) + ")";
    }
    for (int axis = 0; axis < spec.rank; ++axis) {
      const int64_t size = inputs[i][axis];
      if (size == kUnknown) continue;
      const auto [entry, is_new] = known.insert({spec.dims[axis], {size, spec.name}});
      if (!is_new && entry->second.size != size) {
        return std::string(spec.name) + " has " + spec.dims[axis] + " = " + std::to_string(size) + " but " +
               entry->second.tensor + " has " + std::to_string(entry->second.size);
      }
    }
  }
  return "";
}

std::string to_json(const OpContract& op) {
  const auto field = [](const FieldSpec& spec) {
    return "{\"name\": " + quoted(spec.name) + ", \"type\": " + quoted(type_name(spec.type)) + "}";
  };
  const auto element = [](DataType type) { return quoted(type_name(type)); };
  std::string limits;
  for (const LimitSpec& limit : op.limits) limits += ", " + quoted(limit.name) + ": " + std::to_string(limit.value);
  return "{\"name\": " + quoted(op.name) + ", \"version\": " + quoted(op.version) +
         ", \"namespace\": " + quoted(op.name_space) + ", \"fields\": " + json_list(op.fields, field) +
         ", \"inputs\": " + json_list(op.inputs, tensor_json) + ", \"outputs\": " + json_list(op.outputs, tensor_json) +
         ", \"T\": " + json_list(op.element_types, element) + limits + "}";
}

}  // namespace va_export
