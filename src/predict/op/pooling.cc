#include "predict/op/pooling.h"

#include <memory>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

std::unique_ptr<Operator> ParsePooling(AttributeReader& reader) {
  constexpr AttributeReader::Range kPositive{1, 1'000'000};
  PoolingParameters p;
  const std::string kind = reader.Choice("pool_type", {"max", "avg", "sum"});
  p.kind = kind == "max" ? PoolKind::kMax : kind == "avg" ? PoolKind::kAverage : PoolKind::kSum;
  p.global = reader.Bool("global_pool", false);
  p.full = reader.Choice("pooling_convention", {"valid", "full"}) == "full";
  p.kernel = reader.Tuple("kernel", {p.global ? 0 : 1, 1'000'000});
  p.stride = reader.Tuple("stride", kPositive);
  p.pad = reader.Tuple("pad", {0, 1'000'000});
  if (reader.Has("count_include_pad")) {
    p.count_include_pad = reader.Bool("count_include_pad", true);
  }
  const size_t rank = p.kernel.size();
  if (!p.global) {
    if (rank < 1 || rank > 3) {
      reader.Fail("attribute kernel is missing or does not have 1, 2 or 3 elements");
    }
    if (p.stride.empty()) p.stride.assign(rank, 1);
    if (p.pad.empty()) p.pad.assign(rank, 0);
    if (p.stride.size() != rank || p.pad.size() != rank) {
      reader.Fail("attributes kernel, stride and pad have different numbers of elements");
    }
  }
  if (reader.Has("layout")) reader.RequiredChoice("layout", {"NCHW", "NCW", "NCDHW"});
  reader.Ignore({"cudnn_off", "count_include_pad", "layout", "p_value"});
  return std::make_unique<Pooling>(std::move(p));
}

}  // namespace

std::vector<PoolAxis> Pooling::Axes(const Shape& data) const {
  std::vector<PoolAxis> axes;
  for (size_t i = 2; i < data.size(); ++i) {
    if (p_.global) {
      axes.push_back({.size = data[i], .kernel = data[i]});
      continue;
    }
    PoolAxis axis{data[i], p_.kernel[i - 2], p_.stride[i - 2], p_.pad[i - 2]};
    const int64_t room = axis.size + 2 * axis.pad - axis.kernel;
    axis.out = (p_.full ? (room + axis.stride - 1) / axis.stride : room / axis.stride) + 1;
    axes.push_back(axis);
  }
  return axes;
}

Result<std::vector<Shape>> Pooling::InferShapes(std::span<Shape> inputs) const {
  const Shape& data = inputs[0];
  if (p_.global) {
    RETURN_IF_ERROR(ExpectRank(data, 3, 5));
  } else {
    RETURN_IF_ERROR(ExpectRank(data, p_.kernel.size() + 2, p_.kernel.size() + 2));
  }
  for (size_t i = 0; !p_.global && i < p_.kernel.size(); ++i) {
    if (p_.kernel[i] > data[i + 2] + 2 * p_.pad[i]) {
      return InvalidArgumentError("the kernel covers " + std::to_string(p_.kernel[i]) +
                                  " positions and the padded data only has " +
                                  std::to_string(data[i + 2] + 2 * p_.pad[i]) + " (data " +
                                  ShapeToString(data) + ")");
    }
  }
  Shape out = {data[0], data[1]};
  for (const PoolAxis& axis : Axes(data)) out.push_back(axis.out);
  RETURN_IF_ERROR(CheckShape(out));
  return std::vector<Shape>{out};
}

void AddPooling(OperatorRegistry& registry) {
  registry.Add({.name = Pooling::kName, .parse = ParsePooling});
}

}  // namespace trims::predict
