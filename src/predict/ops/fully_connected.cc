// FullyConnected: y = x·Wᵀ + b. W lies in the file as (num_hidden, inputs), which
// is what a matrix product wants anyway, so nothing is lost by using it in place.
#include <utility>

#include "predict/cpu/onednn.h"
#include "predict/ops/families.h"

namespace trims::predict {
namespace {

using dnnl::memory;

struct FullyConnectedParameters {
  int64_t hidden = 1;
  bool has_bias = true;
  bool flatten = true;
};

// The data seen as a matrix of rows.
struct MatrixShape {
  int64_t rows;
  int64_t columns;
};

MatrixShape AsMatrix(const Shape& data, bool flatten) {
  const int64_t elements = ElementCount(data);
  const int64_t rows = flatten ? data[0] : elements / data.back();
  return {rows, elements / rows};
}

class FullyConnectedKernel final : public CpuKernel {
 public:
  FullyConnectedKernel(const FullyConnectedParameters& parameters, const CpuKernelRequest& request)
      : stream_(CpuEngine()) {
    const MatrixShape matrix = AsMatrix(request.inputs[0], parameters.flatten);
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

class FullyConnected final : public Operator {
 public:
  explicit FullyConnected(const FullyConnectedParameters& parameters) : p_(parameters) {}

  std::vector<std::string> InputNames() const override {
    if (p_.has_bias) return {"data", "weight", "bias"};
    return {"data", "weight"};
  }
  bool CanFuseRelu() const override { return true; }
  // Each output element is a product with one row of the weights.
  uint64_t Work(std::span<const Shape> inputs, std::span<const Shape> outputs) const override {
    return static_cast<uint64_t>(ElementCount(outputs[0])) *
           static_cast<uint64_t>(ElementCount(inputs[1]) / inputs[1][0]);
  }

  Result<std::vector<Shape>> InferShapes(std::span<Shape> inputs) const override {
    const Shape& data = inputs[0];
    const MatrixShape matrix = AsMatrix(data, p_.flatten);
    Shape out = {matrix.rows, p_.hidden};
    if (!p_.flatten) {
      out = data;
      out.back() = p_.hidden;
    }
    RETURN_IF_ERROR(SettleShape(inputs[1], {p_.hidden, matrix.columns}, "weight"));
    if (p_.has_bias) RETURN_IF_ERROR(SettleShape(inputs[2], {p_.hidden}, "bias"));
    RETURN_IF_ERROR(CheckShape(out));
    return std::vector<Shape>{out};
  }

  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    return std::unique_ptr<CpuKernel>(std::make_unique<FullyConnectedKernel>(p_, request));
  }

 private:
  const FullyConnectedParameters p_;
};

std::unique_ptr<Operator> ParseFullyConnected(AttributeReader& reader) {
  FullyConnectedParameters p;
  p.hidden = reader.RequiredInt("num_hidden", {1, kMaxDimension});
  p.has_bias = !reader.Bool("no_bias", false);
  p.flatten = reader.Bool("flatten", true);
  return std::make_unique<FullyConnected>(p);
}

}  // namespace

void AddFullyConnected(OperatorRegistry& registry) {
  registry.Add({"FullyConnected"}, ParseFullyConnected);
}

}  // namespace trims::predict
