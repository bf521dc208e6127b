// The networks that make-model knows: their graphs and the shapes of their weights.
//
// A Network is a value: nodes in topological order, as MXNet numbers them, and
// the tensors that fill them. Building one allocates no weights; weights_file.h
// writes them. Thread-compatible.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace trims::models {

// A weight tensor and the range its random values come from.
struct TensorSpec {
  std::string name;  // Without "arg:".
  std::vector<int64_t> shape;
  float limit = 0;  // Values are uniform in [-limit, limit).

  uint64_t elements() const;
};

// A node of MXNet's graph. "null" is a variable.
struct Node {
  std::string op;
  std::string name;
  std::map<std::string, std::string> attrs;
  std::vector<int> inputs;  // Node numbers; output 0 of each.
  int outputs = 1;          // Hidden ones included.
};

struct Network {
  std::vector<Node> nodes;  // Empty for a set of tensors without a graph.
  std::vector<TensorSpec> tensors;
  std::vector<int64_t> input;  // C, H, W; empty without a graph.
  std::vector<float> mean;     // One per channel.
  float scale = 1;             // Divisor, after the mean.
  float input_limit = 0;       // Test inputs are uniform in [-input_limit, input_limit).
  int classes = 0;

  uint64_t weight_bytes() const;
};

struct NetworkOptions {
  int width_div = 1;   // Divides every layer's width but the last's.
  int image_size = 0;  // 0: the network's own.
  int classes = 0;     // 0: the network's own.
};

// "lenet", "alexnet" or "vgg16". Throws std::invalid_argument, whose text is for
// the user, for another name or an image that is too small for the network.
Network MakeNetwork(const std::string& name, const NetworkOptions& options);

// `tensors` one-dimensional float tensors of `bytes` in all, as equal as whole
// numbers allow, and no graph. Throws std::invalid_argument.
Network MakeSynthetic(uint64_t tensors, uint64_t bytes);

// The graph as Symbol.tojson() of MXNet 1.9.1 writes it, byte for byte.
std::string SymbolJson(const Network& network);

// The model directory's manifest.json.
std::string ManifestJson(const Network& network);

}  // namespace trims::models
