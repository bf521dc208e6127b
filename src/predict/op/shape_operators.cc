// Operators that compute nothing at inference: they rename, reshape or pass on.
// The executor gives their output the memory of their input, and no backend knows
// them, so that they need no header.
#include <algorithm>

#include "predict/op/families.h"

namespace trims::predict {
namespace {

constexpr std::string_view kIdentity = "identity";
constexpr std::string_view kFlatten = "Flatten";
constexpr std::string_view kDropout = "Dropout";
constexpr std::string_view kReshape = "Reshape";

class View : public Operator {
 public:
  explicit View(std::string_view name) : name_(name) {}
  std::string_view Name() const override { return name_; }
  std::vector<std::string> InputNames() const override { return {"data"}; }
  bool IsView() const override { return true; }

 private:
  const std::string_view name_;
};

class Identity final : public View {
 public:
  using View::View;
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    return std::vector<Shape>{inputs[0]};
  }
};

class Flatten final : public View {
 public:
  Flatten() : View(kFlatten) {}
  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    const Shape& data = inputs[0];
    Shape out = {data[0], ElementCount(data) / data[0]};
    RETURN_IF_ERROR(CheckShape(out));
    return std::vector<Shape>{out};
  }
};

// `shape` holds sizes and codes, read from left to right over the data's
// dimensions (from right to left with `reverse`):
//   0 copy one   -1 infer   -2 copy the rest   -3 merge two   -4 a b split one
class Reshape final : public View {
 public:
  Reshape(std::vector<int64_t> codes, bool reverse)
      : View(kReshape), codes_(std::move(codes)), reverse_(reverse) {}

  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    Shape data = inputs[0];
    std::vector<int64_t> codes = codes_;
    if (reverse_) {
      std::reverse(data.begin(), data.end());
      std::reverse(codes.begin(), codes.end());
    }
    Shape out;
    size_t next = 0;  // Of the data's dimensions.
    size_t inferred = SIZE_MAX;
    const auto mismatch = [&] {
      return InvalidArgumentError("shape " + ShapeToString(codes_) +
                                  " does not fit data of shape " + ShapeToString(inputs[0]));
    };
    for (size_t i = 0; i < codes.size(); ++i) {
      const int64_t code = codes[i];
      if (code > 0) {
        out.push_back(code);
        ++next;
      } else if (code == 0) {
        if (next >= data.size()) return mismatch();
        out.push_back(data[next++]);
      } else if (code == -1) {
        if (inferred != SIZE_MAX) return mismatch();
        inferred = out.size();
        out.push_back(1);
        ++next;
      } else if (code == -2) {
        while (next < data.size()) out.push_back(data[next++]);
      } else if (code == -3) {
        if (next + 1 >= data.size()) return mismatch();
        out.push_back(data[next] * data[next + 1]);
        next += 2;
      } else {
        if (i + 2 >= codes.size() || next >= data.size()) return mismatch();
        const int64_t whole = data[next++];
        int64_t first = codes[++i];
        int64_t second = codes[++i];
        if (first == -1 && second > 0) first = whole / second;
        if (second == -1 && first > 0) second = whole / first;
        if (first <= 0 || second <= 0 || first > whole || first * second != whole) {
          return mismatch();
        }
        out.push_back(first);
        out.push_back(second);
      }
    }
    if (out.empty() || !CheckShape(out).ok()) return mismatch();
    if (inferred != SIZE_MAX) out[inferred] = ElementCount(data) / ElementCount(out);
    if (reverse_) std::reverse(out.begin(), out.end());
    if (!CheckShape(out).ok() || ElementCount(out) != ElementCount(data)) return mismatch();
    return std::vector<Shape>{out};
  }

 private:
  const std::vector<int64_t> codes_;
  const bool reverse_;
};

// Before `shape` existed: a 0 in target_shape is inferred, and keep_highest takes
// the first dimension from the data.
class LegacyReshape final : public View {
 public:
  LegacyReshape(std::vector<int64_t> target, bool keep_highest)
      : View(kReshape), target_(std::move(target)), keep_highest_(keep_highest) {}

  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    Shape out = target_;
    if (keep_highest_) out[0] = inputs[0][0];
    const auto zero = std::find(out.begin() + (keep_highest_ ? 1 : 0), out.end(), 0);
    const bool infer = zero != out.end();
    if (infer) *zero = 1;
    const auto mismatch = [&] {
      return InvalidArgumentError("target_shape " + ShapeToString(target_) +
                                  " does not fit data of shape " + ShapeToString(inputs[0]));
    };
    if (!CheckShape(out).ok()) return mismatch();
    if (infer) *zero = ElementCount(inputs[0]) / ElementCount(out);
    if (!CheckShape(out).ok() || ElementCount(out) != ElementCount(inputs[0])) return mismatch();
    return std::vector<Shape>{out};
  }

 private:
  const std::vector<int64_t> target_;
  const bool keep_highest_;
};

std::unique_ptr<Operator> ParseIdentity(AttributeReader&) {
  return std::make_unique<Identity>(kIdentity);
}
std::unique_ptr<Operator> ParseFlatten(AttributeReader&) { return std::make_unique<Flatten>(); }

std::unique_ptr<Operator> ParseDropout(AttributeReader& reader) {
  // mode=always draws random numbers at inference too, which no caller of a
  // classifier wants and nothing here could reproduce: refused.
  reader.Choice("mode", {"training"});
  reader.Ignore({"p", "axes", "cudnn_off"});
  return std::make_unique<Identity>(kDropout);
}

std::unique_ptr<Operator> ParseReshape(AttributeReader& reader) {
  std::vector<int64_t> shape = reader.Tuple("shape", {-4, kMaxDimension});
  const bool reverse = reader.Bool("reverse", false);
  std::vector<int64_t> target = reader.Tuple("target_shape", {0, kMaxDimension});
  const bool keep_highest = reader.Bool("keep_highest", false);
  if (!shape.empty()) {
    if (reverse && std::find(shape.begin(), shape.end(), -4) != shape.end()) {
      reader.Fail("attribute shape: -4 has no meaning together with reverse");
    }
    return std::make_unique<Reshape>(std::move(shape), reverse);
  }
  if (target.empty()) reader.Fail("attribute shape is missing");
  return std::make_unique<LegacyReshape>(std::move(target), keep_highest);
}

}  // namespace

void AddShapeOperators(OperatorRegistry& registry) {
  registry.Add({.name = kIdentity,
                .parse = ParseIdentity,
                .other_spellings = {"_copy", "BlockGrad", "stop_gradient"}});
  registry.Add({.name = kFlatten, .parse = ParseFlatten, .other_spellings = {"flatten"}});
  registry.Add({.name = kDropout, .parse = ParseDropout});
  registry.Add({.name = kReshape, .parse = ParseReshape, .other_spellings = {"reshape"}});
}

}  // namespace trims::predict
