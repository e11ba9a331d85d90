// Correlations on the CPU without a matrix of columns: an implicit matrix product on the micro-kernel of
// tile_kernels.h.
//
// Two engines share the micro-kernel. One has positions in the lanes of a vector: patches are gathered into a panel
// [terms, positions] in cache, and weights are broadcast. The other has output channels there: weights are packed as
// panels [terms, channels] once, and patches are broadcast from where they lie; it wants neighbouring channels to be
// neighbours in memory (channels_last). The first has three other ways. Two gather no panel: for few channels rows
// of the image as lines (image_lines.h), for few rows of weights planes with borders. One turns weights whose channels
// lie far apart (transposed_rows.h), a few rows at a time. The second has one for short sums and few rows: rows of
// patches as strips of memory. All sum an element of the output in the same order whatever the batch, the position in
// it, and the number of threads.
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
