// The CPU's kernels, one file for each family of operators; the table in backend.cc says
// which operator has which.
//
// A Build function is called with an operator of its own name and float32; it and the
// kernel may throw what oneDNN and the standard library throw: the backend, the only
// caller of both, turns that into a Status.
#pragma once

#include <memory>

#include "predict/backend.h"

namespace trims::predict {

std::unique_ptr<Kernel> BuildActivation(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildConvolution(const KernelRequest& request,
                                         const BackendOptions& options);
std::unique_ptr<Kernel> BuildFullyConnected(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildLrn(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildPooling(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildSoftmax(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildSoftmaxActivation(const KernelRequest& request, const BackendOptions&);
std::unique_ptr<Kernel> BuildSoftmaxOutput(const KernelRequest& request, const BackendOptions&);

}  // namespace trims::predict
