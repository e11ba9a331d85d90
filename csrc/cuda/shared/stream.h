// What the host asks of a CUDA stream.
#pragma once

namespace unfoldconv::cuda {

// Waits for all that was enqueued. For trials only: no op waits.
void synchronize(void* stream);

// Whether work that is enqueued becomes part of a graph instead of being done.
bool is_capturing(void* stream);

}  // namespace unfoldconv::cuda
