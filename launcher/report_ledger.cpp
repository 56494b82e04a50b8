#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

#include "launcher/report.hpp"

namespace regroup::launcher {
namespace {

using metrics::Category;
using metrics::Snapshot;
using nlohmann::json;

std::uint64_t positive(std::int64_t ns) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 0));
}

/// A span that belongs to one category as a whole.
Snapshot span(Category category, std::int64_t ns) {
  Snapshot out;
  out[category] = out.wall_ns = positive(ns);
  return out;
}

std::int64_t asked_ranks(const json& job) {
  const auto at = job.find("ranks");
  return at != job.end() && at->is_number_integer() ? at->get<std::int64_t>() : 0;
}

/// Without what a process did after it had left its seat.
Snapshot seated(Snapshot time) {
  time.wall_ns -= std::min(time.wall_ns, time[Category::Drain]);
  time[Category::Drain] = 0;
  return time;
}

json category_json(const Snapshot& time) {
  json out = json::object();
  for (std::size_t i = 0; i < metrics::kCategories; ++i) {
    const auto category = static_cast<Category>(i);
    if (category != Category::Spare) out[std::string(metrics::name(category))] = time[category];
  }
  return out;
}

}  // namespace

/// What lies between the end of a seat's last life and the end of the job.
void Report::add_end(metrics::SeatLedger& seat, const Life& last, std::int64_t cursor) const {
  if (last.drained_ns) return seat.add_vacant(positive(wall_ns_ - cursor));
  if (!last.lost_ns) {
    seat.add_life(span(Category::Unknown, wall_ns_ - cursor));
    return;
  }
  add_vacancy(seat, last, cursor, wall_ns_);
}

/// From a loss on, until somebody else takes the seat.
void Report::add_vacancy(metrics::SeatLedger& seat, const Life& lost, std::int64_t cursor,
                         std::int64_t until) const {
  metrics::Gap gap{.died_ns = positive(cursor), .detected_ns = positive(*lost.lost_ns)};
  std::int64_t vacant_from = until;
  if (lost.recovery != 0) {
    const Recovery& recovery = recoveries_[lost.recovery - 1];
    gap.decided_ns = positive(recovery.decided_ns.value_or(0));
    // A view without this seat: from there on the job ran on with less than it asked for.
    vacant_from = std::clamp(recovery.installed_ns.value_or(until), cursor, until);
  }
  gap.attached_ns = positive(vacant_from);
  seat.add_gap(gap);
  seat.add_vacant(positive(until - vacant_from));
}

void Report::add_between(metrics::SeatLedger& seat, const Life& before, const Life& next,
                         std::int64_t cursor, std::int64_t began) const {
  if (before.drained_ns) return seat.add_vacant(positive(began - cursor));
  metrics::Gap gap{.died_ns = positive(cursor), .attached_ns = positive(began)};
  gap.detected_ns = positive(before.lost_ns.value_or(0));
  if (before.recovery != 0) {
    const Recovery& recovery = recoveries_[before.recovery - 1];
    // The others carried on without the seat.
    if (before.lost_ns && recovery.installed_ns && next.seated > recovery.to)
      return add_vacancy(seat, before, cursor, began);
    gap.decided_ns = positive(recovery.decided_ns.value_or(0));
  }
  if (next.started_ns && *next.started_ns > cursor) gap.launched_ns = positive(*next.started_ns);
  seat.add_gap(gap);
}

Snapshot Report::seat_time(const std::vector<Incarnation>& holders, std::uint64_t& spare_ns) const {
  metrics::SeatLedger seat;
  std::int64_t cursor = 0;  // up to here the seat's time is attributed
  const Life* before = nullptr;
  for (const Incarnation incarnation : holders) {
    const auto found = lives_.find(incarnation);
    if (found == lives_.end()) continue;
    const Life& one = found->second;
    std::int64_t ended = one.finished_ns.value_or(wall_ns_);
    if (one.lost_ns) ended = *one.lost_ns - one.detect_ns;
    if (one.drained_ns) ended = *one.drained_ns;
    std::optional<Snapshot> time = one.time;
    if (time && one.drained_ns) time = seated(*time);
    std::int64_t began = one.started_ns.value_or(cursor);
    if (time) {
      began = ended - static_cast<std::int64_t>(time->wall_ns -
                                                std::min(time->wall_ns, (*time)[Category::Spare]));
    }
    began = std::max(began, cursor);
    if (before == nullptr) {
      seat.add_life(span(Category::Launch, began - cursor));
    } else {
      add_between(seat, *before, one, cursor, began);
    }
    // A process that never attached kept no ledger: what it did is not known.
    seat.add_life(time ? *time : span(Category::Unknown, ended - began));
    cursor = std::max(ended, began);
    before = &one;
  }
  if (before != nullptr) add_end(seat, *before, cursor);
  spare_ns += seat.spare_ns();
  return seat.total();
}

json Report::ledger_json() const {
  const auto ranks =
      static_cast<std::uint32_t>(std::clamp<std::int64_t>(asked_ranks(job_), 0, UINT32_MAX));
  Snapshot total;
  std::uint64_t spare_ns = 0;
  json seats = json::array();
  for (const auto& [rank, holders] : holders_) {
    const Snapshot time = seat_time(holders, spare_ns);
    metrics::merge(total, time);
    seats.push_back({{"rank", rank.value()},
                     {"category_ns", category_json(time)},
                     {"overlapped_ns", time.overlapped_ns},
                     {"operations", time.operations},
                     {"operation_bytes", time.operation_bytes}});
  }
  bool measured = false;
  for (const auto& [incarnation, one] : lives_) {
    measured = measured || one.time.has_value();
    // Spares that never took a seat stand in no seat's ledger.
    const bool seated =
        std::any_of(holders_.begin(), holders_.end(), [&, id = incarnation](const auto& seat) {
          return std::find(seat.second.begin(), seat.second.end(), id) != seat.second.end();
        });
    if (one.time && !seated) spare_ns += (*one.time)[Category::Spare];
  }
  const metrics::Ett ett = metrics::ett(total, ranks, positive(wall_ns_));
  const double asked = static_cast<double>(ranks) * static_cast<double>(wall_ns_);
  const double booked = static_cast<double>(total.sum());
  return {{"measured", measured},
          {"ranks", std::move(seats)},
          {"total_ns", category_json(total)},
          {"overlapped_ns", total.overlapped_ns},
          {"spare_ns", spare_ns},
          {"ett_strict", ett.strict},
          {"ett_progress", ett.progress},
          {"residual", asked > 0 ? (booked - asked) / asked : 0.0}};
}

}  // namespace regroup::launcher
