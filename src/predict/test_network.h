// For tests: writes symbol JSON node by node, and holds weights in memory that is
// read-only while a predictor runs. Header only; never used by the product.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "predict/anonymous_memory.h"
#include "predict/graph.h"
#include "predict/predictor.h"
#include "predict/weights.h"

namespace trims::predict {

// Nodes in order; a node's name is its handle.
class SymbolWriter final {
 public:
  using Attributes = std::vector<std::pair<std::string, std::string>>;

  // Adds variables for names that are not there yet.
  SymbolWriter& Op(const std::string& op, const std::string& name,
                   const std::vector<std::string>& inputs, const Attributes& attributes = {}) {
    for (const std::string& input : inputs) {
      if (!index_.contains(input)) Add("null", input, "", {});
    }
    std::string refs;
    for (const std::string& input : inputs) {
      refs += (refs.empty() ? "[" : ", [") + std::to_string(index_.at(input)) + ", 0, 0]";
    }
    Add(op, name, refs, attributes);
    return *this;
  }
  std::string Json(const std::vector<std::string>& heads = {}) const {
    std::string ids;
    for (const std::string& head : heads.empty() ? std::vector<std::string>{last_} : heads) {
      ids += (ids.empty() ? "[" : ", [") + std::to_string(index_.at(head)) + ", 0, 0]";
    }
    return "{\"nodes\": [" + nodes_ + "], \"arg_nodes\": [" + arguments_ + "], \"heads\": [" + ids +
           "], \"attrs\": {\"mxnet_version\": [\"int\", 10200]}}";
  }

 private:
  void Add(const std::string& op, const std::string& name, const std::string& refs,
           const Attributes& attributes) {
    std::string attrs;
    for (const auto& [key, value] : attributes) {
      attrs += (attrs.empty() ? "\"" : ", \"") + key + "\": \"" + value + "\"";
    }
    const auto id = static_cast<uint32_t>(index_.size());
    if (op == "null") arguments_ += (arguments_.empty() ? "" : ", ") + std::to_string(id);
    nodes_ += (nodes_.empty() ? "" : ", ") + std::string("{\"op\": \"") + op + "\", \"name\": \"" +
              name + "\", \"attrs\": {" + attrs + "}, \"inputs\": [" + refs + "]}";
    index_[name] = id;
    last_ = name;
  }

  std::map<std::string, uint32_t> index_;
  std::string nodes_;
  std::string arguments_;
  std::string last_;
};

// Tensors by name. Seal() takes away write permission, as the daemon's mappings do.
class MemoryWeights final : public WeightProvider {
 public:
  MemoryWeights& Set(const std::string& name, Shape shape, const std::vector<float>& values) {
    std::string bytes(values.size() * sizeof(float), '\0');
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return SetBytes(name, DType::kF32, std::move(shape), bytes);
  }
  // `misalignment` moves the first byte off the block's page boundary.
  MemoryWeights& SetBytes(const std::string& name, DType dtype, Shape shape,
                          const std::string& bytes, size_t misalignment = 0) {
    AnonymousMemory memory =
        AnonymousMemory::Allocate(bytes.size() + misalignment + 1, "a test's weights").value();
    std::memcpy(memory.data() + misalignment, bytes.data(), bytes.size());
    tensors_[name] = {dtype, std::move(shape), memory.data() + misalignment, bytes.size()};
    TRIMS_CHECK(memory.MakeReadOnly().ok());
    memory_.push_back(std::move(memory));
    return *this;
  }

  std::optional<Weight> Find(std::string_view name) const override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) return std::nullopt;
    return it->second;
  }
  std::string Describe() const override { return "test weights"; }

 private:
  std::map<std::string, Weight, std::less<>> tensors_;
  std::vector<AnonymousMemory> memory_;
};

inline std::vector<float> RandomFloats(std::mt19937& random, size_t count, float low = -1.0f,
                                       float high = 1.0f) {
  // Not std::uniform_real_distribution, whose results depend on the library.
  std::vector<float> values(count);
  for (float& value : values) {
    value = low + (high - low) * static_cast<float>(random() >> 8) / static_cast<float>(1 << 24);
  }
  return values;
}

inline int64_t RandomInt(std::mt19937& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint32_t>(high - low + 1));
}

}  // namespace trims::predict
