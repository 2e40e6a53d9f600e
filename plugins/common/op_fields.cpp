#include "op_fields.h"

namespace va_export {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// The field's one number; is_number is false where it holds something else.
double number(const PluginField& field, bool* is_number) {
  *is_number = field.data != nullptr && field.length == 1;
  if (!*is_number) return 0.0;
  switch (field.type) {
    case PluginFieldType::kFLOAT32:
      return *static_cast<const float*>(field.data);
    case PluginFieldType::kFLOAT64:
      return *static_cast<const double*>(field.data);
    case PluginFieldType::kINT32:
      return *static_cast<const int32_t*>(field.data);
    case PluginFieldType::kINT64:
      return static_cast<double>(*static_cast<const int64_t*>(field.data));
    default:
      *is_number = false;
      return 0.0;
  }
}

bool is_integer(PluginFieldType type) {
  return type == PluginFieldType::kINT32 || type == PluginFieldType::kINT64;
}

}  // namespace

std::string read_fields(const OpContract& op, const nvinfer1::PluginFieldCollection& fields,
                        std::map<std::string, double>* values) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const FieldSpec* spec = nullptr;
    for (const FieldSpec& known : op.fields) {
      if (std::string(known.name) == field.name) spec = &known;
    }
    const std::string name = std::string("field '") + field.name + "'";
    if (spec == nullptr) return name + " is unknown to version " + op.version;
    bool is_number = false;
    const double value = number(field, &is_number);
    // An integer attribute reaches the plugin as int32 or int64, as the ONNX parser's version would have it.
    if (!is_number || is_integer(spec->type) != is_integer(field.type)) {
      return name + " holds " + std::to_string(field.length) + " x " + type_name(field.type) + ", expected one " +
             type_name(spec->type);
    }
    if (!values->insert({spec->name, value}).second) return name + " is given twice";
  }
  for (const FieldSpec& spec : op.fields) {
    if (values->count(spec.name) == 0) return std::string("field '") + spec.name + "' is missing";
  }
  return "";
}

std::vector<PluginField> field_names(const OpContract& op) {
  std::vector<PluginField> names;
  for (const FieldSpec& spec : op.fields) names.emplace_back(spec.name, nullptr, spec.type, 1);
  return names;
}

}  // namespace va_export
