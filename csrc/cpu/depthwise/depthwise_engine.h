// The depthwise engines: direct convolution with one channel per group, or with 2, 4 or 8, on vectors of neighbouring
// channels, whole groups of them. (With more than one they go by the name of "grouped".)
//
// A task gathers the box of the image that a box of results reads, for as many channels as a vector has lanes: into a
// buffer with the channels innermost, padded with zeros along the last axis, in the type that sums are in. So the sums
// (depthwise_sums.inl.h, grouped_vectors.inl.h) are the same for every memory format and dtype, and contiguous tensors
// are transposed as they are copied. Boxes are as large as the workspace limit and the cache allow. Small kernels of
// one channel per group over tensors with the channels innermost do without the copy (depthwise_in_place.cpp), which
// would take longer than their few products. The order of the terms of a sum follows from the geometry alone: results
// depend neither on threads nor, but for the weight gradient, on the batch.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv::cpu::depthwise {

// For Correlation<3>, InputGrad<3> and WeightGrad<3>.

template <class Problem>
const char* decline_in_place(const OneImage<Problem>& problem);
template <class Problem>
const char* plan_in_place(const Problem& problem, const Call& call, JobSlot& slot);

// One channel per group.
template <class Problem>
const char* decline_boxes(const OneImage<Problem>& problem);
// Several.
template <class Problem>
const char* decline_grouped(const OneImage<Problem>& problem);
template <class Problem>
const char* plan_boxes(const Problem& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv::cpu::depthwise
