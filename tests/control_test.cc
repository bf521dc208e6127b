// The control plane of a real daemon.
#include <gtest/gtest.h>

#include "tests/test_control.h"
#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

class ControlTest : public testing::Test {
 protected:
  ControlTest() : control_(daemon_.runtime_dir()) {
    daemon_.WriteModel("m", model_);
    client_ = daemon_.Connect();
  }
  ~ControlTest() override { trims_client_disconnect(client_); }
  trims_lease* Open(const std::string& name) {
    trims_lease* lease = nullptr;
    trims_error* error = nullptr;
    EXPECT_EQ(trims_lease_open(client_, name.c_str(), nullptr, &lease, &error), TRIMS_OK)
        << trims_error_message(error);
    return lease;
  }
  const std::vector<format::TestTensor> model_ = PatternModel(80, 4, 500'000);
  TestDaemon daemon_;
  TestControl control_;
  trims_client* client_ = nullptr;
};

TEST_F(ControlTest, LoadBringsAModelInWithoutALeaseAndSaysWhenItWasThere) {
  int messages = 0;
  v1::LoadProgress progress = control_.Load("m", &messages);
  ASSERT_TRUE(control_.last().ok()) << control_.last().error_message();
  EXPECT_GE(messages, 2);
  EXPECT_EQ(progress.phase(), v1::LOAD_PHASE_READY);
  EXPECT_FALSE(progress.already_resident());
  EXPECT_EQ(progress.model().replicas(0).state(), v1::REPLICA_STATE_READY);
  EXPECT_EQ(progress.model().replicas(0).leases(), 0u);
  EXPECT_EQ(control_.Status().leases(), 0u);
  progress = control_.Load("m");
  EXPECT_TRUE(progress.already_resident());
  trims_lease* lease = Open("m");
  EXPECT_FALSE(trims_lease_was_loaded(lease));
  trims_lease_close(lease);
}

TEST_F(ControlTest, ListAndInfoTellWhatIsKnownAndWhatIsResident) {
  v1::ListResponse all = control_.List(false);
  ASSERT_EQ(all.models_size(), 1);
  EXPECT_EQ(all.models(0).name(), "m");
  EXPECT_EQ(all.models(0).origin(), v1::MODEL_ORIGIN_BASE_DIR);
  EXPECT_EQ(control_.List(true).models_size(), 0);
  v1::InfoRequest request;
  request.set_model("m");
  request.set_include_tensors(true);
  v1::InfoResponse before, after;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(control_.stub().Info(&context, request, &before).ok());
  }
  EXPECT_EQ(before.model().digest(), "");  // Headers only: nobody has read the bytes yet.
  EXPECT_EQ(before.model().tensor_count(), 4u);
  EXPECT_EQ(before.model().weight_bytes(), 2'000'000u);
  EXPECT_EQ(before.tensors_size(), 4);
  trims_lease* lease = Open("m");
  {
    grpc::ClientContext context;
    ASSERT_TRUE(control_.stub().Info(&context, request, &after).ok());
  }
  EXPECT_EQ(after.model().digest(), trims_lease_digest_text(lease));
  EXPECT_EQ(after.tensors(0).dtype(), "U8");
  EXPECT_EQ(after.leases_size(), 1);
  EXPECT_EQ(after.leases(0).pid(), ::getpid());
  EXPECT_EQ(after.leases(0).uid(), ::geteuid());
  trims_lease_close(lease);
}

TEST_F(ControlTest, EvictRefusesWhatIsLeasedAndNamesTheHolderAndForceDrains) {
  trims_lease* lease = Open("m");
  control_.Evict("m");
  EXPECT_EQ(control_.last().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(control_.last().error_message().find("pid " + std::to_string(::getpid())),
            std::string::npos)
      << control_.last().error_message();
  const v1::EvictResponse evicted = control_.Evict("m", /*force=*/true);
  ASSERT_TRUE(control_.last().ok()) << control_.last().error_message();
  EXPECT_TRUE(evicted.replicas(0).draining());
  EXPECT_TRUE(HoldsModel(lease, model_));
  EXPECT_GT(control_.Status().tiers(0).used_bytes(), 0u);  // Accounted as long as it is held.
  trims_lease_close(lease);
  EXPECT_TRUE(Eventually([&] { return control_.Status().tiers(0).used_bytes() == 0; }));
  control_.Evict("m");
  EXPECT_EQ(control_.last().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ControlTest, PinsHoldThroughEvictionAndThroughAWorkersDeath) {
  control_.Pin("m");
  ASSERT_TRUE(control_.last().ok()) << control_.last().error_message();
  control_.Load("m");
  control_.Evict("m");
  EXPECT_EQ(control_.last().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  daemon_.KillWorker();
  control_.Status();
  control_.Evict("m");
  EXPECT_EQ(control_.last().error_code(), grpc::StatusCode::FAILED_PRECONDITION)
      << control_.last().error_message();
  EXPECT_TRUE(control_.List(true).models(0).pinned());
  control_.Unpin("m");
  EXPECT_TRUE(control_.last().ok());
  EXPECT_TRUE(Eventually([&] {
    control_.Evict("m");
    return control_.last().ok();
  }));
}

TEST_F(ControlTest, VerifyFindsIntactModelsIntact) {
  control_.Load("m");
  const auto verdicts = control_.Verify("m");
  ASSERT_TRUE(control_.last().ok()) << control_.last().error_message();
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_TRUE(verdicts[0].intact());
  EXPECT_EQ(verdicts[0].model(), "m");
}

TEST_F(ControlTest, AddGivesANameAndRemoveTakesItAndItsMemoryAway) {
  const std::string path = daemon_.root() + "/elsewhere.safetensors";
  std::ofstream(path, std::ios::binary) << format::WriteSafetensors(PatternModel(81, 2, 1000));
  v1::AddRequest add;
  add.set_name("team/extra:2");
  add.set_path(path);
  v1::AddResponse added;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(control_.stub().Add(&context, add, &added).ok());
  }
  EXPECT_EQ(added.model().tensor_count(), 2u);
  trims_lease* lease = Open("team/extra:2");
  EXPECT_TRUE(HoldsModel(lease, PatternModel(81, 2, 1000)));
  trims_lease_close(lease);
  v1::RemoveRequest remove;
  remove.set_name("team/extra:2");
  v1::RemoveResponse removed;
  EXPECT_TRUE(Eventually([&] { return control_.Status().leases() == 0; }));
  {
    grpc::ClientContext context;
    const grpc::Status status = control_.stub().Remove(&context, remove, &removed);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(control_.Status().tiers(0).used_bytes(), 0u);
  trims_lease* gone = nullptr;
  EXPECT_EQ(trims_lease_open(client_, "team/extra:2", nullptr, &gone, nullptr), TRIMS_NOT_FOUND);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(ControlTest, AddRefusesBadFilesNowAndTakenNames) {
  v1::AddResponse response;
  for (const auto& [name, path, code] :
       std::vector<std::tuple<std::string, std::string, grpc::StatusCode>>{
           {"x", "/etc/passwd", grpc::StatusCode::INVALID_ARGUMENT},
           {"x", "relative.safetensors", grpc::StatusCode::INVALID_ARGUMENT},
           {"x", daemon_.root() + "/absent", grpc::StatusCode::NOT_FOUND},
           {"../x", daemon_.base_dir() + "/m", grpc::StatusCode::INVALID_ARGUMENT},
           {"m", daemon_.base_dir() + "/m/model.safetensors", grpc::StatusCode::ALREADY_EXISTS}}) {
    v1::AddRequest add;
    add.set_name(name);
    add.set_path(path);
    grpc::ClientContext context;
    const grpc::Status status = control_.stub().Add(&context, add, &response);
    EXPECT_EQ(status.error_code(), code) << name << " " << path << ": " << status.error_message();
  }
}

TEST_F(ControlTest, WatchSeesLoadsLeasesEvictionsAndTheCatalogue) {
  v1::WatchRequest request;
  grpc::ClientContext context;
  auto reader = control_.stub().Watch(&context, request);
  reader->WaitForInitialMetadata();
  trims_lease* lease = Open("m");
  trims_lease_close(lease);
  EXPECT_TRUE(Eventually([&] {
    control_.Evict("m");
    return control_.last().ok();
  }));
  v1::AddRequest add;
  add.set_name("again");
  add.set_path(daemon_.base_dir() + "/m");
  v1::AddResponse added;
  grpc::ClientContext add_context;
  ASSERT_TRUE(control_.stub().Add(&add_context, add, &added).ok());
  std::vector<v1::EventKind> kinds;
  v1::Event event;
  while ((kinds.empty() || kinds.back() != v1::EVENT_KIND_ADDED) && reader->Read(&event))
    kinds.push_back(event.kind());
  context.TryCancel();
  const std::vector<v1::EventKind> expected = {v1::EVENT_KIND_LOADING, v1::EVENT_KIND_READY,
                                               v1::EVENT_KIND_LEASED,  v1::EVENT_KIND_RELEASED,
                                               v1::EVENT_KIND_EVICTED, v1::EVENT_KIND_ADDED};
  EXPECT_EQ(kinds, expected);
}

TEST_F(ControlTest, ConfigTellsValuesAndOriginsAndStatusTheRest) {
  v1::GetConfigResponse config;
  grpc::ClientContext context;
  ASSERT_TRUE(control_.stub().GetConfig(&context, v1::GetConfigRequest(), &config).ok());
  std::map<std::string, v1::ConfigEntry> entries;
  for (const v1::ConfigEntry& entry : config.entries()) entries[entry.key()] = entry;
  EXPECT_EQ(entries["runtime_dir"].value(), daemon_.runtime_dir());
  EXPECT_NE(entries["runtime_dir"].origin().find("flag"), std::string::npos);
  EXPECT_EQ(entries["eviction_policy"].origin(), "default");
  const v1::GetStatusResponse status = control_.Status();
  EXPECT_EQ(status.keeper_pid(), daemon_.keeper());
  EXPECT_EQ(status.worker_pid(), *daemon_.Worker());
  EXPECT_EQ(status.tiers(0).name(), "host");
  EXPECT_EQ(status.eviction_policy(), "lru");
  EXPECT_TRUE(Eventually([&] { return control_.Status().rho().read_bytes_per_second() > 0; }));
}

TEST_F(ControlTest, AReloadChangesWhatCanChangeAndRefusesTheRestWhole) {
  // The daemon of this fixture reads no file: another one does.
  std::string pattern = "/tmp/trims-conf-XXXXXX";
  const std::string directory = ::mkdtemp(pattern.data());
  const std::string file = directory + "/trims.toml";
  std::ofstream(file) << "eviction_policy = \"lru\"\n";
  {
    TestDaemon daemon({"--config", file});
    TestControl control(daemon.runtime_dir());
    daemon.ExpectErrors("configuration not reloaded, keeping the old one", 1);
    EXPECT_EQ(control.Status().eviction_policy(), "lru");
    std::ofstream(file) << "eviction_policy = \"fifo\"\n";
    ::kill(daemon.keeper(), SIGHUP);
    EXPECT_TRUE(Eventually([&] { return control.Status().eviction_policy() == "fifo"; }))
        << daemon.Log();
    std::ofstream(file) << "eviction_policy = \"fifoo\"\n";
    ::kill(daemon.keeper(), SIGHUP);
    EXPECT_TRUE(Eventually([&] { return daemon.Log().find("fifoo") != std::string::npos; }));
    EXPECT_EQ(control.Status().eviction_policy(), "fifo");
  }
  std::filesystem::remove_all(directory);
}

TEST_F(ControlTest, OtherUsersMayNotAdminister) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to act as another user";
  const pid_t child = StartChild(
      [&] {
        UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, (daemon_.runtime_dir() + "/control.sock").c_str(),
                     sizeof address.sun_path - 1);
        return ::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) !=
                           0 &&
                       errno == EACCES
                   ? 0
                   : 1;
      },
      4004);
  EXPECT_EQ(WaitChild(child), 0);
}

}  // namespace
}  // namespace trims::testing_support
