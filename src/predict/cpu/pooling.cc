// oneDNN runs the cases where its rules agree with MXNet's, the loops below run the
// others.
#include "predict/op/pooling.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>

#include "predict/cpu/kernels.h"
#include "predict/cpu/onednn.h"

namespace trims::predict {
namespace {

struct Window {
  int64_t first;   // Inside the image.
  int64_t last;    // One past the end; not above first where nothing is inside.
  int64_t padded;  // Its length when clipped to the padded image.
};

Window WindowAt(const PoolAxis& axis, int64_t position) {
  const int64_t start = position * axis.stride - axis.pad;
  const int64_t end = std::min(start + axis.kernel, axis.size + axis.pad);
  return {std::max<int64_t>(start, 0), std::min(end, axis.size), end - start};
}

bool Overhangs(const PoolAxis& axis) {
  return (axis.out - 1) * axis.stride + axis.kernel > axis.size + 2 * axis.pad;
}
bool EveryWindowTouchesImage(const PoolAxis& axis) {
  return axis.pad < axis.kernel && (axis.out - 1) * axis.stride - axis.pad < axis.size;
}

class LoopPoolingKernel final : public Kernel {
 public:
  // `axes` are depth, height, width; missing ones have size 1.
  LoopPoolingKernel(PoolKind kind, bool count_include_pad, int64_t planes,
                    std::array<PoolAxis, 3> axes)
      : kind_(kind), count_include_pad_(count_include_pad), planes_(planes), axes_(axes) {}

  Status Run(const KernelArguments& arguments) override {
    const auto& [depth, height, width] = axes_;
    const float* in = arguments.In<float>(0);
    float* out = arguments.Out<float>(0);
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
  const std::array<PoolAxis, 3> axes_;
};

class OnednnPoolingKernel final : public Kernel {
 public:
  OnednnPoolingKernel(dnnl::algorithm algorithm, const std::vector<PoolAxis>& axes,
                      const Shape& src_shape, const Shape& dst_shape)
      : stream_(CpuEngine()) {
    dnnl::memory::dims kernel, stride, before, after;
    for (const PoolAxis& axis : axes) {
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

}  // namespace

std::unique_ptr<Kernel> BuildPooling(const KernelRequest& request, const BackendOptions&) {
  const Pooling& op = As<Pooling>(request.op);
  const PoolingParameters& p = op.parameters();
  const Shape& data = request.inputs[0];
  const std::vector<PoolAxis> axes = op.Axes(data);
  const auto every = [&](auto&& rule) { return std::all_of(axes.begin(), axes.end(), rule); };
  const bool plain = every(EveryWindowTouchesImage);
  const bool overhang = !every([](const PoolAxis& axis) { return !Overhangs(axis); });
  if (plain && p.kind == PoolKind::kMax) {
    return std::make_unique<OnednnPoolingKernel>(dnnl::algorithm::pooling_max, axes,
                                                 request.inputs[0], request.outputs[0]);
  }
  if (plain && !overhang && p.kind == PoolKind::kAverage) {
    return std::make_unique<OnednnPoolingKernel>(p.count_include_pad
                                                     ? dnnl::algorithm::pooling_avg_include_padding
                                                     : dnnl::algorithm::pooling_avg_exclude_padding,
                                                 axes, request.inputs[0], request.outputs[0]);
  }
  std::array<PoolAxis, 3> three;
  std::copy(axes.begin(), axes.end(), three.end() - static_cast<ptrdiff_t>(axes.size()));
  return std::make_unique<LoopPoolingKernel>(p.kind, p.count_include_pad, data[0] * data[1], three);
}

}  // namespace trims::predict
