/// Messages between hosts over UCX (UCP active messages).
#pragma once

#include <memory>
#include <string>

#include "spi/message_port.hpp"

namespace regroup::ucx {

/// One UCP context and one UCX worker with its descriptor; endpoints with PEER error handling.
/// Keepalive each second unless the environment says otherwise (UCX_KEEPALIVE_INTERVAL). Addresses
/// name network devices only: inside a host there is shared memory of our own. UCX may miss that a
/// member died; so whoever knows closes the channel (close(), by force). Errors: Internal,
/// ResourceExhausted (the text is UCX's).
[[nodiscard]] Result<std::unique_ptr<spi::MessagePort>> open_port();

/// "1.13.1": of the library that is loaded.
[[nodiscard]] std::string version();

}  // namespace regroup::ucx
