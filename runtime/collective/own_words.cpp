#include "collective/own_words.hpp"

#include <fmt/format.h>

namespace regroup::collective {

std::string written_over(std::string_view what, std::uint64_t found, std::uint64_t written) {
  return fmt::format(
      "{} of this rank says {:#x} where the rank wrote {:#x}: somebody else wrote it", what, found,
      written);
}

std::string OwnWords::find_damage() const {
  const spi::WordState of_group = spi::read(group());
  const spi::WordState of_step = spi::read(step());
  if (!of_group.decided && of_group.number != completed_)
    return written_over("the group word", of_group.number, completed_);
  if (!of_step.decided && of_step.number != prepared_)
    return written_over("the step word", of_step.number, prepared_);
  if ((of_group.decided && !of_group.wedged) || (of_step.decided && !of_step.wedged))
    return "a word of this rank is decided and not wedged: somebody else wrote it";
  return {};
}

void OwnWords::restore() const {
  spi::restore(group(), completed_);
  spi::restore(step(), prepared_);
}

Outcome without_decision(spi::WaitEnd end, std::uint64_t number, std::string_view what) {
  if (end == spi::WaitEnd::Interrupted) {
    return {OutcomeKind::Damaged, number,
            "the epoch is over, and this rank's word does not say what was decided: somebody else "
            "wrote it"};
  }
  return {OutcomeKind::Expired, number,
          fmt::format("{}: a rank was lost, and the decision about it did not come before the "
                      "deadline",
                      what)};
}

std::string name_call(const spi::OpDescriptor& descriptor, std::uint64_t sequence) {
  return fmt::format("{} (operation {} of the group)", spi::describe(descriptor), sequence);
}

Outcome not_prepared(std::uint64_t step, int rank) {
  return {OutcomeKind::Expired, step,
          fmt::format("step {}: rank {} of the group did not prepare it before the deadline", step,
                      rank)};
}

}  // namespace regroup::collective
