// Weights files as strings, for tests: every byte is under the test's control.
//
// Writers, not serializers: they write what they are told, right or wrong.
// Header only; used by tests and fuzzers, never by the product.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"

namespace trims::format {

struct TestTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;  // The elements, little-endian.
};

template <typename T>
void AppendNumber(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Elements first, first + 1, ...
inline TestTensor FloatTensor(std::string name, std::vector<int64_t> shape, float first = 0) {
  TestTensor tensor{std::move(name), DType::kF32, std::move(shape), {}};
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  for (int64_t i = 0; i < count; ++i) AppendNumber(tensor.bytes, first + static_cast<float>(i));
  return tensor;
}

inline std::string JsonQuoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// Length, `json` as it is, `payload`.
inline std::string RawSafetensors(std::string_view json, std::string_view payload = {}) {
  std::string file;
  AppendNumber<uint64_t>(file, json.size());
  return file.append(json).append(payload);
}

// Tensors in the given order, back to back; the header is padded to 8 bytes as
// the reference writer does.
inline std::string WriteSafetensors(const std::vector<TestTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata = {}) {
  std::string json = "{";
  std::string payload;
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (json.back() != '{') json += ",";
      json += JsonQuoted(key) + ":" + JsonQuoted(value);
    }
    json += "}";
  }
  for (const TestTensor& tensor : tensors) {
    if (json.size() > 1) json += ",";
    json += JsonQuoted(tensor.name) + ":{\"dtype\":\"" + std::string(DTypeName(tensor.dtype)) +
            "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      json += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    }
    json += "],\"data_offsets\":[" + std::to_string(payload.size()) + ",";
    payload += tensor.bytes;
    json += std::to_string(payload.size()) + "]}";
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  return RawSafetensors(json, payload);
}

enum class ParamsVersion { kV0, kV1, kV2, kV3 };
inline constexpr ParamsVersion kAllParamsVersions[] = {ParamsVersion::kV0, ParamsVersion::kV1,
                                                       ParamsVersion::kV2, ParamsVersion::kV3};

struct ParamsOptions {
  ParamsVersion version = ParamsVersion::kV2;
  bool named = true;
  int32_t device_type = 1;  // 1 CPU, 2 GPU.
  int32_t device_id = 0;
};

// The number that MXNet writes for a type; -1 for one that it does not know.
inline int32_t MxnetTypeFlag(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF64:
      return 1;
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 3;
    case DType::kI32:
      return 4;
    case DType::kI8:
      return 5;
    case DType::kI64:
      return 6;
    case DType::kBool:
      return 7;
    case DType::kI16:
      return 8;
    case DType::kU16:
      return 9;
    case DType::kU32:
      return 10;
    case DType::kU64:
      return 11;
    case DType::kBF16:
      return 12;
    default:
      return -1;
  }
}

// Magic number, storage type, rank and dimensions of one array.
inline std::string ParamsArrayHead(ParamsVersion version, const std::vector<int64_t>& shape) {
  std::string out;
  if (version == ParamsVersion::kV0) {
    AppendNumber(out, static_cast<uint32_t>(shape.size()));
    for (const int64_t dim : shape) AppendNumber(out, static_cast<uint32_t>(dim));
    return out;
  }
  AppendNumber<uint32_t>(out, version == ParamsVersion::kV1   ? 0xf993fac8
                              : version == ParamsVersion::kV2 ? 0xf993fac9
                                                              : 0xf993faca);
  if (version != ParamsVersion::kV1) AppendNumber<int32_t>(out, 0);  // Dense.
  AppendNumber(out, static_cast<uint32_t>(shape.size()));
  for (const int64_t dim : shape) AppendNumber<int64_t>(out, dim);
  return out;
}

inline std::string ParamsArray(const TestTensor& tensor, const ParamsOptions& options = {}) {
  std::string out = ParamsArrayHead(options.version, tensor.shape);
  if (tensor.shape.empty() && options.version != ParamsVersion::kV3) return out;  // None.
  AppendNumber<int32_t>(out, options.device_type);
  AppendNumber<int32_t>(out, options.device_id);
  AppendNumber<int32_t>(out, MxnetTypeFlag(tensor.dtype));
  return out + tensor.bytes;
}

// A whole file of arrays that are already bytes.
inline std::string RawMxnetParams(const std::vector<std::string>& arrays,
                                  const std::vector<std::string>& names) {
  std::string file;
  AppendNumber<uint64_t>(file, 0x112);
  AppendNumber<uint64_t>(file, 0);
  AppendNumber<uint64_t>(file, arrays.size());
  for (const std::string& array : arrays) file += array;
  AppendNumber<uint64_t>(file, names.size());
  for (const std::string& name : names) {
    AppendNumber<uint64_t>(file, name.size());
    file += name;
  }
  return file;
}

inline std::string WriteMxnetParams(const std::vector<TestTensor>& tensors,
                                    const ParamsOptions& options = {}) {
  std::vector<std::string> arrays;
  std::vector<std::string> names;
  for (const TestTensor& tensor : tensors) {
    arrays.push_back(ParamsArray(tensor, options));
    if (options.named) names.push_back(tensor.name);
  }
  return RawMxnetParams(arrays, names);
}

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace trims::format
