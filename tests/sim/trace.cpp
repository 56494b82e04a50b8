#include "tests/sim/trace.hpp"

#include <fmt/format.h>

#include <utility>

namespace regroup::sim {

const char* name(What what) {
  switch (what) {
    case What::Spawn: return "spawn";
    case What::Attach: return "attach";
    case What::Enter: return "enter";
    case What::HealBegin: return "heal-begin";
    case What::HealPlan: return "heal-plan";
    case What::HealChunk: return "heal-chunk";
    case What::HealEnd: return "heal-end";
    case What::Submit: return "submit";
    case What::Publish: return "publish";
    case What::Reduce: return "reduce";
    case What::Done: return "done";
    case What::Lost: return "RankLost";
    case What::HandedOver: return "handed-over";
    case What::Prepare: return "prepare";
    case What::Committed: return "committed";
    case What::StepAborted: return "step-aborted";
    case What::Finish: return "finish";
    case What::Crash: return "crash";
    case What::Deaf: return "closes-channel";
    case What::Pause: return "pause";
    case What::Resume: return "resume";
    case What::Kill: return "kill";
    case What::Stopped: return "stopped";
    case What::Evidence: return "evidence";
    case What::WedgeWords: return "wedge-words";
    case What::WordsWedged: return "words-wedged";
    case What::Decide: return "decide";
    case What::MakeView: return "make-view";
    case What::LeaveHost: return "agent-ends";
    case What::HostLost: return "host-lost";
    case What::ChannelUp: return "channel-up";
    case What::ChannelDown: return "channel-down";
    case What::MessageLost: return "message-lost";
    case What::MessageTwice: return "message-twice";
    case What::Message: return "message";
    case What::HealedHeard: return "healed-heard";
    case What::CoordinatorStart: return "coordinator-start";
    case What::CoordinatorCrash: return "coordinator-crash";
    case What::Persist: return "persist";
    case What::Order: return "order";
    case What::Choose: return "choose-view";
    case What::Removed: return "removed";
    case What::EvictAsked: return "evict-asked";
    case What::StopAsked: return "stop-asked";
    case What::ChangeAsked: return "change-asked";
    case What::Park: return "parks";
    case What::Released: return "released";
    case What::SelfWedge: return "wedges-itself";
    case What::EndJob: return "end-job";
    case What::Liveness: return "LIVENESS-MODE";
    case What::Quiet: return "quiet";
  }
  return "?";
}

std::string describe(const Record& r) {
  std::string text =
      fmt::format("{:>11.3f} ms  {:<18}", static_cast<double>(r.at) / 1e6, name(r.what));
  if (r.rank.value() >= 0) text += fmt::format(" rank {}", r.rank.value());
  if (r.incarnation.value() != 0) text += fmt::format(" inc {}", r.incarnation.value());
  if (r.host != 0) text += fmt::format(" agent {}", r.host - 1);
  if (r.epoch.value() != 0) text += fmt::format(" epoch {}", r.epoch.value());
  if (r.number != 0) text += fmt::format(" group {} number {}", r.group, r.number);
  if (r.seats != 0) text += fmt::format(" seats {:x}", r.seats);
  if (r.digest != 0) text += fmt::format(" digest {:08x}", r.digest & 0xffffffffU);
  if (r.other != 0) text += fmt::format(" other {:x}", r.other);
  return text;
}

void Trace::add(const Record& r) {
  std::uint64_t h = hash_ ^ (static_cast<std::uint64_t>(r.at) * 0x9e3779b97f4a7c15ULL);
  h = (h ^ static_cast<std::uint64_t>(r.what) ^ (r.incarnation.value() << 8) ^
       (r.epoch.value() << 32)) *
      0xff51afd7ed558ccdULL;
  h = ((h >> 29) ^ h ^ r.number ^ (r.digest << 1) ^ (std::uint64_t{r.host} << 48)) *
      0xc4ceb9fe1a85ec53ULL;
  hash_ = h ^ (h >> 32) ^ r.seats ^ r.other;
  if (keeps_text_) lines_.push_back(describe(r));
}

void Trace::note(Nanos at, std::string text) {
  if (!keeps_text_) return;
  lines_.push_back(
      fmt::format("{:>11.3f} ms    {}", static_cast<double>(at) / 1e6, std::move(text)));
}

}  // namespace regroup::sim
