// Every table, queue, message and quota of the system has its named limit here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trims {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// --- Lease socket -----------------------------------------------------------
inline constexpr size_t kMaxPacketBytes = 64 * kKiB;  // Header and payload of one packet.
inline constexpr size_t kMaxFdsPerPacket = 250;       // Below the kernel's SCM_MAX_FD of 253.
inline constexpr size_t kMaxFdsFromClient = 1;        // A weights file, with OpenFile only.
inline constexpr size_t kMaxModelNameBytes = 512;
inline constexpr size_t kMaxOpensInFlightPerSession = 64;
inline constexpr size_t kMaxReplyBacklogPerSession =
    4 * 64;  // Packets a slow client may leave unread.
inline constexpr int kListenBacklog = 4096;
inline constexpr int kHelloDeadlineMs = 5'000;  // From accept to a valid hello.
inline constexpr int kSendDeadlineMs = 10'000;  // A client that does not read is dropped.
// How long both ends look for the next packet before they sleep, on machines with at least so
// many cores: answering takes less time than waking up.
inline constexpr int kSocketSpinUs = 50;
inline constexpr unsigned kSocketSpinCores = 4;

// --- Quotas per uid (configuration may lower or raise them) -----------------
inline constexpr uint32_t kDefaultSessionsPerUid = 4096;
inline constexpr uint32_t kDefaultLeasesPerUid = 65536;
inline constexpr uint64_t kDefaultLeasedBytesPerUid = 0;  // 0: no limit.

// --- Models and extents -----------------------------------------------------
inline constexpr uint64_t kTensorAlignment = 256;  // Of every tensor inside its extent.
inline constexpr uint64_t kHostPageBytes = 4 * kKiB;
inline constexpr uint64_t kHugePageBytes = 2 * kMiB;
inline constexpr uint64_t kDefaultSlabBytes = 64 * kMiB;
inline constexpr uint64_t kChunkBytes = 8 * kMiB;  // Unit of reading, checksums and progress.
inline constexpr size_t kMaxDevices = 64;
inline constexpr uint64_t kDefaultPinnedPoolBytes =
    256 * kMiB;  // Of one device: what loads read files into.
inline constexpr uint64_t kDefaultScrubBytesPerSecond =
    4 * kGiB;  // Of one device: a thousandth of its memory's rate.
inline constexpr size_t kMaxTensorsPerModel = 1'000'000;
inline constexpr size_t kMaxTensorNameBytes = 4096;
inline constexpr size_t kMaxTensorRank = 32;
inline constexpr size_t kMaxFilesPerModel = 4096;
inline constexpr size_t kMaxExtentsPerModel =
    7168;  // Their sizes fit one packet (lease.fbs, Opened).

// --- Parsers ----------------------------------------------------------------
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // The reference's own limit.
inline constexpr uint64_t kMaxSymbolJsonBytes = 64 * kMiB;
inline constexpr uint64_t kMaxJsonDepth = 64;

// --- Configuration and traces ------------------------------------------------
inline constexpr size_t kMaxConfigFileBytes = 1 * kMiB;
inline constexpr size_t kMaxProfileBytes =
    64 * kMiB;  // Of recorded spans; later ones are counted and dropped.

// --- Watched paths ------------------------------------------------------------
inline constexpr size_t kMaxPathWatches = 65'536;  // Kernel memory: about 1 KiB each.
inline constexpr size_t kMaxPathWatchInterests = 8 * kMaxPathWatches;
inline constexpr size_t kMaxPathWatchDrainBytes = 256 * kKiB;  // Reports taken in one go: some ms.
inline constexpr int kMaxLinksPerPath = 40;                    // The kernel's own limit.

// --- Keeper -----------------------------------------------------------------
inline constexpr int kWorkerRestartBackoffMsMin = 10;
inline constexpr int kWorkerRestartBackoffMsMax = 2'000;
inline constexpr int kWorkerCrashLoopLimit = 10;  // Crashes without a ready worker in between.

static_assert(kMaxFdsFromClient <= kMaxFdsPerPacket);
static_assert(kDefaultSlabBytes % kHugePageBytes == 0);
static_assert(kChunkBytes % kHostPageBytes == 0);
static_assert(kMaxExtentsPerModel * 8 + 8 * kKiB <= kMaxPacketBytes);

}  // namespace trims
