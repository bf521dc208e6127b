// The worker: the half of the daemon that does the work and may die.
//
// Started by the keeper with three inherited descriptors (keeper.h). It adopts
// what an earlier worker left in the keeper's ledger, then serves the two sockets
// until it is told to stop or the keeper is gone.
#pragma once

namespace trims {

// Returns the process's exit status. kWorkerFatalStatus means that starting it
// again would end the same way; the reason has been logged.
int RunWorker();
inline constexpr int kWorkerFatalStatus = 78;  // EX_CONFIG

}  // namespace trims
