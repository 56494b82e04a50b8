/// DDP's buckets, laid out once and for all before the first step.
#pragma once

#include "torch_headers.hpp"

namespace c10d {
class Reducer;
}

namespace regroup::torch_binding {

/// DDP rebuilds its buckets after its first backward, in the order in which gradients became
/// ready then, and agrees on them in a broadcast. A newcomer, whose first backward comes later,
/// would stand alone in it. This names the order now: the reverse of the parameters', which is
/// nearly always that of their gradients. `reducer._rebuild_buckets()` is to follow.
void order_buckets(c10d::Reducer& reducer, std::size_t parameters);

}  // namespace regroup::torch_binding
