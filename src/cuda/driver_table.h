// The driver's functions that we call, as one table. Private to this folder: the
// only header of the tree that includes cuda.h.
//
// Symbols are looked up under the versioned names that cuda.h maps them to
// (cuMemGetInfo is cuMemGetInfo_v2), so a type always fits its function. They are
// all in drivers for CUDA 11.4 and newer, whatever toolkit built this.
#pragma once

#include <cuda.h>

#include <string>

#include "base/status.h"
#include "cuda/device.h"

namespace trims::cuda {

// cuGetErrorName and cuGetErrorString come first: they explain what fails later.
#define TRIMS_CUDA_FUNCTIONS(F)             \
  F(cuGetErrorName)                         \
  F(cuGetErrorString)                       \
  F(cuInit)                                 \
  F(cuDriverGetVersion)                     \
  F(cuDeviceGetCount)                       \
  F(cuDeviceGet)                            \
  F(cuDeviceGetName)                        \
  F(cuDeviceGetUuid)                        \
  F(cuDeviceGetPCIBusId)                    \
  F(cuDeviceTotalMem)                       \
  F(cuDeviceGetAttribute)                   \
  F(cuDeviceCanAccessPeer)                  \
  F(cuDevicePrimaryCtxRetain)               \
  F(cuDevicePrimaryCtxRelease)              \
  F(cuCtxPushCurrent)                       \
  F(cuCtxPopCurrent)                        \
  F(cuCtxSynchronize)                       \
  F(cuCtxEnablePeerAccess)                  \
  F(cuMemGetInfo)                           \
  F(cuMemGetAllocationGranularity)          \
  F(cuMemCreate)                            \
  F(cuMemRelease)                           \
  F(cuMemExportToShareableHandle)           \
  F(cuMemImportFromShareableHandle)         \
  F(cuMemGetAllocationPropertiesFromHandle) \
  F(cuMemAddressReserve)                    \
  F(cuMemAddressFree)                       \
  F(cuMemMap)                               \
  F(cuMemUnmap)                             \
  F(cuMemSetAccess)                         \
  F(cuMemAlloc)                             \
  F(cuMemFree)                              \
  F(cuMemHostAlloc)                         \
  F(cuMemFreeHost)                          \
  F(cuMemHostRegister)                      \
  F(cuMemHostUnregister)                    \
  F(cuMemcpyHtoDAsync)                      \
  F(cuMemcpyDtoHAsync)                      \
  F(cuMemcpyDtoDAsync)                      \
  F(cuMemcpyPeerAsync)                      \
  F(cuMemsetD8Async)                        \
  F(cuStreamCreate)                         \
  F(cuStreamDestroy)                        \
  F(cuStreamSynchronize)                    \
  F(cuStreamQuery)                          \
  F(cuStreamWaitEvent)                      \
  F(cuEventCreate)                          \
  F(cuEventDestroy)                         \
  F(cuEventRecord)                          \
  F(cuEventQuery)                           \
  F(cuEventSynchronize)                     \
  F(cuModuleLoadData)                       \
  F(cuModuleUnload)                         \
  F(cuModuleGetFunction)                    \
  F(cuLaunchKernel)

struct DriverTable {
#define TRIMS_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  TRIMS_CUDA_FUNCTIONS(TRIMS_CUDA_MEMBER)
#undef TRIMS_CUDA_MEMBER
};

// The table of the loaded driver. Valid once Driver::Load() has succeeded, which
// every object that can reach here proves.
const DriverTable& Table();

// The table even when it is not complete: members that were not found are null.
const DriverTable* PartialTable();

// One retained primary context. Immutable; releases it at the end.
class RetainedContext final {
 public:
  RetainedContext(Device device, CUcontext context)
      : device_(std::move(device)), context_(context) {}
  RetainedContext(const RetainedContext&) = delete;
  RetainedContext& operator=(const RetainedContext&) = delete;
  ~RetainedContext() { static_cast<void>(Table().cuDevicePrimaryCtxRelease(device_.ordinal())); }

  const Device& device() const { return device_; }
  CUcontext context() const { return context_; }

 private:
  const Device device_;
  const CUcontext context_;
};

}  // namespace trims::cuda
