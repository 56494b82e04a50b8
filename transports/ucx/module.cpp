// What libregroup-ucx.so exports: the runtime loads it in jobs on several hosts, so that others
// have nothing to do with UCX.
#include <cstdio>
#include <string>

#include "transports/ucx/ucx_port.hpp"

extern "C" [[gnu::visibility("default")]] regroup::spi::MessagePort* regroup_open_message_port(
    std::uint32_t abi, char* why, std::size_t why_bytes) {
  if (abi != regroup::spi::kMessagePortAbi) {
    std::snprintf(why, why_bytes, "it is of another version of Regroup");
    return nullptr;
  }
  auto port = regroup::ucx::open_port();
  if (port) return port->release();
  std::snprintf(why, why_bytes, "%s", std::string(port.error().text()).c_str());
  return nullptr;
}
