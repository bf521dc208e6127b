#include "base/status.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace trims {

std::string_view StatusCodeName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "OK";
    case StatusCode::kCancelled:
      return "CANCELLED";
    case StatusCode::kUnknown:
      return "UNKNOWN";
    case StatusCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case StatusCode::kNotFound:
      return "NOT_FOUND";
    case StatusCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case StatusCode::kPermissionDenied:
      return "PERMISSION_DENIED";
    case StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case StatusCode::kAborted:
      return "ABORTED";
    case StatusCode::kOutOfRange:
      return "OUT_OF_RANGE";
    case StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case StatusCode::kInternal:
      return "INTERNAL";
    case StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case StatusCode::kDataLoss:
      return "DATA_LOSS";
    case StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

std::string Status::ToString() const {
  if (ok()) return "OK";
  std::string text(StatusCodeName(code_));
  if (!message_.empty()) text.append(": ").append(message_);
  return text;
}

#define TRIMS_DEFINE_ERROR_(name)                           \
  Status name##Error(std::string message) {                 \
    return Status(StatusCode::k##name, std::move(message)); \
  }
TRIMS_DEFINE_ERROR_(InvalidArgument)
TRIMS_DEFINE_ERROR_(NotFound)
TRIMS_DEFINE_ERROR_(AlreadyExists)
TRIMS_DEFINE_ERROR_(PermissionDenied)
TRIMS_DEFINE_ERROR_(ResourceExhausted)
TRIMS_DEFINE_ERROR_(FailedPrecondition)
TRIMS_DEFINE_ERROR_(Aborted)
TRIMS_DEFINE_ERROR_(OutOfRange)
TRIMS_DEFINE_ERROR_(Unimplemented)
TRIMS_DEFINE_ERROR_(Internal)
TRIMS_DEFINE_ERROR_(Unavailable)
TRIMS_DEFINE_ERROR_(DataLoss)
TRIMS_DEFINE_ERROR_(DeadlineExceeded)
TRIMS_DEFINE_ERROR_(Cancelled)
#undef TRIMS_DEFINE_ERROR_

Status ErrnoStatus(int errnum, std::string_view what) {
  StatusCode code = StatusCode::kUnknown;
  switch (errnum) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
    case ESRCH:
      code = StatusCode::kNotFound;
      break;
    case EEXIST:
      code = StatusCode::kAlreadyExists;
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = StatusCode::kPermissionDenied;
      break;
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case EDQUOT:
    case ETOOMANYREFS:
    case ENOBUFS:
      code = StatusCode::kResourceExhausted;
      break;
    case EINVAL:
    case EBADF:
    case ENOTSOCK:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
      code = StatusCode::kInvalidArgument;
      break;
    case EBUSY:
    case ETXTBSY:
    case ENOTEMPTY:
      code = StatusCode::kFailedPrecondition;
      break;
    case ETIMEDOUT:
    case EAGAIN:
      code = StatusCode::kDeadlineExceeded;
      break;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
    case EHOSTDOWN:
    case ENETDOWN:
      code = StatusCode::kUnavailable;
      break;
    case ENOSYS:
    case EOPNOTSUPP:
    case EPROTONOSUPPORT:
      code = StatusCode::kUnimplemented;
      break;
    case EIO:
    case EBADMSG:
      code = StatusCode::kDataLoss;
      break;
    case ECANCELED:
    case EINTR:
      code = StatusCode::kCancelled;
      break;
    case ERANGE:
    case EOVERFLOW:
    case EFBIG:
      code = StatusCode::kOutOfRange;
      break;
    default:
      break;
  }
  char buffer[128];
  const char* text = strerror_r(errnum, buffer, sizeof buffer);  // The GNU variant.
  return Status(code, std::string(what) + ": " + text);
}

void CheckFailed(const char* condition, const char* file, int line) {
  // tidy: allow printf, because nothing else can be trusted any more and base has no log.
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace trims
