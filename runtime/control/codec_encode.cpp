/// Messages to bytes. Each put() takes its message apart by structured binding: a field added to a
/// message stops the build here until it is in schema/control.fbs, here, in codec_decode.cpp and in
/// the samples of codec_test.cpp.
#include <fmt/format.h>

#include <type_traits>

#include "control/codec.hpp"
#include "control_generated.h"

namespace regroup::control {
namespace {

using flatbuffers::FlatBufferBuilder;
template <class T>
using Ref = flatbuffers::Offset<T>;

template <class Enum>
std::uint8_t number(Enum value) {
  return static_cast<std::uint8_t>(value);
}

Ref<flatbuffers::String> put(FlatBufferBuilder& to, const std::string& text) {
  return to.CreateString(text);
}

Ref<flatbuffers::Vector<std::int32_t>> put(FlatBufferBuilder& to, const std::vector<Rank>& ranks) {
  std::vector<std::int32_t> raw;
  raw.reserve(ranks.size());
  for (const Rank rank : ranks) raw.push_back(rank.value());
  return to.CreateVector(raw);
}

Ref<flatbuffers::Vector<std::uint64_t>> put(FlatBufferBuilder& to,
                                            const std::vector<Incarnation>& incarnations) {
  std::vector<std::uint64_t> raw;
  raw.reserve(incarnations.size());
  for (const Incarnation incarnation : incarnations) raw.push_back(incarnation.value());
  return to.CreateVector(raw);
}

Ref<flatbuffers::Vector<const wire::MemberId*>> put(FlatBufferBuilder& to,
                                                    const std::vector<Member>& members) {
  std::vector<wire::MemberId> raw;
  raw.reserve(members.size());
  for (const auto& [rank, incarnation] : members)
    raw.emplace_back(rank.value(), incarnation.value());
  return to.CreateVectorOfStructs(raw);
}

Ref<flatbuffers::Vector<const wire::GroupCut*>> put(
    FlatBufferBuilder& to, const std::vector<membership::WedgeReport::GroupCut>& cuts) {
  std::vector<wire::GroupCut> raw;
  raw.reserve(cuts.size());
  for (const auto& [group, completed] : cuts) raw.emplace_back(group, completed);
  return to.CreateVectorOfStructs(raw);
}

Ref<flatbuffers::Vector<const wire::DonorBytes*>> put(FlatBufferBuilder& to,
                                                      const std::vector<Entered::Bytes>& donors) {
  std::vector<wire::DonorBytes> raw;
  raw.reserve(donors.size());
  for (const auto& [donor, bytes] : donors) raw.emplace_back(donor.value(), bytes);
  return to.CreateVectorOfStructs(raw);
}

Ref<flatbuffers::Vector<std::uint8_t>> put(FlatBufferBuilder& to,
                                           const membership::MemberAddress& address) {
  return to.CreateVector(reinterpret_cast<const std::uint8_t*>(address.data()), address.size());
}

Ref<flatbuffers::Vector<Ref<wire::SeatPlace>>> put(
    FlatBufferBuilder& to, const std::vector<membership::SeatPlace>& places) {
  std::vector<Ref<wire::SeatPlace>> raw;
  raw.reserve(places.size());
  for (const auto& [host, life, address] : places)
    raw.push_back(wire::CreateSeatPlace(to, host.value(), life, put(to, address)));
  return to.CreateVector(raw);
}

flatbuffers::Optional<std::int32_t> put(const std::optional<Rank>& seat) {
  if (!seat) return flatbuffers::nullopt;
  return seat->value();
}

Ref<wire::View> put(FlatBufferBuilder& to, const membership::View& view) {
  const auto& [epoch, seats, parent, resume_step] = view;
  return wire::CreateView(to, epoch.value(), put(to, seats), parent, resume_step);
}

Ref<wire::Evidence> put(FlatBufferBuilder& to, const membership::Evidence& evidence) {
  const auto& [kind, text, exit_code, signal] = evidence;
  return wire::CreateEvidence(to, number(kind), put(to, text), exit_code, signal);
}

Ref<wire::WedgeReport> put(FlatBufferBuilder& to, const membership::WedgeReport& report) {
  const auto& [epoch, groups, prepared] = report;
  return wire::CreateWedgeReport(to, epoch.value(), put(to, groups), prepared);
}

Ref<wire::ProcessInfo> put(FlatBufferBuilder& to, const membership::ProcessInfo& process) {
  const auto& [incarnation, seat, state, evidence, address] = process;
  const auto evidence_at = put(to, evidence);
  return wire::CreateProcessInfo(to, incarnation.value(), put(seat), number(state), evidence_at,
                                 put(to, address));
}

Ref<wire::Group> put(FlatBufferBuilder& to, const ViewInstalled::Group& group) {
  const auto& [id, name, seats, arena_bytes] = group;
  return wire::CreateGroup(to, id, put(to, name), put(to, seats), arena_bytes);
}

// ---- rank -> agent ----

auto put(FlatBufferBuilder& to, const Hello& message) {
  const auto& [protocol, pid, build] = message;
  return wire::CreateHello(to, protocol, pid, put(to, build));
}
auto put(FlatBufferBuilder& to, const BeaconHeld& message) {
  const auto& [address] = message;
  return wire::CreateBeaconHeld(to, put(to, address));
}
auto put(FlatBufferBuilder& to, const AttachGroup& message) {
  const auto& [epoch, name, seats] = message;
  return wire::CreateAttachGroup(to, epoch.value(), put(to, name), put(to, seats));
}
auto put(FlatBufferBuilder& to, const KeepMemory& message) {
  const auto& [what, bytes] = message;
  return wire::CreateKeepMemory(to, put(to, what), bytes);
}
auto put(FlatBufferBuilder& to, const Entered& message) {
  const auto& [epoch, bytes_from, heal_ns] = message;
  return wire::CreateEntered(to, epoch.value(), put(to, bytes_from), heal_ns);
}
auto put(FlatBufferBuilder& to, const Detach&) { return wire::CreateDetach(to); }
auto put(FlatBufferBuilder& to, const Fault& message) {
  const auto& [code, text] = message;
  return wire::CreateFault(to, code, put(to, text));
}
auto put(FlatBufferBuilder& to, const EndEpoch& message) {
  const auto& [epoch, why] = message;
  return wire::CreateEndEpoch(to, epoch.value(), put(to, why));
}
auto put(FlatBufferBuilder& to, const RankParked& message) {
  const auto& [epoch] = message;
  return wire::CreateRankParked(to, epoch.value());
}
auto put(FlatBufferBuilder& to, const StoreRequest& message) {
  const auto& [id, kind, keys, value, expected, amount] = message;
  return wire::CreateStoreRequest(to, id, number(kind), to.CreateVectorOfStrings(keys),
                                  put(to, value), put(to, expected), amount);
}

// ---- agent -> rank ----

auto put(FlatBufferBuilder& to, const Welcome& message) {
  const auto& [incarnation, seat, ranks, on_loss, job, ranks_on_host, replacement, life] = message;
  return wire::CreateWelcome(to, incarnation.value(), put(seat), ranks, number(on_loss),
                             put(to, job), ranks_on_host, replacement, life);
}
auto put(FlatBufferBuilder& to, const Assign& message) {
  const auto& [seat, kept, life] = message;
  return wire::CreateAssign(to, seat.value(), to.CreateVectorOfStrings(kept), life);
}
auto put(FlatBufferBuilder& to, const ViewInstalled& message) {
  const auto& [view, groups, cause, places] = message;
  std::vector<Ref<wire::Group>> raw;
  raw.reserve(groups.size());
  for (const ViewInstalled::Group& group : groups) raw.push_back(put(to, group));
  const auto view_at = put(to, view);
  const auto groups_at = to.CreateVector(raw);
  const auto cause_at = put(to, cause);
  return wire::CreateViewInstalled(to, view_at, groups_at, cause_at, put(to, places));
}
auto put(FlatBufferBuilder& to, const GroupReady& message) {
  const auto& [epoch, group] = message;
  return wire::CreateGroupReady(to, epoch.value(), put(to, group));
}
auto put(FlatBufferBuilder& to, const LossNotice& message) {
  const auto& [epoch, lost, text] = message;
  return wire::CreateLossNotice(to, epoch.value(), put(to, lost), put(to, text));
}
auto put(FlatBufferBuilder& to, const Stop& message) {
  const auto& [exit_code, reason] = message;
  return wire::CreateStop(to, exit_code, put(to, reason));
}
auto put(FlatBufferBuilder& to, const Refused& message) {
  const auto& [code, text] = message;
  return wire::CreateRefused(to, number(code), put(to, text));
}
auto put(FlatBufferBuilder& to, const Released& message) {
  const auto& [text] = message;
  return wire::CreateReleased(to, put(to, text));
}
auto put(FlatBufferBuilder& to, const StoreReply& message) {
  const auto& [id, code, value, amount] = message;
  return wire::CreateStoreReply(to, id, number(code), put(to, value), amount);
}

// ---- shim -> agent ----

Ref<wire::Program> put(FlatBufferBuilder& to, const Program& program) {
  const auto& [path, arguments, environment, directory] = program;
  const auto path_at = put(to, path);
  const auto arguments_at = to.CreateVectorOfStrings(arguments);
  const auto environment_at = to.CreateVectorOfStrings(environment);
  return wire::CreateProgram(to, path_at, arguments_at, environment_at, put(to, directory));
}
auto put(FlatBufferBuilder& to, const ShimHello& message) {
  const auto& [protocol, place, places, pid, descriptors_soft, program] = message;
  return wire::CreateShimHello(to, protocol, place, places, pid, descriptors_soft,
                               put(to, program));
}
auto put(FlatBufferBuilder& to, const ShimStarted& message) {
  const auto& [incarnation, pid] = message;
  return wire::CreateShimStarted(to, incarnation.value(), pid);
}
auto put(FlatBufferBuilder& to, const ShimRefused& message) {
  const auto& [incarnation, why, again] = message;
  return wire::CreateShimRefused(to, incarnation.value(), put(to, why), again);
}
auto put(FlatBufferBuilder& to, const ShimExited& message) {
  const auto& [incarnation, exit_code, signal, core] = message;
  return wire::CreateShimExited(to, incarnation.value(), exit_code, signal, core);
}
auto put(FlatBufferBuilder& to, const ShimSignalled& message) {
  const auto& [signal] = message;
  return wire::CreateShimSignalled(to, signal);
}

// ---- agent -> shim ----

auto put(FlatBufferBuilder& to, const ShimStart& message) {
  const auto& [incarnation, program, descriptors_soft, input] = message;
  return wire::CreateShimStart(to, incarnation.value(), put(to, program), descriptors_soft, input);
}
auto put(FlatBufferBuilder& to, const ShimReap& message) {
  const auto& [incarnation, keep] = message;
  return wire::CreateShimReap(to, incarnation.value(), keep);
}
auto put(FlatBufferBuilder& to, const ShimPrint& message) {
  const auto& [text] = message;
  return wire::CreateShimPrint(to, put(to, text));
}
auto put(FlatBufferBuilder& to, const ShimBusy& message) {
  const auto& [why] = message;
  return wire::CreateShimBusy(to, put(to, why));
}
auto put(FlatBufferBuilder& to, const ShimEnd& message) {
  const auto& [exit_code, reason] = message;
  return wire::CreateShimEnd(to, exit_code, put(to, reason));
}

// ---- agent -> coordinator ----

auto put(FlatBufferBuilder& to, const membership::AgentHello& message) {
  const auto& [agent, installed, processes, wedged] = message;
  std::vector<Ref<wire::ProcessInfo>> raw;
  raw.reserve(processes.size());
  for (const membership::ProcessInfo& process : processes) raw.push_back(put(to, process));
  const auto report = wedged ? put(to, *wedged) : Ref<wire::WedgeReport>();
  const auto view = put(to, installed);
  return wire::CreateAgentHello(to, agent.value(), view, to.CreateVector(raw), report);
}
auto put(FlatBufferBuilder& to, const membership::ProcessJoined& message) {
  const auto& [incarnation, address] = message;
  return wire::CreateProcessJoined(to, incarnation.value(), put(to, address));
}
auto put(FlatBufferBuilder& to, const membership::ProcessHealed& message) {
  const auto& [incarnation] = message;
  return wire::CreateProcessHealed(to, incarnation.value());
}
auto put(FlatBufferBuilder& to, const membership::ProcessLost& message) {
  const auto& [incarnation, evidence, attached] = message;
  return wire::CreateProcessLost(to, incarnation.value(), put(to, evidence), attached);
}
auto put(FlatBufferBuilder& to, const membership::ProcessFinished& message) {
  const auto& [incarnation] = message;
  return wire::CreateProcessFinished(to, incarnation.value());
}
auto put(FlatBufferBuilder& to, const membership::Wedged& message) {
  const auto& [round, report] = message;
  return wire::CreateWedged(to, round.value(), put(to, report));
}
auto put(FlatBufferBuilder& to, const membership::DecisionStored& message) {
  const auto& [epoch, round] = message;
  return wire::CreateDecisionStored(to, epoch.value(), round.value());
}
auto put(FlatBufferBuilder& to, const membership::Installed& message) {
  const auto& [epoch] = message;
  return wire::CreateInstalled(to, epoch.value());
}
auto put(FlatBufferBuilder& to, const membership::StartFailed& message) {
  const auto& [incarnation, why] = message;
  return wire::CreateStartFailed(to, incarnation.value(), put(to, why));
}
auto put(FlatBufferBuilder& to, const membership::EvictRequest& message) {
  const auto& [incarnation, why] = message;
  return wire::CreateEvictRequest(to, incarnation.value(), put(to, why));
}
auto put(FlatBufferBuilder& to, const membership::StopRequest& message) {
  const auto& [why, exit_code] = message;
  return wire::CreateStopRequest(to, put(to, why), exit_code);
}
auto put(FlatBufferBuilder& to, const membership::DrainRequest& message) {
  const auto& [id, incarnations, now] = message;
  return wire::CreateDrainRequest(to, id, put(to, incarnations), now);
}
auto put(FlatBufferBuilder& to, const membership::ScaleRequest& message) {
  const auto& [id, seats, now] = message;
  return wire::CreateScaleRequest(to, id, seats, now);
}
auto put(FlatBufferBuilder& to, const membership::Parked& message) {
  const auto& [epoch] = message;
  return wire::CreateEpochParked(to, epoch.value());
}

// ---- coordinator -> agent ----

auto put(FlatBufferBuilder& to, const membership::StartProcess& message) {
  const auto& [incarnation, seat, life] = message;
  return wire::CreateStartProcess(to, incarnation.value(), put(seat), life);
}
auto put(FlatBufferBuilder& to, const membership::WedgeEpoch& message) {
  const auto& [epoch, round, lost] = message;
  return wire::CreateWedgeEpoch(to, epoch.value(), round.value(), put(to, lost));
}
auto put(FlatBufferBuilder& to, const membership::StoreDecision& message) {
  const auto& [epoch, round, cuts, committed_step, lost] = message;
  const auto cuts_at = put(to, cuts);
  return wire::CreateStoreDecision(to, epoch.value(), round.value(), cuts_at, committed_step,
                                   put(to, lost));
}
auto put(FlatBufferBuilder& to, const membership::InstallView& message) {
  const auto& [view, lost, released, places] = message;
  const auto view_at = put(to, view);
  const auto lost_at = put(to, lost);
  const auto released_at = put(to, released);
  return wire::CreateInstallView(to, view_at, lost_at, released_at, put(to, places));
}
auto put(FlatBufferBuilder& to, const membership::EndJob& message) {
  const auto& [exit_code, reason] = message;
  return wire::CreateEndJob(to, exit_code, put(to, reason));
}
auto put(FlatBufferBuilder& to, const membership::Note& message) {
  const auto& [kind, text] = message;
  const auto kind_at = put(to, kind);
  return wire::CreateNote(to, kind_at, put(to, text));
}
auto put(FlatBufferBuilder& to, const membership::ParkEpoch& message) {
  const auto& [epoch] = message;
  return wire::CreateParkEpoch(to, epoch.value());
}
auto put(FlatBufferBuilder& to, const membership::Answer& message) {
  const auto& [id, accepted, text] = message;
  return wire::CreateAnswer(to, id, accepted, put(to, text));
}

auto put(FlatBufferBuilder& to, const membership::Decision& decision) {
  const auto& [cuts, committed_step, without] = decision;
  const auto cuts_at = put(to, cuts);
  return wire::CreateDecision(to, cuts_at, committed_step, put(to, without));
}

auto put(FlatBufferBuilder& to, const membership::DurableState& state) {
  const auto& [config, view, next_incarnation, term, state_exists, ended, losses, progress_seen,
               newcomers_from, planned, released, decision] = state;
  const auto& [ranks, ranks_min, spares, on_loss, replacements_max, restart_unattached, hosts] =
      config;
  std::vector<wire::HostPlan> plans;
  for (const auto& [seats, used] : hosts) plans.emplace_back(seats, used);
  const auto plans_at = to.CreateVectorOfStructs(plans);
  const auto config_at = wire::CreateJobConfig(to, ranks, ranks_min, spares, number(on_loss),
                                               replacements_max, restart_unattached, plans_at);
  const auto ended_at = ended ? put(to, *ended) : Ref<wire::EndJob>();
  std::vector<wire::Loss> lost;
  for (const auto& [rank, incarnation, step, at] : losses) {
    const std::int64_t at_ns = std::chrono::nanoseconds(at.time_since_epoch()).count();
    lost.emplace_back(rank.value(), incarnation.value(), step, at_ns);
  }
  const auto losses_at = to.CreateVectorOfStructs(lost);
  std::vector<wire::PlannedChange> changes;
  for (const auto& [rank, incarnation, vacate, now] : planned)
    changes.emplace_back(rank.value(), vacate, now, incarnation.value());
  const auto planned_at = to.CreateVectorOfStructs(changes);
  const auto released_at = put(to, released);
  const auto decision_at = decision ? put(to, *decision) : Ref<wire::Decision>();
  return wire::CreateDurableState(to, kProtocolVersion, config_at, put(to, view),
                                  next_incarnation.value(), term, state_exists, ended_at, losses_at,
                                  progress_seen.value(), newcomers_from.value(), planned_at,
                                  released_at, decision_at);
}

template <class Root>
Result<Bytes> finished(FlatBufferBuilder& builder, Ref<Root> root, const char* identifier) {
  builder.Finish(root, identifier);
  if (builder.GetSize() > kMessageBytesMax) {
    return Status(Code::ResourceExhausted,
                  fmt::format("a control message of {} bytes exceeds the limit of {}: too many "
                              "ranks or groups for one "
                              "message, or an over-long text",
                              builder.GetSize(), kMessageBytesMax));
  }
  const auto* const begin = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return Bytes(begin, begin + builder.GetSize());
}

// The unions of the schema list their tables in the order of the variants.
template <class Body, class Message, class Create>
Result<Bytes> envelope(const Message& message, const char* identifier, Create create) {
  static_assert(std::variant_size_v<Message> == static_cast<std::size_t>(Body::MAX),
                "schema and variant differ");
  FlatBufferBuilder builder;
  const auto body = std::visit([&](const auto& one) { return put(builder, one).Union(); }, message);
  const auto type = static_cast<Body>(message.index() + 1);
  return finished(builder, create(builder, kProtocolVersion, type, body), identifier);
}

}  // namespace

Result<Bytes> encode(const RankMessage& message) {
  return envelope<wire::RankBody>(message, "RGRA", wire::CreateRankEnvelope);
}
Result<Bytes> encode(const AgentToRank& message) {
  return envelope<wire::AgentToRankBody>(message, "RGAR", wire::CreateAgentToRankEnvelope);
}
Result<Bytes> encode(const ShimMessage& message) {
  return envelope<wire::ShimBody>(message, "RGSA", wire::CreateShimEnvelope);
}
Result<Bytes> encode(const AgentToShim& message) {
  return envelope<wire::AgentToShimBody>(message, "RGAS", wire::CreateAgentToShimEnvelope);
}
Result<Bytes> encode(const membership::AgentMessage& message) {
  return envelope<wire::AgentBody>(message, "RGAC", wire::CreateAgentEnvelope);
}
Result<Bytes> encode(const membership::CoordinatorMessage& message) {
  return envelope<wire::CoordinatorBody>(message, "RGCA", wire::CreateCoordinatorEnvelope);
}
Result<Bytes> encode(const membership::DurableState& state) {
  FlatBufferBuilder builder;
  const auto root = put(builder, state);
  return finished(builder, root, "RGDS");
}

}  // namespace regroup::control
