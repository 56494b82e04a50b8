/// Bytes to messages: verified first, every enumerator checked, memory bounded by a budget.
#include <fmt/format.h>

#include <array>
#include <cstring>
#include <type_traits>

#include "control/codec.hpp"
#include "control_generated.h"

namespace regroup::control {
namespace {

constexpr flatbuffers::uoffset_t kDepthMax = 8;  // envelope, body, process, evidence: 4 are in use
constexpr flatbuffers::uoffset_t kTablesMax =
    65'536;  // a table takes at least 16 bytes with its reference and text
// Verified bytes may refer to one text many times over: what is copied out of them is limited by
// itself.
constexpr std::size_t kCopiedBytesMax = 4 * kMessageBytesMax;

/// Copies verified data out; remembers the first thing that is wrong with it.
class Reader {
 public:
  [[nodiscard]] const Status& status() const { return status_; }

  std::string text(const flatbuffers::String* from) {
    return from != nullptr && pay(from->size()) ? from->str() : std::string();
  }

  // Elements are copied byte by byte: the verifier does not vouch for their alignment.
  template <class Stored, class Element, class Make>
  auto list(const flatbuffers::Vector<Element>* from, Make make) {
    std::vector<std::invoke_result_t<Make, const Stored&>> to;
    if (from == nullptr || !pay(from->size() * sizeof(Stored))) return to;
    to.reserve(from->size());
    for (std::size_t i = 0; i < from->size(); ++i) {
      Stored stored;
      std::memcpy(&stored, from->Data() + i * sizeof(Stored), sizeof(Stored));
      to.push_back(make(stored));
    }
    return to;
  }

  template <class Element, class Make>
  auto tables(const flatbuffers::Vector<flatbuffers::Offset<Element>>* from, Make make) {
    std::vector<std::invoke_result_t<Make, const Element*>> to;
    if (from == nullptr) return to;
    for (const Element* element : *from) {
      // The footprint of an empty element counts as well: a bomb may consist of nothing but those.
      if (!pay(sizeof(typename decltype(to)::value_type))) break;
      to.push_back(make(element));
    }
    return to;
  }

  membership::MemberAddress address(const flatbuffers::Vector<std::uint8_t>* from) {
    if (from != nullptr && from->size() > membership::kMemberAddressBytesMax) {
      fail(Code::InvalidArgument,
           fmt::format("damaged control message: a member's address of {} bytes, at most {}",
                       from->size(), membership::kMemberAddressBytesMax));
      return {};
    }
    return list<std::uint8_t>(from, [](std::uint8_t raw) { return std::byte{raw}; });
  }

  template <class Enum>
  Enum one_of(std::uint8_t raw, Enum last, const char* what) {
    if (raw <= static_cast<std::uint8_t>(last)) return static_cast<Enum>(raw);
    fail(Code::InvalidArgument, fmt::format("damaged control message: {} is no {}", raw, what));
    return last;
  }

 private:
  bool pay(std::size_t bytes) {
    if (bytes <= budget_) {
      budget_ -= bytes;
      return true;
    }
    fail(Code::InvalidArgument,
         fmt::format("damaged control message: its content is larger than {} bytes",
                     kCopiedBytesMax));
    return false;
  }
  void fail(Code code, std::string text) {
    if (status_) status_ = Status(code, std::move(text));
  }

  Status status_;
  std::size_t budget_ = kCopiedBytesMax;
};

std::optional<Rank> seat(flatbuffers::Optional<std::int32_t> raw) {
  return raw ? std::optional(Rank(*raw)) : std::nullopt;
}

std::vector<Rank> ranks(Reader& in, const flatbuffers::Vector<std::int32_t>* from) {
  return in.list<std::int32_t>(from, [](std::int32_t raw) { return Rank(raw); });
}

std::vector<Member> members(Reader& in, const flatbuffers::Vector<const wire::MemberId*>* from) {
  return in.list<wire::MemberId>(from, [](const wire::MemberId& raw) {
    return Member{Rank(raw.rank()), Incarnation(raw.incarnation())};
  });
}

std::vector<Incarnation> incarnations(Reader& in, const flatbuffers::Vector<std::uint64_t>* from) {
  return in.list<std::uint64_t>(from, [](std::uint64_t raw) { return Incarnation(raw); });
}

std::vector<membership::WedgeReport::GroupCut> cuts(
    Reader& in, const flatbuffers::Vector<const wire::GroupCut*>* from) {
  return in.list<wire::GroupCut>(from, [](const wire::GroupCut& raw) {
    return membership::WedgeReport::GroupCut{raw.group(), raw.completed()};
  });
}

membership::View get(Reader& in, const wire::View* from) {
  return {.epoch = Epoch(from->epoch()),
          .seats = incarnations(in, from->seats()),
          .parent = from->parent(),
          .resume_step = from->resume_step()};
}

membership::Evidence get(Reader& in, const wire::Evidence* from) {
  return {.kind = in.one_of(from->kind(), membership::EvidenceKind::AgentLost, "kind of evidence"),
          .text = in.text(from->text()),
          .exit_code = from->exit_code(),
          .signal = from->signal()};
}

membership::WedgeReport get(Reader& in, const wire::WedgeReport* from) {
  return {.epoch = Epoch(from->epoch()),
          .groups = cuts(in, from->groups()),
          .prepared = from->prepared()};
}

membership::ProcessInfo get(Reader& in, const wire::ProcessInfo* from) {
  return {
      .incarnation = Incarnation(from->incarnation()),
      .seat = seat(from->seat()),
      .state = in.one_of(from->state(), membership::ProcessState::Released, "state of a process"),
      .evidence = get(in, from->evidence()),
      .address = in.address(from->address())};
}

std::vector<membership::SeatPlace> places(
    Reader& in, const flatbuffers::Vector<flatbuffers::Offset<wire::SeatPlace>>* from) {
  return in.tables(from, [&](const wire::SeatPlace* raw) {
    return membership::SeatPlace{membership::AgentId(raw->host()), raw->life(),
                                 in.address(raw->address())};
  });
}

ViewInstalled::Group get(Reader& in, const wire::Group* from) {
  return {.id = from->id(),
          .name = in.text(from->name()),
          .seats = ranks(in, from->seats()),
          .arena_bytes = from->arena_bytes()};
}

// ---- rank -> agent ----

Hello get(Reader& in, const wire::Hello* from) {
  return {.protocol = from->protocol(), .pid = from->pid(), .build = in.text(from->build())};
}
BeaconHeld get(Reader& in, const wire::BeaconHeld* from) {
  return {.address = in.address(from->address())};
}
AttachGroup get(Reader& in, const wire::AttachGroup* from) {
  return {.epoch = Epoch(from->epoch()),
          .name = in.text(from->name()),
          .seats = ranks(in, from->seats())};
}
KeepMemory get(Reader& in, const wire::KeepMemory* from) {
  return {.what = in.text(from->what()), .bytes = from->bytes()};
}
Entered get(Reader& in, const wire::Entered* from) {
  return {.epoch = Epoch(from->epoch()),
          .bytes_from =
              in.list<wire::DonorBytes>(from->bytes_from(),
                                        [](const wire::DonorBytes& raw) {
                                          return Entered::Bytes{Rank(raw.donor()), raw.bytes()};
                                        }),
          .heal_ns = from->heal_ns()};
}
Detach get(Reader&, const wire::Detach*) { return {}; }
Fault get(Reader& in, const wire::Fault* from) {
  return {.code = from->code(), .text = in.text(from->text())};
}
EndEpoch get(Reader& in, const wire::EndEpoch* from) {
  return {.epoch = Epoch(from->epoch()), .why = in.text(from->why())};
}
RankParked get(Reader&, const wire::RankParked* from) { return {.epoch = Epoch(from->epoch())}; }
StoreRequest get(Reader& in, const wire::StoreRequest* from) {
  return {.id = from->id(),
          .kind = in.one_of(from->kind(), StoreRequest::Kind::Cancel, "request to the store"),
          .keys = in.tables(from->keys(),
                            [&](const flatbuffers::String* text) { return in.text(text); }),
          .value = in.text(from->value()),
          .expected = in.text(from->expected()),
          .amount = from->amount()};
}

// ---- agent -> rank ----

Welcome get(Reader& in, const wire::Welcome* from) {
  return {.incarnation = Incarnation(from->incarnation()),
          .seat = seat(from->seat()),
          .ranks = from->ranks(),
          .on_loss = in.one_of(from->on_loss(), OnLoss::Abort, "policy"),
          .job = in.text(from->job()),
          .ranks_on_host = from->ranks_on_host(),
          .replacement = from->replacement(),
          .life = from->life()};
}
Assign get(Reader& in, const wire::Assign* from) {
  return {.seat = Rank(from->seat()),
          .kept = in.tables(from->kept(),
                            [&](const flatbuffers::String* text) { return in.text(text); }),
          .life = from->life()};
}
ViewInstalled get(Reader& in, const wire::ViewInstalled* from) {
  return {
      .view = get(in, from->view()),
      .groups = in.tables(from->groups(), [&](const wire::Group* group) { return get(in, group); }),
      .cause = in.text(from->cause()),
      .places = places(in, from->places())};
}
GroupReady get(Reader& in, const wire::GroupReady* from) {
  return {.epoch = Epoch(from->epoch()), .group = get(in, from->group())};
}
LossNotice get(Reader& in, const wire::LossNotice* from) {
  return {.epoch = Epoch(from->epoch()),
          .lost = members(in, from->lost()),
          .text = in.text(from->text())};
}
Stop get(Reader& in, const wire::Stop* from) {
  return {.exit_code = from->exit_code(), .reason = in.text(from->reason())};
}
Refused get(Reader& in, const wire::Refused* from) {
  return {.code = in.one_of(from->code(), Code::Internal, "error code"),
          .text = in.text(from->text())};
}
Released get(Reader& in, const wire::Released* from) { return {.text = in.text(from->text())}; }
StoreReply get(Reader& in, const wire::StoreReply* from) {
  return {.id = from->id(),
          .code = in.one_of(from->code(), Code::Internal, "error code"),
          .value = in.text(from->value()),
          .number = from->number()};
}

// ---- shim -> agent ----

Program get(Reader& in, const wire::Program* from) {
  const auto text = [&](const flatbuffers::String* one) { return in.text(one); };
  return {.path = in.text(from->path()),
          .arguments = in.tables(from->arguments(), text),
          .environment = in.tables(from->environment(), text),
          .directory = in.text(from->directory())};
}
ShimHello get(Reader& in, const wire::ShimHello* from) {
  return {.protocol = from->protocol(),
          .place = from->place(),
          .places = from->places(),
          .pid = from->pid(),
          .descriptors_soft = from->descriptors_soft(),
          .program = get(in, from->program())};
}
ShimStarted get(Reader&, const wire::ShimStarted* from) {
  return {.incarnation = Incarnation(from->incarnation()), .pid = from->pid()};
}
ShimRefused get(Reader& in, const wire::ShimRefused* from) {
  return {.incarnation = Incarnation(from->incarnation()),
          .why = in.text(from->why()),
          .again = from->again()};
}
ShimExited get(Reader&, const wire::ShimExited* from) {
  return {.incarnation = Incarnation(from->incarnation()),
          .exit_code = from->exit_code(),
          .signal = from->signal(),
          .core = from->core()};
}
ShimSignalled get(Reader&, const wire::ShimSignalled* from) { return {.signal = from->signal()}; }

// ---- agent -> shim ----

ShimStart get(Reader& in, const wire::ShimStart* from) {
  return {.incarnation = Incarnation(from->incarnation()),
          .program = get(in, from->program()),
          .descriptors_soft = from->descriptors_soft(),
          .input = from->input()};
}
ShimReap get(Reader&, const wire::ShimReap* from) {
  return {.incarnation = Incarnation(from->incarnation()), .keep = from->keep()};
}
ShimPrint get(Reader& in, const wire::ShimPrint* from) { return {.text = in.text(from->text())}; }
ShimBusy get(Reader& in, const wire::ShimBusy* from) { return {.why = in.text(from->why())}; }
ShimEnd get(Reader& in, const wire::ShimEnd* from) {
  return {.exit_code = from->exit_code(), .reason = in.text(from->reason())};
}

// ---- agent -> coordinator ----

membership::AgentHello get(Reader& in, const wire::AgentHello* from) {
  membership::AgentHello hello{
      .agent = membership::AgentId(from->agent()),
      .installed = get(in, from->installed()),
      .processes =
          in.tables(from->processes(), [&](const wire::ProcessInfo* one) { return get(in, one); })};
  if (from->wedged() != nullptr) hello.wedged = get(in, from->wedged());
  return hello;
}
membership::ProcessJoined get(Reader& in, const wire::ProcessJoined* from) {
  return {Incarnation(from->incarnation()), in.address(from->address())};
}
membership::ProcessHealed get(Reader&, const wire::ProcessHealed* from) {
  return {Incarnation(from->incarnation())};
}
membership::ProcessLost get(Reader& in, const wire::ProcessLost* from) {
  return {Incarnation(from->incarnation()), get(in, from->evidence()), from->attached()};
}
membership::ProcessFinished get(Reader&, const wire::ProcessFinished* from) {
  return {Incarnation(from->incarnation())};
}
membership::Wedged get(Reader& in, const wire::Wedged* from) {
  return {membership::Round(from->round()), get(in, from->report())};
}
membership::DecisionStored get(Reader&, const wire::DecisionStored* from) {
  return {Epoch(from->epoch()), membership::Round(from->round())};
}
membership::Installed get(Reader&, const wire::Installed* from) { return {Epoch(from->epoch())}; }
membership::StartFailed get(Reader& in, const wire::StartFailed* from) {
  return {Incarnation(from->incarnation()), in.text(from->why())};
}
membership::EvictRequest get(Reader& in, const wire::EvictRequest* from) {
  return {Incarnation(from->incarnation()), in.text(from->why())};
}
membership::StopRequest get(Reader& in, const wire::StopRequest* from) {
  return {in.text(from->why()), from->exit_code()};
}
membership::DrainRequest get(Reader& in, const wire::DrainRequest* from) {
  return {from->id(), incarnations(in, from->incarnations()), from->now()};
}
membership::ScaleRequest get(Reader&, const wire::ScaleRequest* from) {
  return {from->id(), from->seats(), from->now()};
}
membership::Parked get(Reader&, const wire::EpochParked* from) { return {Epoch(from->epoch())}; }

// ---- coordinator -> agent ----

membership::StartProcess get(Reader&, const wire::StartProcess* from) {
  return {Incarnation(from->incarnation()), seat(from->seat()), from->life()};
}
membership::WedgeEpoch get(Reader& in, const wire::WedgeEpoch* from) {
  return {Epoch(from->epoch()), membership::Round(from->round()), members(in, from->lost())};
}
membership::StoreDecision get(Reader& in, const wire::StoreDecision* from) {
  return {.epoch = Epoch(from->epoch()),
          .round = membership::Round(from->round()),
          .cuts = cuts(in, from->cuts()),
          .committed_step = from->committed_step(),
          .lost = members(in, from->lost())};
}
membership::InstallView get(Reader& in, const wire::InstallView* from) {
  return {get(in, from->view()), members(in, from->lost()), members(in, from->released()),
          places(in, from->places())};
}
membership::EndJob get(Reader& in, const wire::EndJob* from) {
  return {from->exit_code(), in.text(from->reason())};
}
membership::Note get(Reader& in, const wire::Note* from) {
  return {in.text(from->kind()), in.text(from->text())};
}
membership::ParkEpoch get(Reader&, const wire::ParkEpoch* from) { return {Epoch(from->epoch())}; }
membership::Answer get(Reader& in, const wire::Answer* from) {
  return {from->id(), from->accepted(), in.text(from->text())};
}

membership::Decision get(Reader& in, const wire::Decision* from) {
  return {.cuts = cuts(in, from->cuts()),
          .committed_step = from->committed_step(),
          .without = incarnations(in, from->without())};
}

membership::DurableState get(Reader& in, const wire::DurableState* from) {
  const wire::JobConfig& config = *from->config();
  membership::DurableState state{
      .config = {.ranks = config.ranks(),
                 .ranks_min = config.ranks_min(),
                 .spares = config.spares(),
                 .on_loss = in.one_of(config.on_loss(), OnLoss::Abort, "policy"),
                 .replacements_max = config.replacements_max(),
                 .restart_unattached = config.restart_unattached(),
                 .hosts =
                     in.list<wire::HostPlan>(config.hosts(),
                                             [](const wire::HostPlan& raw) {
                                               return membership::HostPlan{raw.seats(), raw.used()};
                                             })},
      .view = get(in, from->view()),
      .next_incarnation = Incarnation(from->next_incarnation()),
      .term = from->term(),
      .state_exists = from->state_exists()};
  if (from->ended() != nullptr) state.ended = get(in, from->ended());
  state.losses = in.list<wire::Loss>(from->losses(), [](const wire::Loss& raw) {
    return membership::Loss{Rank(raw.rank()), Incarnation(raw.incarnation()), raw.step(),
                            TimePoint(std::chrono::nanoseconds(raw.at_ns()))};
  });
  state.progress_seen = Epoch(from->progress_seen());
  state.newcomers_from = Incarnation(from->newcomers_from());
  state.planned = in.list<wire::PlannedChange>(from->planned(), [](const wire::PlannedChange& raw) {
    return membership::PlannedChange{Rank(raw.rank()), Incarnation(raw.incarnation()), raw.vacate(),
                                     raw.now()};
  });
  state.released = members(in, from->released());
  if (from->decision() != nullptr) state.decision = get(in, from->decision());
  return state;
}

// ---- envelopes ----

Status damaged(std::size_t bytes, const char* identifier) {
  return Status(
      Code::InvalidArgument,
      fmt::format("{} bytes are no control message of kind {}: damaged, or from another program",
                  bytes, identifier));
}

/// Verified bytes at an aligned address.
class Verified {
 public:
  template <class Root>
  Result<const Root*> open(std::span<const std::byte> bytes, const char* identifier) {
    if (bytes.size() > kMessageBytesMax) {
      return Status(Code::ResourceExhausted,
                    fmt::format("a control message of {} bytes exceeds the limit of {}",
                                bytes.size(), kMessageBytesMax));
    }
    if (bytes.size() < sizeof(flatbuffers::uoffset_t) + flatbuffers::kFileIdentifierLength) {
      return damaged(bytes.size(), identifier);
    }
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(std::max_align_t) != 0) {
      copy_.assign(bytes.begin(), bytes.end());
      bytes = copy_;
    }
    const auto* const begin = reinterpret_cast<const std::uint8_t*>(bytes.data());
    flatbuffers::Verifier verifier(begin, bytes.size(), kDepthMax, kTablesMax);
    if (!verifier.VerifyBuffer<Root>(identifier)) return damaged(bytes.size(), identifier);
    const Root* const root = flatbuffers::GetRoot<Root>(begin);
    if (root->protocol() != kProtocolVersion) {
      return Status(
          Code::Unsupported,
          fmt::format(
              "the other side speaks control protocol {}, this program {}: use one version of "
              "regroup for launcher and programs",
              root->protocol(), kProtocolVersion));
    }
    return root;
  }

 private:
  Bytes copy_;
};

template <class M>
using Getter = M (*)(Reader&, const void*);

// Table i of the union holds alternative i - 1 of the variant; `Tables` lists the wire types in
// that order.
template <class M, class... Tables>
constexpr auto getters() {
  static_assert(sizeof...(Tables) == std::variant_size_v<M>, "schema and variant differ");
  return std::array<Getter<M>, sizeof...(Tables)>{
      [](Reader& in, const void* body) { return M(get(in, static_cast<const Tables*>(body))); }...};
}

template <class M, class Envelope, std::size_t N>
Result<M> open_envelope(std::span<const std::byte> bytes, const char* identifier,
                        const std::array<Getter<M>, N>& known) {
  Verified verified;
  Result<const Envelope*> root = verified.open<Envelope>(bytes, identifier);
  if (!root) return root.error();
  // The verifier accepts union members that it does not know, and none at all.
  const auto type = static_cast<std::size_t>((*root)->body_type());
  if (type == 0 || type > N || (*root)->body() == nullptr) {
    return Status(Code::Unsupported, fmt::format("control message number {} of kind {} is not "
                                                 "known here: use one version of regroup for "
                                                 "launcher and programs",
                                                 type, identifier));
  }
  Reader reader;
  M message = known[type - 1](reader, (*root)->body());
  if (!reader.status()) return reader.status();
  return message;
}

}  // namespace

template <>
Result<RankMessage> decode<RankMessage>(std::span<const std::byte> bytes) {
  static constexpr auto kKnown =
      getters<RankMessage, wire::Hello, wire::BeaconHeld, wire::AttachGroup, wire::KeepMemory,
              wire::Entered, wire::Detach, wire::Fault, wire::EndEpoch, wire::RankParked,
              wire::StoreRequest>();
  return open_envelope<RankMessage, wire::RankEnvelope>(bytes, "RGRA", kKnown);
}

template <>
Result<AgentToRank> decode<AgentToRank>(std::span<const std::byte> bytes) {
  static constexpr auto kKnown =
      getters<AgentToRank, wire::Welcome, wire::Assign, wire::ViewInstalled, wire::GroupReady,
              wire::LossNotice, wire::Stop, wire::Refused, wire::Released, wire::StoreReply>();
  return open_envelope<AgentToRank, wire::AgentToRankEnvelope>(bytes, "RGAR", kKnown);
}

template <>
Result<ShimMessage> decode<ShimMessage>(std::span<const std::byte> bytes) {
  static constexpr auto kKnown =
      getters<ShimMessage, wire::ShimHello, wire::ShimStarted, wire::ShimRefused, wire::ShimExited,
              wire::ShimSignalled>();
  return open_envelope<ShimMessage, wire::ShimEnvelope>(bytes, "RGSA", kKnown);
}

template <>
Result<AgentToShim> decode<AgentToShim>(std::span<const std::byte> bytes) {
  static constexpr auto kKnown = getters<AgentToShim, wire::ShimStart, wire::ShimReap,
                                         wire::ShimPrint, wire::ShimBusy, wire::ShimEnd>();
  return open_envelope<AgentToShim, wire::AgentToShimEnvelope>(bytes, "RGAS", kKnown);
}

template <>
Result<membership::AgentMessage> decode<membership::AgentMessage>(
    std::span<const std::byte> bytes) {
  static constexpr auto kKnown =
      getters<membership::AgentMessage, wire::AgentHello, wire::ProcessJoined, wire::ProcessHealed,
              wire::ProcessLost, wire::ProcessFinished, wire::Wedged, wire::DecisionStored,
              wire::Installed, wire::StartFailed, wire::EvictRequest, wire::StopRequest,
              wire::DrainRequest, wire::ScaleRequest, wire::EpochParked>();
  return open_envelope<membership::AgentMessage, wire::AgentEnvelope>(bytes, "RGAC", kKnown);
}

template <>
Result<membership::CoordinatorMessage> decode<membership::CoordinatorMessage>(
    std::span<const std::byte> bytes) {
  static constexpr auto kKnown = getters<membership::CoordinatorMessage, wire::StartProcess,
                                         wire::WedgeEpoch, wire::StoreDecision, wire::InstallView,
                                         wire::EndJob, wire::Note, wire::ParkEpoch, wire::Answer>();
  return open_envelope<membership::CoordinatorMessage, wire::CoordinatorEnvelope>(bytes, "RGCA",
                                                                                  kKnown);
}

template <>
Result<membership::DurableState> decode<membership::DurableState>(
    std::span<const std::byte> bytes) {
  Verified verified;
  Result<const wire::DurableState*> root = verified.open<wire::DurableState>(bytes, "RGDS");
  if (!root) return root.error();
  Reader reader;
  membership::DurableState state = get(reader, *root);
  if (!reader.status()) return reader.status();
  return state;
}

}  // namespace regroup::control
