// For tests: one use of each declared operator, with which whatever holds for all of them
// is checked for all of them. Never used by the product.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "predict/op/registry.h"

namespace trims::predict {

struct OperatorSample {
  std::string_view name;
  std::map<std::string, std::string> attributes;
};

// Each fits data of this shape.
inline const Shape kSampleData = {2, 4, 6, 6};

inline std::vector<OperatorSample> OperatorSamples() {
  return {
      {"Activation", {{"act_type", "tanh"}}},
      {"Convolution", {{"kernel", "(3, 3)"}, {"num_filter", "8"}, {"num_group", "2"}}},
      {"Dropout", {{"p", "0.5"}}},
      {"Flatten", {}},
      {"FullyConnected", {{"num_hidden", "5"}}},
      {"LRN", {{"nsize", "3"}}},
      {"Pooling", {{"kernel", "(2, 2)"}, {"pool_type", "max"}}},
      {"Reshape", {{"shape", "(0, -1)"}}},
      {"SoftmaxActivation", {}},
      {"SoftmaxOutput", {}},
      {"identity", {}},
      {"softmax", {}},
  };
}

}  // namespace trims::predict
