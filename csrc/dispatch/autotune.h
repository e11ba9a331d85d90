// Which engine is the fastest for a call, found by trying them, as torch.backends.cudnn.benchmark does for cuDNN.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <initializer_list>
#include <vector>

#include "columns/columns.h"

namespace unfoldconv {

// What tells calls apart whose fastest engine may differ.
class TuningKey {
 public:
  // `numbers`: the op, and what else of it is not in the shapes and strides of the operands.
  TuningKey(std::initializer_list<const torch::stable::Tensor*> operands, std::vector<int64_t> numbers);
  bool operator<(const TuningKey& other) const { return numbers_ < other.numbers_; }

 private:
  std::vector<int64_t> numbers_;
};

// Whether calls are tuned; for the whole process.
bool tuning();

// Runs `run`, which computes an op whose result exists, by the engine that was the fastest for such calls. At the first
// such call it is run by each engine some times over.
void run_tuned(const Place& place, const TuningKey& key, const std::function<void()>& run);

}  // namespace unfoldconv
