#include "tests/sim/checkers.hpp"

#include <utility>

namespace regroup::sim {

Checks::Checks(const Swarm& swarm) {
  for (auto make : {make_safety_checkers, make_outcome_checkers, make_liveness_checkers}) {
    for (auto& checker : make(swarm)) checkers_.push_back(std::move(checker));
  }
}
Checks::~Checks() = default;

void Checks::on(const Record& record) {
  if (violation_) return;
  for (auto& checker : checkers_) {
    if (auto wrong = checker->on(record)) return fail(checker->property(), std::move(*wrong));
  }
}

void Checks::at_end(const Ending& ending) {
  for (auto& checker : checkers_) {
    if (violation_) return;
    if (auto wrong = checker->at_end(ending)) fail(checker->property(), std::move(*wrong));
  }
}

void Checks::fail(std::string property, std::string text) {
  if (!violation_) violation_ = Violation{std::move(property), std::move(text)};
}

}  // namespace regroup::sim
