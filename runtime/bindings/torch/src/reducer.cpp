#include "reducer.hpp"

#include "reducer_header.hpp"

namespace regroup::torch_binding {
namespace {

/// Makes a protected member's address visible.
class Opened : public c10d::Reducer {
 public:
  static constexpr auto kPush = &Opened::push_rebuilt_params;
};

}  // namespace

void order_buckets(c10d::Reducer& reducer, std::size_t parameters) {
  for (std::size_t i = parameters; i-- > 0;) (reducer.*Opened::kPush)(i);
}

}  // namespace regroup::torch_binding
