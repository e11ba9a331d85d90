// Convolutions by bounded chunks of im2col and torch's GEMM: for every device and every dtype.
#pragma once

#include "columns/columns.h"
#include "problem/correlation.h"
#include "problem/weight_grad.h"

namespace unfoldconv {

template <int Rank>
void correlate_by_columns(const Place& place, const Correlation<Rank>& problem);

template <int Rank>
void weight_sums_by_columns(const Place& place, const WeightSums<Rank>& problem);

// How many residues of an axis may share a product (phases.h): as many as leave a chunk room for enough positions.
template <int Rank>
int64_t longest_shared_run(const Place& place, int64_t rows, ScalarType dtype);

}  // namespace unfoldconv
