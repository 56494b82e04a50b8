/// Events and job states as people read them.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "launcher/event_log.hpp"

namespace regroup::launcher {

/// "[12.40s] lost rank 2 (incarnation 3): killed by SIGKILL". Any JSON will do; missing fields are
/// left out.
[[nodiscard]] std::string event_text(const Stamp& stamp, std::string_view kind,
                                     const nlohmann::json& fields);
/// The answer to a status request as a table.
[[nodiscard]] std::string status_text(const nlohmann::json& status);

}  // namespace regroup::launcher
