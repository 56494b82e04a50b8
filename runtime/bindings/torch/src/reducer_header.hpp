/// As torch_headers.hpp; apart, because few need it and it is large.
#pragma once

#pragma GCC system_header

#include <torch/csrc/distributed/c10d/reducer.hpp>
