// The fields of a plugin: read from what TensorRT hands over, checked against the op's table.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/op_contract.h"

namespace va_export {

// Reads every field of the collection into `values` by name, or gives the reason why that cannot be done. All fields of
// the table must be there, each one number of its kind; an integer may come as int32 or int64.
std::string read_fields(const OpContract& op, const nvinfer1::PluginFieldCollection& fields,
                        std::map<std::string, double>* values);

// The table's fields without values, as IPluginCreatorV3One::getFieldNames shows them.
std::vector<nvinfer1::PluginField> field_names(const OpContract& op);

}  // namespace va_export
