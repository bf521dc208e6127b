#include "predict/op/convolution.h"

#include <memory>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

// Empty means `value` in every dimension, as in MXNet.
void Spread(AttributeReader& reader, std::string_view name, std::vector<int64_t>& tuple,
            size_t rank, int64_t value) {
  if (tuple.empty()) tuple.assign(rank, value);
  if (tuple.size() != rank) {
    reader.Fail("attribute " + std::string(name) + " has " + std::to_string(tuple.size()) +
                " elements and kernel has " + std::to_string(rank));
    tuple.assign(rank, value);
  }
}

std::unique_ptr<Operator> ParseConvolution(AttributeReader& reader) {
  constexpr AttributeReader::Range kPositive{1, 1'000'000};
  ConvolutionParameters p;
  p.kernel = reader.Tuple("kernel", kPositive);
  p.filters = reader.RequiredInt("num_filter", {1, 100'000});
  p.groups = reader.Int("num_group", 1, {1, 100'000});
  p.has_bias = !reader.Bool("no_bias", false);
  p.stride = reader.Tuple("stride", kPositive);
  p.dilate = reader.Tuple("dilate", kPositive);
  p.pad = reader.Tuple("pad", {0, 1'000'000});
  const size_t rank = p.kernel.size();
  if (rank < 1 || rank > 3) {
    reader.Fail("attribute kernel is missing or does not have 1, 2 or 3 elements");
    p.kernel = {1, 1};
  } else if (reader.Has("layout")) {
    constexpr std::string_view kLayouts[] = {"NCW", "NCHW", "NCDHW"};
    reader.RequiredChoice("layout", {kLayouts[rank - 1]});
  }
  Spread(reader, "stride", p.stride, p.kernel.size(), 1);
  Spread(reader, "dilate", p.dilate, p.kernel.size(), 1);
  Spread(reader, "pad", p.pad, p.kernel.size(), 0);
  if (p.filters % p.groups != 0) {
    reader.Fail("num_filter=" + std::to_string(p.filters) +
                " is not divisible by num_group=" + std::to_string(p.groups));
  }
  reader.Ignore({"workspace", "cudnn_tune", "cudnn_off", "layout"});
  return std::make_unique<Convolution>(std::move(p));
}

}  // namespace

std::vector<std::string> Convolution::InputNames() const {
  if (p_.has_bias) return {"data", "weight", "bias"};
  return {"data", "weight"};
}

// Each output element is a product with one row of the weights.
uint64_t Convolution::Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const {
  return static_cast<uint64_t>(ElementCount(outputs[0])) *
         static_cast<uint64_t>(ElementCount(inputs[1]) / inputs[1][0]);
}

Result<std::vector<Shape>> Convolution::InferShapes(std::span<Shape> inputs) const {
  const Shape& data = inputs[0];
  const size_t spatial = p_.kernel.size();
  RETURN_IF_ERROR(ExpectRank(data, spatial + 2, spatial + 2));
  if (data[1] % p_.groups != 0) {
    return InvalidArgumentError("data has " + std::to_string(data[1]) +
                                " channels, which num_group=" + std::to_string(p_.groups) +
                                " does not divide");
  }
  Shape weight = {p_.filters, data[1] / p_.groups};
  Shape out = {data[0], p_.filters};
  for (size_t i = 0; i < spatial; ++i) {
    const int64_t window = p_.dilate[i] * (p_.kernel[i] - 1) + 1;
    const int64_t padded = data[i + 2] + 2 * p_.pad[i];
    if (window > padded) {
      return InvalidArgumentError("the kernel covers " + std::to_string(window) +
                                  " positions and the padded data only has " +
                                  std::to_string(padded) + " (data " + ShapeToString(data) + ")");
    }
    weight.push_back(p_.kernel[i]);
    out.push_back((padded - window) / p_.stride[i] + 1);
  }
  RETURN_IF_ERROR(SettleShape(inputs[1], weight, "weight"));
  if (p_.has_bias) RETURN_IF_ERROR(SettleShape(inputs[2], {p_.filters}, "bias"));
  RETURN_IF_ERROR(CheckShape(out));
  return std::vector<Shape>{out};
}

void AddConvolution(OperatorRegistry& registry) {
  registry.Add({.name = Convolution::kName, .parse = ParseConvolution});
}

}  // namespace trims::predict
