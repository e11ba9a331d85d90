// Every header that all instances need, included before the compiler is allowed more than the baseline: an inline
// function that came out of an instance could otherwise be the copy that the whole library calls.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/isa/families.h"
#include "cpu/kernels/kernels.h"
#include "problem/scalar.h"
