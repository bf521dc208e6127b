// Weights stay where they are, in the plain (filters, channels / groups, kernel…)
// layout of the file, because all processes share that one copy: oneDNN then
// multiplies by im2col in cache-sized pieces. Its blocked layouts are faster, but
// need a reordered copy of the weights in every process; `pack_weights` asks for
// that trade, and docs/design/ has the measured difference.
#include "predict/op/convolution.h"

#include <optional>
#include <unordered_map>

#include "predict/cpu/kernels.h"
#include "predict/cpu/onednn.h"

namespace trims::predict {
namespace {

using dnnl::memory;

class ConvolutionKernel final : public Kernel {
 public:
  ConvolutionKernel(const ConvolutionParameters& parameters, const KernelRequest& request,
                    bool pack_weights)
      : stream_(CpuEngine()) {
    const Shape& src_shape = request.inputs[0];
    const Shape& dst_shape = request.outputs[0];
    Shape weight_shape = request.inputs[1];
    if (parameters.groups > 1) {
      weight_shape[0] /= parameters.groups;
      weight_shape.insert(weight_shape.begin(), parameters.groups);
    }
    const memory::desc src_plain = PlainDesc(src_shape);
    const memory::desc weight_plain = PlainDesc(weight_shape);
    const memory::desc dst_plain = PlainDesc(dst_shape);
    memory::dims dilation = parameters.dilate;
    for (int64_t& value : dilation) --value;  // oneDNN counts the gaps.

    const bool pack = pack_weights && request.constants[1] != nullptr;
    const auto any = [](const Shape& shape) {
      return memory::desc(shape, memory::data_type::f32, memory::format_tag::any);
    };
    const memory::desc src_wish = pack ? any(src_shape) : src_plain;
    const memory::desc weight_wish = pack ? any(weight_shape) : weight_plain;
    const memory::desc dst_wish = pack ? any(dst_shape) : dst_plain;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (request.fuse_relu) {
      dnnl::post_ops post_ops;
      post_ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
      attributes.set_post_ops(post_ops);
    }
    using Forward = dnnl::convolution_forward;
    const auto desc =
        parameters.has_bias
            ? Forward::desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct,
                            src_wish, weight_wish, PlainDesc(request.inputs[2]), dst_wish,
                            parameters.stride, dilation, parameters.pad, parameters.pad)
            : Forward::desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct,
                            src_wish, weight_wish, dst_wish, parameters.stride, dilation,
                            parameters.pad, parameters.pad);
    const Forward::primitive_desc primitive_desc(desc, attributes, CpuEngine());
    primitive_ = Forward(primitive_desc);

    uint64_t offset = AlignScratch(primitive_desc.scratchpad_desc().get_size());
    src_ = UnboundMemory(primitive_desc.src_desc());
    weight_ = UnboundMemory(primitive_desc.weights_desc());
    dst_ = UnboundMemory(primitive_desc.dst_desc());
    scratchpad_ = UnboundMemory(primitive_desc.scratchpad_desc());
    arguments_ = {{DNNL_ARG_SRC, src_},
                  {DNNL_ARG_WEIGHTS, weight_},
                  {DNNL_ARG_DST, dst_},
                  {DNNL_ARG_SCRATCHPAD, scratchpad_}};
    if (parameters.has_bias) {
      bias_ = UnboundMemory(PlainDesc(request.inputs[2]));
      arguments_.emplace(DNNL_ARG_BIAS, bias_);
    }
    if (primitive_desc.src_desc() != src_plain) {
      src_reorder_.emplace(src_plain, primitive_desc.src_desc(), offset);
      offset += AlignScratch(primitive_desc.src_desc().get_size());
    }
    if (primitive_desc.dst_desc() != dst_plain) {
      dst_reorder_.emplace(primitive_desc.dst_desc(), dst_plain, offset);
      offset += AlignScratch(primitive_desc.dst_desc().get_size());
    }
    if (primitive_desc.weights_desc() != weight_plain) {
      packed_weight_ = memory(primitive_desc.weights_desc(), CpuEngine());
      memory plain = UnboundMemory(weight_plain);
      BindConst(plain, request.constants[1]);
      dnnl::reorder(plain, *packed_weight_).execute(stream_, plain, *packed_weight_);
      stream_.wait();
      private_bytes_ = primitive_desc.weights_desc().get_size();
      BindConst(weight_, packed_weight_->get_data_handle());
    }
    scratch_bytes_ = offset;
  }

  uint64_t scratch_bytes() const override { return scratch_bytes_; }
  uint64_t private_bytes() const override { return private_bytes_; }

  Status Run(const KernelArguments& arguments) override {
    scratchpad_.set_data_handle(arguments.scratch);
    if (!packed_weight_) BindConst(weight_, arguments.inputs[1]);
    if (arguments.inputs.size() > 2) BindConst(bias_, arguments.inputs[2]);
    if (src_reorder_) {
      BindConst(src_reorder_->from, arguments.inputs[0]);
      src_.set_data_handle(arguments.scratch + src_reorder_->scratch_offset);
      src_reorder_->primitive.execute(stream_, src_reorder_->from, src_);
    } else {
      BindConst(src_, arguments.inputs[0]);
    }
    if (dst_reorder_) {
      dst_.set_data_handle(arguments.scratch + dst_reorder_->scratch_offset);
      dst_reorder_->to.set_data_handle(arguments.outputs[0]);
    } else {
      dst_.set_data_handle(arguments.outputs[0]);
    }
    primitive_.execute(stream_, arguments_);
    if (dst_reorder_) dst_reorder_->primitive.execute(stream_, dst_, dst_reorder_->to);
    stream_.wait();
    return OkStatus();
  }

 private:
  struct Reorder {
    Reorder(const memory::desc& from_desc, const memory::desc& to_desc, uint64_t offset)
        : from(UnboundMemory(from_desc)),
          to(UnboundMemory(to_desc)),
          primitive(dnnl::reorder::primitive_desc(CpuEngine(), from_desc, CpuEngine(), to_desc)),
          scratch_offset(offset) {}
    memory from;
    memory to;
    dnnl::reorder primitive;
    uint64_t scratch_offset;
  };

  dnnl::stream stream_;
  dnnl::convolution_forward primitive_;
  memory src_, weight_, bias_, dst_, scratchpad_;
  std::unordered_map<int, memory> arguments_;
  std::optional<Reorder> src_reorder_;
  std::optional<Reorder> dst_reorder_;
  std::optional<memory> packed_weight_;
  uint64_t scratch_bytes_ = 0;
  uint64_t private_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> BuildConvolution(const KernelRequest& request,
                                         const BackendOptions& options) {
  return std::make_unique<ConvolutionKernel>(As<Convolution>(request.op).parameters(), request,
                                             options.pack_weights);
}

}  // namespace trims::predict
