// The C boundary: checks every argument, turns every Status and exception into
// -1 and a message, and owns what handles stand for. All meaning is in Predictor.
#include "mxnet/c_predict_api.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "format/model_files.h"
#include "format/mxnet_symbol.h"
#include "predict/backend.h"
#include "predict/lease_weights.h"
#include "predict/op/registry.h"
#include "predict/predictor.h"

namespace {

using trims::InvalidArgumentError;
using trims::OkStatus;
using trims::Result;
using trims::Status;
using trims::StatusCode;
using trims::predict::InputShapes;
using trims::predict::Shape;

// --- Errors ------------------------------------------------------------------

thread_local std::string last_error;
thread_local bool last_error_lost = false;  // There was no memory to say what was wrong.

int SetLastError(const char* function, const char* message) noexcept {
  try {
    last_error = std::string(function) + ": " + message;
    last_error_lost = false;
  } catch (...) {
    last_error_lost = true;
  }
  return -1;
}

template <typename F>
int Call(const char* function, F&& f) noexcept {
  try {
    const Status status = f();
    if (status.ok()) return 0;
    return SetLastError(function, status.message().c_str());
  } catch (const std::bad_alloc&) {
    return SetLastError(function, "out of memory");
  } catch (const std::exception& error) {
    return SetLastError(function, error.what());
  } catch (...) {
    return SetLastError(function, "unknown exception");
  }
}

Status RequireArgument(const void* pointer, const char* name) {
  if (pointer != nullptr) return OkStatus();
  return InvalidArgumentError(std::string("argument ") + name + " is NULL");
}

// --- Handles -----------------------------------------------------------------

// Knows every live handle of one kind, so that a stale or foreign pointer is an
// error. Holding the object by shared_ptr keeps it alive through a call that races
// with its freeing.
template <typename T>
class HandleTable final {
 public:
  void* Add(std::shared_ptr<T> object) {
    void* const handle = object.get();
    const trims::MutexLock lock(mutex_);
    objects_.emplace(handle, std::move(object));
    return handle;
  }
  Result<std::shared_ptr<T>> Find(void* handle) const {
    const trims::MutexLock lock(mutex_);
    const auto it = objects_.find(handle);
    if (it == objects_.end()) return Unknown(handle);
    return it->second;
  }
  // The object outlives the lock: ending a lease must not hold up other handles.
  Status Remove(void* handle) {
    std::shared_ptr<T> object;
    const trims::MutexLock lock(mutex_);
    const auto it = objects_.find(handle);
    if (it == objects_.end()) return Unknown(handle);
    object = std::move(it->second);
    objects_.erase(it);
    return OkStatus();
  }

 private:
  static Status Unknown(void* handle) {
    return InvalidArgumentError(handle == nullptr ? "the handle is NULL"
                                                  : "the handle is not of a live object: was it "
                                                    "freed before?");
  }

  mutable trims::Mutex mutex_;
  std::unordered_map<void*, std::shared_ptr<T>> objects_ TRIMS_GUARDED_BY(mutex_);
};

struct PredictorObject {
  std::unique_ptr<trims::predict::Predictor> predictor;
  std::vector<mx_uint> shape;  // What MXPredGetOutputShape pointed to last.
};

struct ArrayList {
  struct Array {
    std::string key;
    std::vector<mx_float> elements;
    std::vector<mx_uint> shape;
  };
  std::vector<Array> arrays;
};

// Never destroyed: a program may free handles from its own static destructors.
HandleTable<PredictorObject>& Predictors() {
  static auto* const table = new HandleTable<PredictorObject>();
  return *table;
}
HandleTable<ArrayList>& ArrayLists() {
  static auto* const table = new HandleTable<ArrayList>();
  return *table;
}

// --- Environment -------------------------------------------------------------

// Unset and empty are the same, as they were in 2019.
std::string Variable(const char* name, const std::string& default_value) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? default_value : text;
}

Result<bool> SharingEnabled() {
  const std::string text = Variable("UPR_ENABLED", "true");
  const Result<bool> enabled = trims::format::ParseBoolAttribute(text);
  if (!enabled.ok()) {
    return InvalidArgumentError("UPR_ENABLED='" + text + "': true, false, 1 or 0 was expected");
  }
  return enabled;
}

std::string ModelName() { return Variable("UPR_MODEL_NAME", "bvlc_alexnet_1.0"); }

std::string ModelNameOrigin() {
  const char* text = std::getenv("UPR_MODEL_NAME");
  return text == nullptr || *text == '\0' ? " (UPR_MODEL_NAME is not set; this is its default)"
                                          : " (from UPR_MODEL_NAME)";
}

Result<std::shared_ptr<trims::predict::WeightProvider>> LeaseModel() {
  const std::string granularity = Variable("UPR_SHARING_GRANULARITY", "model");
  trims::predict::LeaseWeightsOptions options;
  const Result<trims_granularity> parsed = trims::predict::ParseGranularity(granularity);
  if (!parsed.ok()) {
    return InvalidArgumentError("UPR_SHARING_GRANULARITY: " + parsed.status().message());
  }
  options.granularity = *parsed;
  Result<std::shared_ptr<trims::predict::LeaseWeights>> weights =
      trims::predict::LeaseWeights::Open(ModelName(), options);
  if (weights.ok()) {
    return std::shared_ptr<trims::predict::WeightProvider>(*std::move(weights));
  }
  const Status& status = weights.status();
  std::string message =
      "leasing model '" + ModelName() + "'" + ModelNameOrigin() + ": " + status.message();
  if (status.code() == StatusCode::kUnavailable) {
    message += ". Without a daemon, UPR_ENABLED=false loads the weights into this process";
  }
  return Status(status.code(), message);
}

Result<std::shared_ptr<trims::predict::WeightProvider>> LoadModel(const void* param_bytes,
                                                                  int param_size) {
  using trims::predict::FileWeights;
  Result<std::shared_ptr<FileWeights>> weights = InvalidArgumentError("");
  if (param_bytes != nullptr) {
    if (param_size < 0) {
      return InvalidArgumentError("param_size is " + std::to_string(param_size));
    }
    weights = FileWeights::FromBytes(
        {static_cast<const std::byte*>(param_bytes), static_cast<size_t>(param_size)},
        "param_bytes");
  } else {
    const Result<std::string> directory = trims::format::FindModelDirectory(
        Variable("UPR_BASE_DIR", Variable("HOME", "") + "/carml/data/mxnet"), ModelName());
    weights = directory.ok() ? FileWeights::FromPath(*directory, ModelName()) : directory.status();
    if (!weights.ok()) {
      return Status(weights.status().code(),
                    "param_bytes is NULL, so model '" + ModelName() + "'" + ModelNameOrigin() +
                        " was looked for in UPR_BASE_DIR: " + weights.status().message() +
                        "; what `trims add` named, only a daemon finds (UPR_ENABLED=true)");
    }
  }
  if (!weights.ok()) return weights.status();
  return std::shared_ptr<trims::predict::WeightProvider>(*std::move(weights));
}

// --- Arguments ---------------------------------------------------------------

Result<InputShapes> ReadShapes(mx_uint count, const char** keys, const mx_uint* indptr,
                               const mx_uint* dims) {
  InputShapes shapes;
  if (count == 0) return shapes;
  RETURN_IF_ERROR(RequireArgument(keys, "input_keys"));
  RETURN_IF_ERROR(RequireArgument(indptr, "input_shape_indptr"));
  RETURN_IF_ERROR(RequireArgument(dims, "input_shape_data"));
  for (mx_uint i = 0; i < count; ++i) {
    RETURN_IF_ERROR(RequireArgument(keys[i], "input_keys[i]"));
    if (indptr[i + 1] < indptr[i] || indptr[i + 1] - indptr[i] > trims::predict::kMaxShapeRank) {
      return InvalidArgumentError("input_shape_indptr gives input '" + std::string(keys[i]) +
                                  "' the range [" + std::to_string(indptr[i]) + ", " +
                                  std::to_string(indptr[i + 1]) + "), which is not 0 to " +
                                  std::to_string(trims::predict::kMaxShapeRank) + " dimensions");
    }
    shapes[keys[i]] = Shape(dims + indptr[i], dims + indptr[i + 1]);
  }
  return shapes;
}

// Opens the device's backend and lets it go: an error before weights are leased for it.
Result<trims::predict::Device> CheckDevice(int dev_type, int dev_id) {
  using trims::predict::DeviceKind;
  if (dev_type == 1) return trims::predict::Device{DeviceKind::kCpu};
  if (dev_type != 2) {
    return InvalidArgumentError("dev_type " + std::to_string(dev_type) + ": 1 (CPU) was expected");
  }
  const trims::predict::Device device{DeviceKind::kGpu, dev_id};
  if (const Status status = trims::predict::OpenBackend(device, {}).status(); !status.ok()) {
    return Status(status.code(),
                  "dev_type 2 (GPU): " + status.message() + "; use dev_type 1 (CPU)");
  }
  return device;
}

struct Creation {
  const char* symbol_json;
  const void* param_bytes;
  int param_size;
  int dev_type;
  int dev_id;
};

Status Create(const Creation& creation, const InputShapes& inputs, std::vector<std::string> outputs,
              PredictorHandle* out) {
  RETURN_IF_ERROR(RequireArgument(creation.symbol_json, "symbol_json_str"));
  ASSIGN_OR_RETURN(const trims::predict::Device device,
                   CheckDevice(creation.dev_type, creation.dev_id));
  ASSIGN_OR_RETURN(trims::predict::PredictorOptions options,
                   trims::predict::PredictorOptions::FromEnvironment());
  options.outputs = std::move(outputs);
  options.device = device;
  ASSIGN_OR_RETURN(const bool sharing, SharingEnabled());
  // The graph first: a mistake in it needs no weights to be found.
  ASSIGN_OR_RETURN(std::shared_ptr<const trims::predict::Graph> graph,
                   trims::predict::Graph::FromJson(creation.symbol_json));
  ASSIGN_OR_RETURN(std::shared_ptr<trims::predict::WeightProvider> weights,
                   sharing ? LeaseModel() : LoadModel(creation.param_bytes, creation.param_size));
  auto object = std::make_shared<PredictorObject>();
  ASSIGN_OR_RETURN(object->predictor, trims::predict::Predictor::Create(
                                          std::move(graph), std::move(weights), inputs, options));
  *out = Predictors().Add(std::move(object));
  return OkStatus();
}

// The parser numbers the arrays of a list without names. Such a list ends with
// a name count of 0 right after its last array.
Result<bool> HasNames(const trims::format::ByteSource& source,
                      const trims::format::FileIndex& index) {
  uint64_t end = 0;
  for (const trims::format::TensorEntry& entry : index.tensors) {
    end = std::max(end, entry.offset + entry.size_bytes);
  }
  uint64_t count = 0;
  if (index.tensors.empty() || end + sizeof count > source.size()) return false;
  RETURN_IF_ERROR(source.ReadAt(end, std::as_writable_bytes(std::span(&count, 1))));
  return count != 0;
}

Status ReadArrayList(const char* bytes, int size, ArrayList& list) {
  const trims::format::MemorySource source(
      std::as_bytes(std::span(bytes, static_cast<size_t>(size))), "nd_file_bytes");
  ASSIGN_OR_RETURN(const trims::format::FileIndex index, trims::format::ParseMxnetParams(source));
  ASSIGN_OR_RETURN(const bool named, HasNames(source, index));
  for (const trims::format::TensorEntry& entry : index.tensors) {
    ArrayList::Array array;
    if (named) array.key = entry.name;
    const std::string where = "array '" + entry.name + "': ";
    size_t count = 1;
    for (const int64_t dimension : entry.shape) {
      if (dimension > UINT32_MAX) {
        return InvalidArgumentError(where + "dimension " + std::to_string(dimension) +
                                    " does not fit mx_uint");
      }
      array.shape.push_back(static_cast<mx_uint>(dimension));
      count *= static_cast<size_t>(dimension);
    }
    array.elements.resize(count);
    const Status status = trims::predict::ConvertToFloat(
        entry.dtype, reinterpret_cast<const std::byte*>(bytes) + entry.offset, count,
        array.elements.data());
    if (!status.ok()) return Status(status.code(), where + status.message());
    list.arrays.push_back(std::move(array));
  }
  return OkStatus();
}

}  // namespace

extern "C" {

const char* MXGetLastError(void) { return last_error_lost ? "out of memory" : last_error.c_str(); }

int MXPredInit(void) {
  return Call("MXPredInit", [] {
    trims::predict::OperatorRegistry::Get();
    return trims::predict::OpenBackend({}, {}).status();
  });
}

int MXPredCreate(const char* symbol_json_str, const void* param_bytes, int param_size, int dev_type,
                 int dev_id, mx_uint num_input_nodes, const char** input_keys,
                 const mx_uint* input_shape_indptr, const mx_uint* input_shape_data,
                 PredictorHandle* out) {
  return Call("MXPredCreate", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(out, "out"));
    ASSIGN_OR_RETURN(const InputShapes inputs,
                     ReadShapes(num_input_nodes, input_keys, input_shape_indptr, input_shape_data));
    return Create({symbol_json_str, param_bytes, param_size, dev_type, dev_id}, inputs, {}, out);
  });
}

int MXPredCreatePartialOut(const char* symbol_json_str, const void* param_bytes, int param_size,
                           int dev_type, int dev_id, mx_uint num_input_nodes,
                           const char** input_keys, const mx_uint* input_shape_indptr,
                           const mx_uint* input_shape_data, mx_uint num_output_nodes,
                           const char** output_keys, PredictorHandle* out) {
  return Call("MXPredCreatePartialOut", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(out, "out"));
    ASSIGN_OR_RETURN(const InputShapes inputs,
                     ReadShapes(num_input_nodes, input_keys, input_shape_indptr, input_shape_data));
    std::vector<std::string> outputs;
    if (num_output_nodes > 0) RETURN_IF_ERROR(RequireArgument(output_keys, "output_keys"));
    for (mx_uint i = 0; i < num_output_nodes; ++i) {
      RETURN_IF_ERROR(RequireArgument(output_keys[i], "output_keys[i]"));
      outputs.emplace_back(output_keys[i]);
    }
    return Create({symbol_json_str, param_bytes, param_size, dev_type, dev_id}, inputs,
                  std::move(outputs), out);
  });
}

int MXPredReshape(mx_uint num_input_nodes, const char** input_keys,
                  const mx_uint* input_shape_indptr, const mx_uint* input_shape_data,
                  PredictorHandle handle, PredictorHandle* out) {
  return Call("MXPredReshape", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(out, "out"));
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> old, Predictors().Find(handle));
    ASSIGN_OR_RETURN(const InputShapes inputs,
                     ReadShapes(num_input_nodes, input_keys, input_shape_indptr, input_shape_data));
    auto object = std::make_shared<PredictorObject>();
    ASSIGN_OR_RETURN(object->predictor, old->predictor->Reshape(inputs));
    *out = Predictors().Add(std::move(object));
    return OkStatus();
  });
}

int MXPredGetOutputShape(PredictorHandle handle, mx_uint index, mx_uint** shape_data,
                         mx_uint* shape_ndim) {
  return Call("MXPredGetOutputShape", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(shape_data, "shape_data"));
    RETURN_IF_ERROR(RequireArgument(shape_ndim, "shape_ndim"));
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> object, Predictors().Find(handle));
    ASSIGN_OR_RETURN(const Shape shape, object->predictor->OutputShape(index));
    object->shape.assign(shape.begin(), shape.end());
    *shape_data = object->shape.data();
    *shape_ndim = static_cast<mx_uint>(object->shape.size());
    return OkStatus();
  });
}

int MXPredSetInput(PredictorHandle handle, const char* key, const mx_float* data, mx_uint size) {
  return Call("MXPredSetInput", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(key, "key"));
    RETURN_IF_ERROR(RequireArgument(data, "data"));
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> object, Predictors().Find(handle));
    return object->predictor->SetInput(key, {data, size});
  });
}

int MXPredForward(PredictorHandle handle) {
  return Call("MXPredForward", [&]() -> Status {
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> object, Predictors().Find(handle));
    return object->predictor->Forward();
  });
}

int MXPredPartialForward(PredictorHandle handle, int step, int* step_left) {
  return Call("MXPredPartialForward", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(step_left, "step_left"));
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> object, Predictors().Find(handle));
    ASSIGN_OR_RETURN(*step_left, object->predictor->PartialForward(step));
    return OkStatus();
  });
}

int MXPredGetOutput(PredictorHandle handle, mx_uint index, mx_float* data, mx_uint size) {
  return Call("MXPredGetOutput", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(data, "data"));
    ASSIGN_OR_RETURN(const std::shared_ptr<PredictorObject> object, Predictors().Find(handle));
    return object->predictor->GetOutput(index, {data, size});
  });
}

int MXPredFree(PredictorHandle handle) {
  return Call("MXPredFree", [&] { return Predictors().Remove(handle); });
}

int MXNDListCreate(const char* nd_file_bytes, int nd_file_size, NDListHandle* out,
                   mx_uint* out_length) {
  return Call("MXNDListCreate", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(nd_file_bytes, "nd_file_bytes"));
    RETURN_IF_ERROR(RequireArgument(out, "out"));
    RETURN_IF_ERROR(RequireArgument(out_length, "out_length"));
    if (nd_file_size < 0) {
      return InvalidArgumentError("nd_file_size is " + std::to_string(nd_file_size));
    }
    auto list = std::make_shared<ArrayList>();
    RETURN_IF_ERROR(ReadArrayList(nd_file_bytes, nd_file_size, *list));
    const auto length = static_cast<mx_uint>(list->arrays.size());
    *out = ArrayLists().Add(std::move(list));
    *out_length = length;
    return OkStatus();
  });
}

int MXNDListGet(NDListHandle handle, mx_uint index, const char** out_key, const mx_float** out_data,
                const mx_uint** out_shape, mx_uint* out_ndim) {
  return Call("MXNDListGet", [&]() -> Status {
    RETURN_IF_ERROR(RequireArgument(out_key, "out_key"));
    RETURN_IF_ERROR(RequireArgument(out_data, "out_data"));
    RETURN_IF_ERROR(RequireArgument(out_shape, "out_shape"));
    RETURN_IF_ERROR(RequireArgument(out_ndim, "out_ndim"));
    ASSIGN_OR_RETURN(const std::shared_ptr<ArrayList> list, ArrayLists().Find(handle));
    if (index >= list->arrays.size()) {
      return trims::OutOfRangeError("array " + std::to_string(index) +
                                    " does not exist; there are " +
                                    std::to_string(list->arrays.size()));
    }
    const ArrayList::Array& array = list->arrays[index];
    *out_key = array.key.c_str();
    *out_data = array.elements.data();
    *out_shape = array.shape.data();
    *out_ndim = static_cast<mx_uint>(array.shape.size());
    return OkStatus();
  });
}

int MXNDListFree(NDListHandle handle) {
  return Call("MXNDListFree", [&] { return ArrayLists().Remove(handle); });
}

}  // extern "C"
