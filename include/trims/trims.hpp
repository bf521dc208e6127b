// The C interface of TrIMS with owners: trims.h in C++20, header-only.
//
//   trims::Expected<trims::Client> client = trims::Client::Connect();
//   if (!client) return Complain(client.error());
//   trims::Expected<trims::Lease> lease = client->Open("vgg16");
//   if (!lease) return Complain(lease.error());
//   if (std::optional<trims::Tensor> tensor = lease->FindTensor("fc8_weight")) {
//     Use(tensor->As<float>());
//   }
//
// Client and Lease are move-only and end what they own; a moved-from or
// default-constructed one is empty. A Tensor borrows from its lease. Nothing here
// throws. Threads, fork and restarts of the daemon: as trims.h says.
#ifndef TRIMS_TRIMS_HPP_
#define TRIMS_TRIMS_HPP_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "trims/trims.h"

namespace trims {
inline namespace abi0 {

// Of the library that is linked: "0.1.0".
inline std::string_view Version() { return trims_version(); }

// Why a call failed. A value.
class Error final {
 public:
  // Takes over `error`, which may be null.
  Error(trims_status status, trims_error* error)
      : status_(status),
        message_(trims_error_message(error)),
        need_bytes_(trims_error_need_bytes(error)),
        free_bytes_(trims_error_free_bytes(error)),
        evictable_bytes_(trims_error_evictable_bytes(error)) {
    trims_error_free(error);
  }

  trims_status status() const { return status_; }
  const std::string& message() const { return message_; }
  // See trims_error_need_bytes.
  uint64_t need_bytes() const { return need_bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t evictable_bytes() const { return evictable_bytes_; }
  // "NOT_FOUND: no model named x"
  std::string ToString() const { return std::string(trims_status_name(status_)) + ": " + message_; }

 private:
  trims_status status_;
  std::string message_;
  uint64_t need_bytes_;
  uint64_t free_bytes_;
  uint64_t evictable_bytes_;
};

// A value or an Error. Using the value of an error is a bug of the caller.
template <typename T>
class [[nodiscard]] Expected final {
 public:
  Expected(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Expected(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() & { return *std::get_if<0>(&state_); }
  const T& operator*() const& { return *std::get_if<0>(&state_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  const Error& error() const { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

class Tensor final {
 public:
  explicit Tensor(const trims_tensor& tensor) : tensor_(tensor) {}

  std::string_view name() const { return {tensor_.name, tensor_.name_size}; }
  trims_dtype dtype() const { return tensor_.dtype; }
  std::string_view dtype_name() const { return trims_dtype_name(tensor_.dtype); }
  std::span<const int64_t> shape() const { return {tensor_.shape, tensor_.rank}; }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(tensor_.data), tensor_.size_bytes};
  }
  // The elements, when T is as large as one; else empty.
  template <typename T>
  std::span<const T> As() const {
    if (trims_dtype_bits(tensor_.dtype) != 8 * sizeof(T)) return {};
    return {static_cast<const T*>(tensor_.data), tensor_.size_bytes / sizeof(T)};
  }
  // Of a lease on a device, where bytes() and As() must not be followed: its CUdeviceptr.
  uint64_t device_pointer() const { return reinterpret_cast<uintptr_t>(tensor_.data); }
  const trims_tensor& c_tensor() const { return tensor_; }

 private:
  trims_tensor tensor_;
};

class Lease final {
 public:
  Lease() = default;
  explicit Lease(trims_lease* lease) : lease_(lease) {}  // Takes ownership.

  std::span<const uint8_t, 32> digest() const {
    return std::span<const uint8_t, 32>(trims_lease_digest(get()), 32);
  }
  std::string_view digest_text() const { return trims_lease_digest_text(get()); }
  uint64_t generation() const { return trims_lease_generation(get()); }
  trims_tier tier() const { return trims_lease_tier(get()); }
  std::string_view device_uuid() const { return trims_lease_device_uuid(get()); }
  int32_t device_ordinal() const { return trims_lease_device_ordinal(get()); }  // -1: host.
  trims_granularity granularity() const { return trims_lease_granularity(get()); }
  uint64_t total_bytes() const { return trims_lease_total_bytes(get()); }
  std::string_view model_dir() const { return trims_lease_model_dir(get()); }
  bool was_loaded() const { return trims_lease_was_loaded(get()) != 0; }
  bool is_attached() const { return trims_lease_is_attached(get()) != 0; }
  uint64_t id() const { return trims_lease_id(get()); }  // As `trims leases` shows it.

  uint32_t extent_count() const { return trims_lease_extent_count(get()); }
  // Empty when there is no such extent.
  std::span<const std::byte> extent(uint32_t index) const {
    trims_extent extent{};
    if (trims_lease_extent(get(), index, &extent) != TRIMS_OK) return {};
    return {static_cast<const std::byte*>(extent.data), extent.size_bytes};
  }

  uint32_t tensor_count() const { return trims_lease_tensor_count(get()); }
  std::optional<Tensor> tensor(uint32_t index) const {
    trims_tensor tensor;
    if (trims_lease_tensor(get(), index, &tensor) != TRIMS_OK) return std::nullopt;
    return Tensor(tensor);
  }
  std::optional<Tensor> FindTensor(const std::string& name) const {
    trims_tensor tensor;
    if (trims_lease_find_tensor(get(), name.c_str(), &tensor) != TRIMS_OK) return std::nullopt;
    return Tensor(tensor);
  }
  uint32_t metadata_count() const { return trims_lease_metadata_count(get()); }
  // Key and value, in order of keys.
  std::optional<std::pair<std::string_view, std::string_view>> metadata(uint32_t index) const {
    const char* key = nullptr;
    const char* value = nullptr;
    if (trims_lease_metadata(get(), index, &key, &value) != TRIMS_OK) return std::nullopt;
    return std::pair<std::string_view, std::string_view>(key, value);
  }
  std::optional<std::string_view> FindMetadata(const std::string& key) const {
    const char* value = trims_lease_find_metadata(get(), key.c_str());
    if (value == nullptr) return std::nullopt;
    return value;
  }

  void set_peak_internal_bytes(uint64_t bytes) {
    trims_lease_set_peak_internal_bytes(get(), bytes);
  }
  // As destruction does; the lease is empty afterwards.
  void Close() { lease_.reset(); }

  trims_lease* get() const { return lease_.get(); }  // Borrowed; null when empty.
  explicit operator bool() const { return lease_ != nullptr; }

 private:
  struct Closer {
    void operator()(trims_lease* lease) const { trims_lease_close(lease); }
  };
  std::unique_ptr<trims_lease, Closer> lease_;
};

// trims_open_options with C++ types.
struct OpenOptions {
  trims_open_options c = TRIMS_OPEN_OPTIONS_INIT;
  // If set, used in place of c.progress; true cancels. Must not throw.
  std::function<bool(trims_phase phase, uint64_t done_bytes, uint64_t total_bytes)> progress = {};
};

class Client final {
 public:
  Client() = default;
  explicit Client(trims_client* client) : client_(client) {}  // Takes ownership.

  static Expected<Client> Connect(
      const trims_connect_options& options = TRIMS_CONNECT_OPTIONS_INIT) {
    trims_client* client = nullptr;
    trims_error* error = nullptr;
    const trims_status status = trims_client_connect(&options, &client, &error);
    if (status != TRIMS_OK) return Error(status, error);
    return Client(client);
  }

  Expected<Lease> Open(const std::string& name, const OpenOptions& options = {}) {
    return Opened(
        [&](const trims_open_options& c, trims_lease** lease, trims_error** error) {
          return trims_lease_open(get(), name.c_str(), &c, lease, error);
        },
        options);
  }
  // `fd` is borrowed.
  Expected<Lease> OpenFile(int fd, const std::string& label, const OpenOptions& options = {}) {
    return Opened(
        [&](const trims_open_options& c, trims_lease** lease, trims_error** error) {
          return trims_lease_open_file(get(), fd, label.c_str(), &c, lease, error);
        },
        options);
  }

  std::optional<Error> Ping() {
    trims_error* error = nullptr;
    const trims_status status = trims_client_ping(get(), &error);
    if (status != TRIMS_OK) return Error(status, error);
    return std::nullopt;
  }
  int poll_fd() { return trims_client_poll_fd(get()); }
  std::optional<Error> Service() {
    trims_error* error = nullptr;
    const trims_status status = trims_client_service(get(), &error);
    if (status != TRIMS_OK) return Error(status, error);
    return std::nullopt;
  }
  std::string_view socket_path() const { return trims_client_socket_path(get()); }
  std::string_view server_version() const { return trims_client_server_version(get()); }
  // Another number after every restart of the daemon's worker.
  uint64_t server_instance() const { return trims_client_server_instance(get()); }

  trims_client* get() const { return client_.get(); }  // Borrowed; null when empty.
  explicit operator bool() const { return client_ != nullptr; }

 private:
  template <typename Call>
  Expected<Lease> Opened(Call call, const OpenOptions& options) {
    trims_open_options c = options.c;
    if (options.progress) {
      c.progress = [](void* user, trims_phase phase, uint64_t done, uint64_t total) {
        return static_cast<const OpenOptions*>(user)->progress(phase, done, total) ? 1 : 0;
      };
      c.progress_user = const_cast<OpenOptions*>(&options);
    }
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    const trims_status status = call(c, &lease, &error);
    if (status != TRIMS_OK) return Error(status, error);
    return Lease(lease);
  }

  struct Disconnecter {
    void operator()(trims_client* client) const { trims_client_disconnect(client); }
  };
  std::unique_ptr<trims_client, Disconnecter> client_;
};

}  // namespace abi0
}  // namespace trims

#endif  // TRIMS_TRIMS_HPP_
