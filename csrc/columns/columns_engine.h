// Convolutions by bounded chunks of im2col and torch's GEMM: for every device and every dtype.
#pragma once

#include "columns/columns.h"
#include "problem/correlation.h"
#include "problem/weight_grad.h"

namespace unfoldconv {

template <int Rank>
void correlate_by_columns(const Place& place, const Correlation<Rank>& problem);

template <int Rank>
void weight_sums_by_columns(const Place& place, const WeightGrad<Rank>& problem);

void correlate_by_columns_of_rank(const Place& place, const Correlation<3>& problem);
void weight_sums_by_columns_of_rank(const Place& place, const WeightGrad<3>& problem);

// How many residues of an axis may share a product (phases.h): as many as leave a chunk room for enough positions.
int64_t longest_shared_run(const Place& place, int rank, int64_t rows, ScalarType dtype);

}  // namespace unfoldconv
