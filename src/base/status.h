// Status and Result<T>: how every function of ours reports failure.
//
// The codes are the canonical ones of gRPC and abseil, with the same numbers,
// so the five translation tables stay trivial. The types are our own and not
// abseil's because the client library lives inside other people's processes,
// may need only libc, and distributions ship abseil's static archives without
// position-independent code. Values; copyable; no thread rule.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace trims {

enum class StatusCode : int32_t {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

// "RESOURCE_EXHAUSTED" and so on; "UNKNOWN" for a number outside the enum.
std::string_view StatusCodeName(StatusCode code);

class [[nodiscard]] Status final {
 public:
  Status() = default;  // OK
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "NOT_FOUND: no model named x", or "OK".
  std::string ToString() const;

  friend bool operator==(const Status&, const Status&) = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return Status(); }
Status InvalidArgumentError(std::string message);
Status NotFoundError(std::string message);
Status AlreadyExistsError(std::string message);
Status PermissionDeniedError(std::string message);
Status ResourceExhaustedError(std::string message);
Status FailedPreconditionError(std::string message);
Status AbortedError(std::string message);
Status OutOfRangeError(std::string message);
Status UnimplementedError(std::string message);
Status InternalError(std::string message);
Status UnavailableError(std::string message);
Status DataLossError(std::string message);
Status DeadlineExceededError(std::string message);
Status CancelledError(std::string message);

// The errno table: `what` names the operation and the object, the system's text
// is appended. ENOENT is NOT_FOUND, EACCES and EPERM PERMISSION_DENIED, ENOMEM,
// ENOSPC, EMFILE, ENFILE and EDQUOT RESOURCE_EXHAUSTED, and so on.
Status ErrnoStatus(int errnum, std::string_view what);

// A value or the reason why there is none. Dereferencing an error aborts.
template <typename T>
class [[nodiscard]] Result final {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : v_(std::in_place_index<1>, std::move(status)) {  // NOLINT
    if (std::get<1>(v_).ok()) {
      std::get<1>(v_) = InternalError("Result built from an OK status without a value");
    }
  }

  bool ok() const { return v_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(v_); }

  T& value() & { return Check(), std::get<0>(v_); }
  const T& value() const& { return Check(), std::get<0>(v_); }
  T&& value() && { return Check(), std::get<0>(std::move(v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  void Check() const {
    if (!ok()) __builtin_trap();
  }
  std::variant<T, Status> v_;
};

}  // namespace trims

#define TRIMS_CONCAT_INNER_(a, b) a##b
#define TRIMS_CONCAT_(a, b) TRIMS_CONCAT_INNER_(a, b)

// Returns from the enclosing function when `expr`, a Status, is not OK.
#define RETURN_IF_ERROR(expr) RETURN_IF_ERROR_IMPL_(TRIMS_CONCAT_(status_, __COUNTER__), expr)
#define RETURN_IF_ERROR_IMPL_(status, expr)              \
  do {                                                   \
    if (::trims::Status status = (expr); !status.ok()) { \
      return status;                                     \
    }                                                    \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): declares x from the value of a Result, or returns its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL_(TRIMS_CONCAT_(result_, __COUNTER__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(result, lhs, expr) \
  auto result = (expr);                           \
  if (!result.ok()) return result.status();       \
  lhs = std::move(result).value()

// Our own bugs: says where and aborts, in every build type.
#define TRIMS_CHECK(condition)                              \
  do {                                                      \
    if (!(condition)) {                                     \
      ::trims::CheckFailed(#condition, __FILE__, __LINE__); \
    }                                                       \
  } while (false)

namespace trims {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);
}  // namespace trims
