// Pooling: max, average or sum over windows of one to three spatial dimensions,
// by MXNet's rules, which are not quite anybody else's:
//
//   'valid'  floor((size + 2·pad − kernel) / stride) + 1 windows
//   'full'   ceil(…) + 1 windows. The last one may overhang the padded image, and,
//            unlike in Caffe, is not dropped when it starts in the padding.
//   max      ignores whatever is outside the image. A window with nothing inside
//            yields the lowest finite float.
//   avg      divides by the window clipped to the PADDED image: padding counts in
//            the divisor, the overhang does not. count_include_pad=False (from
//            later versions) divides by what lies inside the image. A window that
//            begins where the padded image ends is 0/0: NaN, as in MXNet.
//
// MXNet's cuDNN path differs for overhanging averages (it divides by the whole
// kernel); we follow the CPU rule, on every backend. oneDNN runs the cases where
// its rules agree with these, the loops below run the others.
#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "predict/cpu/onednn.h"
#include "predict/ops/families.h"

namespace trims::predict {
namespace {

enum class PoolKind { kMax, kAverage, kSum };

struct PoolingParameters {
  PoolKind kind = PoolKind::kMax;
  std::vector<int64_t> kernel;
  std::vector<int64_t> stride;
  std::vector<int64_t> pad;
  bool global = false;
  bool full = false;
  bool count_include_pad = true;
};

// One spatial dimension of a pooling.
struct Axis {
  int64_t size = 1;
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t pad = 0;
  int64_t out = 1;
};

struct Window {
  int64_t first;   // Inside the image.
  int64_t last;    // One past the end; not above first where nothing is inside.
  int64_t padded;  // Its length when clipped to the padded image.
};

Window WindowAt(const Axis& axis, int64_t position) {
  const int64_t start = position * axis.stride - axis.pad;
  const int64_t end = std::min(start + axis.kernel, axis.size + axis.pad);
  return {std::max<int64_t>(start, 0), std::min(end, axis.size), end - start};
}

bool Overhangs(const Axis& axis) {
  return (axis.out - 1) * axis.stride + axis.kernel > axis.size + 2 * axis.pad;
}
bool EveryWindowTouchesImage(const Axis& axis) {
  return axis.pad < axis.kernel && (axis.out - 1) * axis.stride - axis.pad < axis.size;
}

class LoopPoolingKernel final : public CpuKernel {
 public:
  // `axes` are depth, height, width; missing ones have size 1.
  LoopPoolingKernel(PoolKind kind, bool count_include_pad, int64_t planes, std::array<Axis, 3> axes)
      : kind_(kind), count_include_pad_(count_include_pad), planes_(planes), axes_(axes) {}

  Status Run(const KernelArguments& arguments) override {
    const auto& [depth, height, width] = axes_;
    const float* in = arguments.inputs[0];
    float* out = arguments.outputs[0];
    for (int64_t plane = 0; plane < planes_; ++plane) {
      for (int64_t z = 0; z < depth.out; ++z) {
        for (int64_t y = 0; y < height.out; ++y) {
          for (int64_t x = 0; x < width.out; ++x) {
            *out++ = Pool(in, {WindowAt(depth, z), WindowAt(height, y), WindowAt(width, x)});
          }
        }
      }
      in += depth.size * height.size * width.size;
    }
    return OkStatus();
  }

 private:
  float Pool(const float* image, const std::array<Window, 3>& window) const {
    const auto& [dz, dy, dx] = window;
    float highest = std::numeric_limits<float>::lowest();
    float sum = 0.0f;
    int64_t inside = 0;
    for (int64_t z = dz.first; z < dz.last; ++z) {
      for (int64_t y = dy.first; y < dy.last; ++y) {
        const float* row = image + (z * axes_[1].size + y) * axes_[2].size;
        for (int64_t x = dx.first; x < dx.last; ++x) {
          highest = std::max(highest, row[x]);
          sum += row[x];
          ++inside;
        }
      }
    }
    if (kind_ == PoolKind::kMax) return highest;
    if (kind_ == PoolKind::kSum) return sum;
    const int64_t divisor = count_include_pad_ ? dz.padded * dy.padded * dx.padded : inside;
    return sum / static_cast<float>(divisor);
  }

  const PoolKind kind_;
  const bool count_include_pad_;
  const int64_t planes_;
  const std::array<Axis, 3> axes_;
};

class OnednnPoolingKernel final : public CpuKernel {
 public:
  OnednnPoolingKernel(dnnl::algorithm algorithm, const std::vector<Axis>& axes,
                      const Shape& src_shape, const Shape& dst_shape)
      : stream_(CpuEngine()) {
    dnnl::memory::dims kernel, stride, before, after;
    for (const Axis& axis : axes) {
      kernel.push_back(axis.kernel);
      stride.push_back(axis.stride);
      before.push_back(axis.pad);
      after.push_back((axis.out - 1) * axis.stride + axis.kernel - axis.size - axis.pad);
    }
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    using Forward = dnnl::pooling_forward;
    const Forward::primitive_desc primitive_desc(
        Forward::desc(dnnl::prop_kind::forward_inference, algorithm, PlainDesc(src_shape),
                      PlainDesc(dst_shape), stride, kernel, before, after),
        attributes, CpuEngine());
    primitive_ = Forward(primitive_desc);
    src_ = UnboundMemory(PlainDesc(src_shape));
    dst_ = UnboundMemory(PlainDesc(dst_shape));
    scratchpad_ = UnboundMemory(primitive_desc.scratchpad_desc());
    scratch_bytes_ = primitive_desc.scratchpad_desc().get_size();
    arguments_ = {{DNNL_ARG_SRC, src_}, {DNNL_ARG_DST, dst_}, {DNNL_ARG_SCRATCHPAD, scratchpad_}};
  }

  uint64_t scratch_bytes() const override { return scratch_bytes_; }

  Status Run(const KernelArguments& arguments) override {
    BindConst(src_, arguments.inputs[0]);
    dst_.set_data_handle(arguments.outputs[0]);
    scratchpad_.set_data_handle(arguments.scratch);
    primitive_.execute(stream_, arguments_);
    stream_.wait();
    return OkStatus();
  }

 private:
  dnnl::stream stream_;
  dnnl::pooling_forward primitive_;
  dnnl::memory src_, dst_, scratchpad_;
  std::unordered_map<int, dnnl::memory> arguments_;
  uint64_t scratch_bytes_ = 0;
};

class Pooling final : public Operator {
 public:
  explicit Pooling(PoolingParameters parameters) : p_(std::move(parameters)) {}

  std::vector<std::string> InputNames() const override { return {"data"}; }

  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
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
    for (const Axis& axis : Axes(data)) out.push_back(axis.out);
    RETURN_IF_ERROR(CheckShape(out));
    return std::vector<Shape>{out};
  }

  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    const Shape& data = request.inputs[0];
    const std::vector<Axis> axes = Axes(data);
    const auto every = [&](auto&& rule) { return std::all_of(axes.begin(), axes.end(), rule); };
    const bool plain = every(EveryWindowTouchesImage);
    const bool overhang = !every([](const Axis& axis) { return !Overhangs(axis); });
    if (plain && p_.kind == PoolKind::kMax) {
      return Onednn(dnnl::algorithm::pooling_max, axes, request);
    }
    if (plain && !overhang && p_.kind == PoolKind::kAverage) {
      return Onednn(p_.count_include_pad ? dnnl::algorithm::pooling_avg_include_padding
                                         : dnnl::algorithm::pooling_avg_exclude_padding,
                    axes, request);
    }
    std::array<Axis, 3> three;
    std::copy(axes.begin(), axes.end(), three.end() - static_cast<ptrdiff_t>(axes.size()));
    return std::unique_ptr<CpuKernel>(std::make_unique<LoopPoolingKernel>(
        p_.kind, p_.count_include_pad, data[0] * data[1], three));
  }

 private:
  static std::unique_ptr<CpuKernel> Onednn(dnnl::algorithm algorithm, const std::vector<Axis>& axes,
                                           const CpuKernelRequest& request) {
    return std::make_unique<OnednnPoolingKernel>(algorithm, axes, request.inputs[0],
                                                 request.outputs[0]);
  }

  std::vector<Axis> Axes(const Shape& data) const {
    std::vector<Axis> axes;
    for (size_t i = 2; i < data.size(); ++i) {
      if (p_.global) {
        axes.push_back({.size = data[i], .kernel = data[i]});
        continue;
      }
      Axis axis{data[i], p_.kernel[i - 2], p_.stride[i - 2], p_.pad[i - 2]};
      const int64_t room = axis.size + 2 * axis.pad - axis.kernel;
      axis.out = (p_.full ? (room + axis.stride - 1) / axis.stride : room / axis.stride) + 1;
      axes.push_back(axis);
    }
    return axes;
  }

  const PoolingParameters p_;
};

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

void AddPooling(OperatorRegistry& registry) { registry.Add({"Pooling"}, ParsePooling); }

}  // namespace trims::predict
