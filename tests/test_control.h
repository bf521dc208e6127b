// A client of the control plane for tests. Header only.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "trims/v1/control.grpc.pb.h"

namespace trims::testing_support {

class TestControl final {
 public:
  explicit TestControl(const std::string& runtime_dir)
      : stub_(v1::Control::NewStub(grpc::CreateChannel("unix:" + runtime_dir + "/control.sock",
                                                       grpc::InsecureChannelCredentials()))) {}

  v1::Control::Stub& stub() { return *stub_; }

  // Waits for a daemon that is being restarted.
  v1::GetStatusResponse Status() {
    v1::GetStatusResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    last_ = stub_->GetStatus(&context, v1::GetStatusRequest(), &response);
    return response;
  }
  v1::ListResponse List(bool resident_only) {
    v1::ListRequest request;
    request.set_resident_only(resident_only);
    v1::ListResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    last_ = stub_->List(&context, request, &response);
    return response;
  }
  v1::EvictResponse Evict(const std::string& model, bool force = false,
                          const std::string& tier = "") {
    v1::EvictRequest request;
    request.set_model(model);
    request.set_tier(tier);
    request.set_force(force);
    v1::EvictResponse response;
    grpc::ClientContext context;
    last_ = stub_->Evict(&context, request, &response);
    return response;
  }
  v1::PinResponse Pin(const std::string& model, const std::string& tier = "") {
    v1::PinRequest request;
    request.set_model(model);
    request.set_tier(tier);
    v1::PinResponse response;
    grpc::ClientContext context;
    last_ = stub_->Pin(&context, request, &response);
    return response;
  }
  v1::UnpinResponse Unpin(const std::string& model) {
    v1::UnpinRequest request;
    request.set_model(model);
    v1::UnpinResponse response;
    grpc::ClientContext context;
    last_ = stub_->Unpin(&context, request, &response);
    return response;
  }
  v1::LoadProgress Load(const std::string& model, int* messages = nullptr,
                        const std::string& tier = "") {
    v1::LoadRequest request;
    request.set_model(model);
    request.set_tier(tier);
    grpc::ClientContext context;
    auto reader = stub_->Load(&context, request);
    v1::LoadProgress progress, last;
    while (reader->Read(&progress)) {
      last = progress;
      if (messages != nullptr) ++*messages;
    }
    last_ = reader->Finish();
    return last;
  }
  std::vector<v1::VerifyVerdict> Verify(const std::string& model, const std::string& tier = "") {
    v1::VerifyRequest request;
    request.set_model(model);
    request.set_tier(tier);
    grpc::ClientContext context;
    auto reader = stub_->Verify(&context, request);
    std::vector<v1::VerifyVerdict> verdicts;
    v1::VerifyProgress progress;
    while (reader->Read(&progress)) {
      if (progress.has_verdict()) verdicts.push_back(progress.verdict());
    }
    last_ = reader->Finish();
    return verdicts;
  }
  v1::ListLeasesResponse Leases() {
    v1::ListLeasesResponse response;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    last_ = stub_->ListLeases(&context, v1::ListLeasesRequest(), &response);
    return response;
  }
  const grpc::Status& last() const { return last_; }

 private:
  std::unique_ptr<v1::Control::Stub> stub_;
  grpc::Status last_;
};

}  // namespace trims::testing_support
