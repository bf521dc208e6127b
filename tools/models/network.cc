#include "network.h"

#include <cmath>
#include <cstdio>
#include <stdexcept>

namespace trims::models {
namespace {

std::string Pair(int a) { return "(" + std::to_string(a) + ", " + std::to_string(a) + ")"; }

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

// Appends layers one after the other and follows the shape, so that weights get
// their sizes and an impossible size is refused where it occurs.
class Builder final {
 public:
  Builder(int channels, int size, int width_div)
      : channels_(channels), height_(size), width_div_(width_div) {
    last_ = Add({"null", "data", {}, {}, 1});
    network_.input = {channels, size, size};
  }

  // `gain` multiplies He's range sqrt(6 / fan_in), which keeps the mean square
  // of activations through a layer with ReLU.
  void Convolution(const std::string& name, int filters, int kernel, int stride, int pad,
                   double gain = 1) {
    filters = Narrow(filters);
    std::map<std::string, std::string> attrs{{"kernel", Pair(kernel)},
                                             {"num_filter", std::to_string(filters)}};
    if (stride != 1) attrs["stride"] = Pair(stride);
    if (pad != 0) attrs["pad"] = Pair(pad);
    Weighted("Convolution", name, attrs, {filters, channels_, kernel, kernel}, gain);
    height_ = Slide(name, kernel, stride, pad);
    channels_ = filters;
  }
  void Dense(const std::string& name, int hidden, double gain = 1) {
    Weighted("FullyConnected", name, {{"num_hidden", std::to_string(hidden)}},
             {hidden, int64_t{channels_} * height_ * height_}, gain);
    channels_ = hidden;
    height_ = 1;
  }
  void HiddenDense(const std::string& name, int hidden) { Dense(name, Narrow(hidden)); }
  void Activation(const std::string& name, const std::string& type) {
    Chain("Activation", name, {{"act_type", type}});
  }
  void Lrn(const std::string& name) {
    Chain("LRN", name, {{"alpha", "0.0001"}, {"beta", "0.75"}, {"knorm", "2"}, {"nsize", "5"}}, 2);
  }
  void MaxPool(const std::string& name, int kernel, int stride) {
    Chain("Pooling", name,
          {{"kernel", Pair(kernel)}, {"pool_type", "max"}, {"stride", Pair(stride)}}, 2);
    height_ = Slide(name, kernel, stride, 0);
  }
  void Flatten(const std::string& name) { Chain("Flatten", name, {}); }
  void Dropout(const std::string& name) { Chain("Dropout", name, {{"p", "0.5"}}, 2); }

  Network Softmax(int classes) && {
    const int label = Add({"null", "softmax_label", {}, {}, 1});
    Add({"SoftmaxOutput", "softmax", {}, {last_, label}, 1});
    network_.classes = classes;
    return std::move(network_);
  }

 private:
  int Narrow(int width) const { return width > width_div_ ? width / width_div_ : 1; }
  int Add(Node node) {
    network_.nodes.push_back(std::move(node));
    return static_cast<int>(network_.nodes.size()) - 1;
  }
  void Chain(const std::string& op, const std::string& name,
             std::map<std::string, std::string> attrs, int outputs = 1) {
    last_ = Add({op, name, std::move(attrs), {last_}, outputs});
  }
  // MXNet gives the variables it makes for an operator a copy of its attributes.
  void Weighted(const std::string& op, const std::string& name,
                const std::map<std::string, std::string>& attrs, std::vector<int64_t> shape,
                double gain) {
    int64_t fan_in = 1;
    for (size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
    const auto limit = static_cast<float>(std::sqrt(6.0 / static_cast<double>(fan_in)) * gain);
    const int weight = Add({"null", name + "_weight", attrs, {}, 1});
    const int bias = Add({"null", name + "_bias", attrs, {}, 1});
    last_ = Add({op, name, attrs, {last_, weight, bias}, 1});
    network_.tensors.push_back({name + "_bias", {shape[0]}, 0.05f});
    network_.tensors.insert(network_.tensors.end() - 1,
                            {name + "_weight", std::move(shape), limit});
  }
  int Slide(const std::string& name, int kernel, int stride, int pad) const {
    if (height_ + 2 * pad < kernel) {
      throw std::invalid_argument("the image is too small: at layer " + name + " it is " +
                                  std::to_string(height_) + " pixels wide and the kernel " +
                                  std::to_string(kernel) + "; use a larger --image-size");
    }
    return (height_ + 2 * pad - kernel) / stride + 1;
  }

  Network network_;
  int channels_;
  int height_;
  int width_div_;
  int last_ = 0;
};

// Photographs reach these networks as pixel values less the mean, roughly -128
// to 128; the first layer brings them to order one.
constexpr double kPixelGain = 1.0 / 64;

// MXNet's example/image-classification/symbols/lenet.py.
Network LeNet(const NetworkOptions& options) {
  const int classes = options.classes ? options.classes : 10;
  Builder b(1, options.image_size ? options.image_size : 28, options.width_div);
  b.Convolution("conv1", 20, 5, 1, 0);
  b.Activation("tanh1", "tanh");
  b.MaxPool("pool1", 2, 2);
  b.Convolution("conv2", 50, 5, 1, 0);
  b.Activation("tanh2", "tanh");
  b.MaxPool("pool2", 2, 2);
  b.Flatten("flatten");
  b.HiddenDense("fc1", 500);
  b.Activation("tanh3", "tanh");
  b.Dense("fc2", classes);
  Network network = std::move(b).Softmax(classes);
  network.mean = {128};
  network.scale = 128;
  network.input_limit = 1;
  return network;
}

// The single-column AlexNet of MXNet's symbols/alexnet.py: 62,378,344 weights.
Network AlexNet(const NetworkOptions& options) {
  const int classes = options.classes ? options.classes : 1000;
  Builder b(3, options.image_size ? options.image_size : 227, options.width_div);
  b.Convolution("conv1", 96, 11, 4, 0, kPixelGain);
  b.Activation("relu1", "relu");
  b.Lrn("lrn1");
  b.MaxPool("pool1", 3, 2);
  b.Convolution("conv2", 256, 5, 1, 2);
  b.Activation("relu2", "relu");
  b.Lrn("lrn2");
  b.MaxPool("pool2", 3, 2);
  b.Convolution("conv3", 384, 3, 1, 1);
  b.Activation("relu3", "relu");
  b.Convolution("conv4", 384, 3, 1, 1);
  b.Activation("relu4", "relu");
  b.Convolution("conv5", 256, 3, 1, 1);
  b.Activation("relu5", "relu");
  b.MaxPool("pool3", 3, 2);
  b.Flatten("flatten");
  b.HiddenDense("fc1", 4096);
  b.Activation("relu6", "relu");
  b.Dropout("dropout1");
  b.HiddenDense("fc2", 4096);
  b.Activation("relu7", "relu");
  b.Dropout("dropout2");
  b.Dense("fc3", classes, 0.5);  // Keeps the softmax far from one-hot.
  Network network = std::move(b).Softmax(classes);
  network.mean = {123, 117, 104};
  network.input_limit = 128;
  return network;
}

// MXNet's symbols/vgg.py with 16 layers: 138,357,544 weights.
Network Vgg16(const NetworkOptions& options) {
  const int classes = options.classes ? options.classes : 1000;
  Builder b(3, options.image_size ? options.image_size : 224, options.width_div);
  constexpr int kStages[5][2] = {{2, 64}, {2, 128}, {3, 256}, {3, 512}, {3, 512}};
  for (int stage = 0; stage < 5; ++stage) {
    for (int layer = 0; layer < kStages[stage][0]; ++layer) {
      const std::string id = std::to_string(stage + 1) + "_" + std::to_string(layer + 1);
      const bool first = stage == 0 && layer == 0;
      b.Convolution("conv" + id, kStages[stage][1], 3, 1, 1, first ? kPixelGain : 1);
      b.Activation("relu" + id, "relu");
    }
    b.MaxPool("pool" + std::to_string(stage + 1), 2, 2);
  }
  b.Flatten("flatten");
  b.HiddenDense("fc6", 4096);
  b.Activation("relu6", "relu");
  b.Dropout("drop6");
  b.HiddenDense("fc7", 4096);
  b.Activation("relu7", "relu");
  b.Dropout("drop7");
  b.Dense("fc8", classes, 0.25);  // Max pooling raised the mean square on the way.
  Network network = std::move(b).Softmax(classes);
  network.mean = {123.68f, 116.779f, 103.939f};
  network.input_limit = 128;
  return network;
}

// dmlc's JSONWriter puts an array on one line up to ten elements.
std::string NumberArray(const std::vector<int>& numbers) {
  const bool lines = numbers.size() > 10;
  std::string out = "[";
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i != 0) out += ", ";
    if (lines) out += "\n    ";
    out += std::to_string(numbers[i]);
  }
  return out + (lines ? "\n  ]" : "]");
}

std::string Indent(int spaces) { return std::string(static_cast<size_t>(spaces), ' '); }

}  // namespace

uint64_t TensorSpec::elements() const {
  uint64_t product = 1;
  for (const int64_t dim : shape) product *= static_cast<uint64_t>(dim);
  return product;
}

uint64_t Network::weight_bytes() const {
  uint64_t sum = 0;
  for (const TensorSpec& tensor : tensors) sum += tensor.elements() * sizeof(float);
  return sum;
}

Network MakeNetwork(const std::string& name, const NetworkOptions& options) {
  if (name == "lenet") return LeNet(options);
  if (name == "alexnet") return AlexNet(options);
  if (name == "vgg16") return Vgg16(options);
  throw std::invalid_argument("unknown network \"" + name +
                              "\"; expected lenet, alexnet, vgg16 or synthetic");
}

Network MakeSynthetic(uint64_t tensors, uint64_t bytes) {
  if (tensors == 0) throw std::invalid_argument("--tensors must be at least 1");
  if (bytes % sizeof(float) != 0 || bytes / sizeof(float) < tensors) {
    throw std::invalid_argument("--bytes must be a multiple of 4 and at least 4 for each tensor (" +
                                std::to_string(tensors * sizeof(float)) + "); it is " +
                                std::to_string(bytes));
  }
  const uint64_t elements = bytes / sizeof(float);
  Network network;
  network.tensors.reserve(tensors);
  for (uint64_t i = 0; i < tensors; ++i) {
    char name[32];
    std::snprintf(name, sizeof name, "t%06llu", static_cast<unsigned long long>(i));
    const uint64_t length = elements / tensors + (i < elements % tensors ? 1 : 0);
    network.tensors.push_back({name, {static_cast<int64_t>(length)}, 1.0f});
  }
  return network;
}

// The layout is that of dmlc's JSONWriter: a map of one entry stays on its line,
// every ", " that ends a line keeps its space.
std::string SymbolJson(const Network& network) {
  std::string out = "{\n  \"nodes\": [";
  std::vector<int> arguments;
  std::vector<int> rows{0};
  for (size_t i = 0; i < network.nodes.size(); ++i) {
    const Node& node = network.nodes[i];
    out += (i ? ", \n    {\n" : "\n    {\n");
    out += Indent(6) + "\"op\": \"" + node.op + "\", \n";
    out += Indent(6) + "\"name\": \"" + node.name + "\", \n";
    if (!node.attrs.empty()) {
      const bool lines = node.attrs.size() > 1;
      out += Indent(6) + "\"attrs\": {";
      bool first = true;
      for (const auto& [key, value] : node.attrs) {
        if (!first) out += ", ";
        if (lines) out += "\n" + Indent(8);
        out += "\"" + key + "\": \"" + value + "\"";
        first = false;
      }
      out += lines ? "\n" + Indent(6) + "}, \n" : "}, \n";
    }
    out += Indent(6) + "\"inputs\": [";
    for (size_t j = 0; j < node.inputs.size(); ++j) {
      out += (j ? ", [" : "[") + std::to_string(node.inputs[j]) + ", 0, 0]";
    }
    out += "]\n    }";
    if (node.op == "null") arguments.push_back(static_cast<int>(i));
    rows.push_back(rows.back() + node.outputs);
  }
  out += "\n  ], \n  \"arg_nodes\": " + NumberArray(arguments) + ", \n";
  out += "  \"node_row_ptr\": " + NumberArray(rows) + ", \n";
  out += "  \"heads\": [[" + std::to_string(network.nodes.size() - 1) + ", 0, 0]], \n";
  out += "  \"attrs\": {\"mxnet_version\": [\"int\", 10901]}\n}";
  return out;
}

std::string ManifestJson(const Network& network) {
  std::string out = "{\"inputs\": [{\"dimensions\": [";
  for (size_t i = 0; i < network.input.size(); ++i) {
    out += (i ? ", " : "") + std::to_string(network.input[i]);
  }
  out += "], \"mean\": [";
  for (size_t i = 0; i < network.mean.size(); ++i) {
    out += (i ? ", " : "") + Number(network.mean[i]);
  }
  out += "], \"scale\": " + Number(network.scale) + "}]}\n";
  return out;
}

}  // namespace trims::models
