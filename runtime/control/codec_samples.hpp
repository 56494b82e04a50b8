/// Messages for the tests of the codec: of each kind one with every field set to something of its
/// own, and one bare.
#pragma once

#include <string>
#include <vector>

#include "control/messages.hpp"
#include "control/shim_messages.hpp"
#include "membership/types.hpp"

namespace regroup::control::samples {

inline membership::View view() {
  return {.epoch = Epoch(9),
          .seats = {Incarnation(1), Incarnation(0), Incarnation(77)},
          .parent = 0xFEDCBA9876543210,
          .resume_step = 12};
}
inline membership::Evidence evidence(membership::EvidenceKind kind) {
  return {.kind = kind,
          .text = "killed by SIGKILL; in all_reduce seq 17 of step 3",
          .exit_code = -7,
          .signal = 9};
}
inline membership::WedgeReport report() {
  return {.epoch = Epoch(9), .groups = {{0, 17}, {3, 0}}, .prepared = 11};
}
inline std::vector<Member> lost() {
  return {{Rank(2), Incarnation(5)}, {Rank(0), Incarnation(1ULL << 63)}};
}
inline ViewInstalled::Group group() {
  return {.id = 4, .name = "tensor", .seats = {Rank(0), Rank(2)}, .arena_bytes = 1ULL << 40};
}

inline membership::MemberAddress address() { return {std::byte{7}, std::byte{0}, std::byte{255}}; }
inline std::vector<membership::SeatPlace> places() {
  return {{membership::AgentId(3), 2, address()}, {}};
}

inline std::vector<RankMessage> rank_messages() {
  return {
      Hello{},
      Hello{.protocol = 3, .pid = -4, .build = "0.1.0 gcc 12"},
      BeaconHeld{},
      BeaconHeld{.address = address()},
      AttachGroup{},
      AttachGroup{.epoch = Epoch(2), .name = std::string("a\0b", 3), .seats = {Rank(1), Rank(0)}},
      KeepMemory{},
      KeepMemory{.what = "mirror", .bytes = 4096},
      Entered{},
      Entered{
          .epoch = Epoch(3), .bytes_from = {{Rank(1), 10}, {Rank(2), 1ULL << 50}}, .heal_ns = 99},
      Detach{},
      Fault{},
      Fault{.code = -1, .text = "no data"},
      EndEpoch{},
      EndEpoch{.epoch = Epoch(8), .why = "deadline"},
      RankParked{.epoch = Epoch(7)},
      StoreRequest{},
      StoreRequest{.id = 9,
                   .kind = StoreRequest::Kind::CompareSet,
                   .keys = {"a", std::string("b\0c", 3)},
                   .value = "new",
                   .expected = "old",
                   .amount = -5}};
}

inline std::vector<AgentToRank> agent_to_rank() {
  return {
      Welcome{},
      Welcome{.incarnation = Incarnation(8),
              .seat = Rank(0),
              .ranks = 4,
              .on_loss = OnLoss::Abort,
              .job = "7f3a",
              .ranks_on_host = 2,
              .replacement = true,
              .life = 6},
      Assign{},
      Assign{.seat = Rank(3), .kept = {"mirror", "", "prologue"}, .life = 2},
      ViewInstalled{},
      ViewInstalled{
          .view = view(), .groups = {group(), {}}, .cause = "rank 2 lost", .places = places()},
      GroupReady{},
      GroupReady{.epoch = Epoch(5), .group = group()},
      LossNotice{},
      LossNotice{.epoch = Epoch(5), .lost = lost(), .text = "rank 2"},
      Stop{},
      Stop{.exit_code = 137, .reason = "Ctrl-C"},
      Refused{},
      Refused{.code = Code::ResourceExhausted, .text = "no memory"},
      Released{},
      Released{.text = "rank 2 was drained"},
      StoreReply{},
      StoreReply{
          .id = 9, .code = Code::ResourceExhausted, .value = std::string("\0x", 2), .number = -1}};
}

inline Program program() {
  return {.path = "/usr/bin/train",
          .arguments = {"train", "", "-x"},
          .environment = {"A=1", "B=\xff"},
          .directory = "/data"};
}

inline std::vector<ShimMessage> shim_messages() {
  return {ShimHello{},
          ShimHello{.protocol = 2,
                    .place = 3,
                    .places = 4,
                    .pid = -5,
                    .descriptors_soft = 1ULL << 40,
                    .program = program()},
          ShimStarted{Incarnation(6), 77},
          ShimRefused{},
          ShimRefused{Incarnation(7), "fork: no memory", true},
          ShimExited{Incarnation(8), -1, 9, true},
          ShimSignalled{15}};
}

inline std::vector<AgentToShim> agent_to_shim() {
  return {ShimStart{},
          ShimStart{Incarnation(9), program(), 1024, true},
          ShimReap{Incarnation(10), true},
          ShimPrint{"rank 2 lost"},
          ShimBusy{"place 1 is taken"},
          ShimEnd{},
          ShimEnd{137, "killed"}};
}

inline std::vector<membership::AgentMessage> agent_messages() {
  using namespace membership;
  return {AgentHello{},
          AgentHello{.agent = AgentId(2),
                     .installed = view(),
                     .processes = {{Incarnation(1), Rank(0), ProcessState::Joined, {}, address()},
                                   {Incarnation(2),
                                    std::nullopt,
                                    ProcessState::Gone,
                                    evidence(EvidenceKind::AgentLost),
                                    {}}},
                     .wedged = report()},
          ProcessJoined{},
          ProcessJoined{Incarnation(4), address()},
          ProcessHealed{Incarnation(5)},
          ProcessLost{},
          ProcessLost{Incarnation(6), evidence(EvidenceKind::Silence), false},
          ProcessFinished{Incarnation(7)},
          Wedged{},
          Wedged{Round(3), report()},
          DecisionStored{Epoch(4), Round(5)},
          Installed{Epoch(6)},
          StartFailed{},
          StartFailed{Incarnation(7), "exec: no such file"},
          EvictRequest{},
          EvictRequest{Incarnation(8), "by hand"},
          StopRequest{},
          StopRequest{"Ctrl-C", 130},
          DrainRequest{},
          DrainRequest{1ULL << 40, {Incarnation(3), Incarnation(5)}, true},
          ScaleRequest{},
          ScaleRequest{7, 3, true},
          Parked{Epoch(8)}};
}

inline std::vector<membership::CoordinatorMessage> coordinator_messages() {
  using namespace membership;
  return {StartProcess{},
          StartProcess{Incarnation(3), Rank(1), 4},
          WedgeEpoch{},
          WedgeEpoch{Epoch(3), Round(4), lost()},
          StoreDecision{},
          StoreDecision{.epoch = Epoch(3),
                        .round = Round(4),
                        .cuts = report().groups,
                        .committed_step = 8,
                        .lost = lost()},
          InstallView{},
          InstallView{view(), lost(), {{Rank(1), Incarnation(6)}}, places()},
          EndJob{},
          EndJob{75, "no spare left"},
          Note{},
          Note{"evict", "rank 2: silent for 1.5 s"},
          ParkEpoch{Epoch(9)},
          Answer{},
          Answer{1ULL << 40, true, "rank 2 leaves"}};
}

inline std::vector<membership::DurableState> durable_states() {
  membership::DurableState full{
      .config = {.ranks = 8,
                 .ranks_min = 4,
                 .spares = 2,
                 .on_loss = OnLoss::Shrink,
                 .replacements_max = 3,
                 .restart_unattached = true,
                 .hosts = {{2, true}, {0, false}}},
      .view = view(),
      .next_incarnation = Incarnation(42),
      .term = 5,
      .state_exists = true,
      .ended = membership::EndJob{75, "end"},
      .losses = {{Rank(2), Incarnation(7), 3, TimePoint(nanoseconds(9))},
                 {Rank(-1), Incarnation(8), 0, TimePoint{}}},
      .progress_seen = Epoch(4),
      .newcomers_from = Incarnation(9),
      .planned = {{Rank(2), Incarnation(77), true, true}, {Rank(1), Incarnation(0), false, false}},
      .released = {{Rank(0), Incarnation(1)}},
      .decision = membership::Decision{
          .cuts = {{0, 17}, {3, 4}}, .committed_step = 12, .without = {Incarnation(4)}}};
  return {membership::DurableState{}, full};
}

}  // namespace regroup::control::samples
