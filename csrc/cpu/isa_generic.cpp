// The kernels for generic.
#include "instance_headers.h"

#define UNFOLDCONV_ISA generic
#define UNFOLDCONV_VECTOR_BYTES 16
#include "instance.h"
