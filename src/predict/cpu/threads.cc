#include "predict/cpu/threads.h"

// Of the OpenMP run time that oneDNN is linked with. Declared here because only
// GCC brings its header without further packages.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int count);
}

namespace trims::predict {

ThreadScope::ThreadScope(bool single) {
  if (!single) return;
  const int before = omp_get_max_threads();
  if (before <= 1) return;
  before_ = before;
  omp_set_num_threads(1);
}

ThreadScope::~ThreadScope() {
  if (before_ > 0) omp_set_num_threads(before_);
}

}  // namespace trims::predict
