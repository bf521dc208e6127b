// Convolution: cross-correlation over one, two or three spatial dimensions, with
// groups, stride, dilation and zero padding.
//
// Weights stay where they are, in the plain (filters, channels / groups, kernel…)
// layout of the file, because all processes share that one copy: oneDNN then
// multiplies by im2col in cache-sized pieces. Its blocked layouts are faster, but
// need a reordered copy of the weights in every process; `pack_weights` asks for
// that trade, and docs/design/ has the measured difference.
#include <optional>
#include <utility>

#include "predict/cpu/onednn.h"
#include "predict/ops/families.h"

namespace trims::predict {
namespace {

using dnnl::memory;

struct ConvolutionParameters {
  std::vector<int64_t> kernel;
  std::vector<int64_t> stride;
  std::vector<int64_t> dilate;
  std::vector<int64_t> pad;
  int64_t filters = 1;
  int64_t groups = 1;
  bool has_bias = true;
};

class ConvolutionKernel final : public CpuKernel {
 public:
  ConvolutionKernel(const ConvolutionParameters& parameters, const CpuKernelRequest& request)
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

    const bool pack = request.pack_weights && request.constants[1] != nullptr;
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

class Convolution final : public Operator {
 public:
  explicit Convolution(ConvolutionParameters parameters) : p_(std::move(parameters)) {}

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

  Result<std::unique_ptr<CpuKernel>> BuildCpuKernel(
      const CpuKernelRequest& request) const override {
    return std::unique_ptr<CpuKernel>(std::make_unique<ConvolutionKernel>(p_, request));
  }

 private:
  const ConvolutionParameters p_;
};

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

void AddConvolution(OperatorRegistry& registry) { registry.Add({"Convolution"}, ParseConvolution); }

}  // namespace trims::predict
