// Weight gradients (../weight_sums.h) on the CPU without a matrix of columns, on the micro-kernel of tile_kernels.h.
//
// The terms of a sum are positions. Two engines, as for correlations (correlation.h): one broadcasts the image and has
// the rows of the output in the lanes; the other has channels in the lanes and reads the image where it lies; it wants
// channels_last, channels that fill the lanes, and terms of the dtype in memory. The first has two ways: rows of the
// image as lines (image_lines.h), and patches gathered one by one where rows of the output are short.
#pragma once

#include "problem/weight_grad.h"

namespace unfoldconv::cpu {

// The engines.

bool weight_sums_of_rows(const WeightGrad<3>& problem);

bool weight_sums_of_patches(const WeightGrad<3>& problem);

bool weight_sums_of_channels(const WeightGrad<3>& problem);

}  // namespace unfoldconv::cpu
