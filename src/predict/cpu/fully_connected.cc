// W lies in the file as (hidden, inputs), which is what a matrix product wants anyway,
// so nothing is lost by using it in place.
#include "predict/op/fully_connected.h"

#include <unordered_map>

#include "predict/cpu/kernels.h"
#include "predict/cpu/onednn.h"

namespace trims::predict {
namespace {

using dnnl::memory;

class FullyConnectedKernel final : public Kernel {
 public:
  FullyConnectedKernel(const FullyConnected& op, const KernelRequest& request)
      : stream_(CpuEngine()) {
    const FullyConnectedParameters& parameters = op.parameters();
    const MatrixShape matrix = op.AsMatrix(request.inputs[0]);
    const memory::desc src_desc = PlainDesc(Shape{matrix.rows, matrix.columns});
    const memory::desc weight_desc = PlainDesc(request.inputs[1]);
    const memory::desc dst_desc = PlainDesc(Shape{matrix.rows, parameters.hidden});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (request.fuse_relu) {
      dnnl::post_ops post_ops;
      post_ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
      attributes.set_post_ops(post_ops);
    }
    using Forward = dnnl::inner_product_forward;
    const auto desc =
        parameters.has_bias
            ? Forward::desc(dnnl::prop_kind::forward_inference, src_desc, weight_desc,
                            PlainDesc(request.inputs[2]), dst_desc)
            : Forward::desc(dnnl::prop_kind::forward_inference, src_desc, weight_desc, dst_desc);
    const Forward::primitive_desc primitive_desc(desc, attributes, CpuEngine());
    primitive_ = Forward(primitive_desc);
    src_ = UnboundMemory(src_desc);
    weight_ = UnboundMemory(weight_desc);
    dst_ = UnboundMemory(dst_desc);
    scratchpad_ = UnboundMemory(primitive_desc.scratchpad_desc());
    scratch_bytes_ = primitive_desc.scratchpad_desc().get_size();
    arguments_ = {{DNNL_ARG_SRC, src_},
                  {DNNL_ARG_WEIGHTS, weight_},
                  {DNNL_ARG_DST, dst_},
                  {DNNL_ARG_SCRATCHPAD, scratchpad_}};
    if (parameters.has_bias) {
      bias_ = UnboundMemory(PlainDesc(request.inputs[2]));
      arguments_.emplace(DNNL_ARG_BIAS, bias_);
    }
  }

  uint64_t scratch_bytes() const override { return scratch_bytes_; }

  Status Run(const KernelArguments& arguments) override {
    BindConst(src_, arguments.inputs[0]);
    BindConst(weight_, arguments.inputs[1]);
    if (arguments.inputs.size() > 2) BindConst(bias_, arguments.inputs[2]);
    dst_.set_data_handle(arguments.outputs[0]);
    scratchpad_.set_data_handle(arguments.scratch);
    primitive_.execute(stream_, arguments_);
    stream_.wait();
    return OkStatus();
  }

 private:
  dnnl::stream stream_;
  dnnl::inner_product_forward primitive_;
  memory src_, weight_, bias_, dst_, scratchpad_;
  std::unordered_map<int, memory> arguments_;
  uint64_t scratch_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> BuildFullyConnected(const KernelRequest& request, const BackendOptions&) {
  return std::make_unique<FullyConnectedKernel>(As<FullyConnected>(request.op), request);
}

}  // namespace trims::predict
