// Correlations on the CPU without a matrix of columns: implicit matrix products on the micro-kernels of tile_kernels.h.
//
//   engine                in the lanes   patches                                     for
//   channels.strips       channels       rows of them, copied once, read in place    few rows, or short sums
//   positions.lines       positions      rows of the image as lines in cache         few channels
//   positions.few         positions      gathered, weight read where it lies         few positions, channels_last
//   channels.patches      channels       read where they lie, weight packed once     channels_last
//   positions.planes      positions      planes copied with borders, read in place   few rows of weights, stride 1
//   positions.transposed  positions      gathered, weight transposed a little at a   input gradients at few positions
//                                        time (transposed_rows.h)
//   positions.gathered    positions      gathered into panels, weight broadcast      everything else
//
// Output channels in the lanes want neighbouring channels to be neighbours in memory. All engines sum an element of the
// output in the same order whatever the batch, the position in it, and the number of threads.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv::cpu {

// Each function says why an engine declines, or plans its job (runtime/engine.h).

using CorrelateImage = OneImage<Correlation<3>>;

const char* decline_strips(const CorrelateImage& problem);
const char* plan_strips(const Correlation<3>& problem, const Call& call, JobSlot& slot);

const char* decline_lines(const CorrelateImage& problem);
const char* plan_lines(const Correlation<3>& problem, const Call& call, JobSlot& slot);

// Where positions are few, the weight is read where it lies, which takes less time than to pack it does. Its sums have
// the bits of decline_channels's engine, so this one may look at the batch.
const char* plan_few_positions(const Correlation<3>& problem, const Call& call, JobSlot& slot);

const char* decline_channels(const CorrelateImage& problem);
const char* plan_channels(const Correlation<3>& problem, const Call& call, JobSlot& slot);

const char* decline_planes(const CorrelateImage& problem);
const char* plan_planes(const Correlation<3>& problem, const Call& call, JobSlot& slot);

const char* decline_transposed(const CorrelateImage& problem);
const char* plan_transposed(const Correlation<3>& problem, const Call& call, JobSlot& slot);

const char* decline_positions(const CorrelateImage& problem);
const char* plan_positions(const Correlation<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv::cpu
