// Operations before the first step: recorded for newcomers, and made again by the runtime itself
// when a rank is lost meanwhile.
#include "engine/group.hpp"
#include "engine/job.hpp"
#include "engine/result_check.hpp"

namespace regroup::engine {
namespace {

using collective::Outcome;
using collective::OutcomeKind;

}  // namespace

Status GroupImpl::perform_in_prologue(const Request& request, bool background) {
  const auto until = request.deadline();
  const bool message = request.kind != Request::Kind::Collective;
  auto& index = message ? prologue_messages_ : prologue_calls_;
  const auto seats = present_seats();
  const InputCopy input(request, size(), me_);
  for (Epoch than{};;) {
    auto share = job_.share_epoch(than, until);
    if (!share) return share.error();
    // A seat that stays vacant changes the sizes of buffers: the program has to decide.
    if (present_seats() != seats && !job_.repeats_prologue())
      return job_.lost(than, name_, index + 1);
    const auto call = call_of(request);
    auto answered = job_.prologue().answer(call, index, result_of(request));
    if (!answered) return answered.error();
    if (*answered) {
      ++index;
      return {};
    }
    if (message) job_.prologue().note_message();
    const auto outcome = message ? run(request, background, until)
                                 : run_and_confirm(request, call, background, until);
    if (outcome.ok()) {
      ++index;
      if (message) (void)job_.record(call, result_of(request), request.options.healed_later);
      return {};
    }
    if (!message) input.restore();
    if (message || outcome.kind != OutcomeKind::Lost) return to_status(request, outcome);
    than = epoch_;
  }
}

// Who returns from a call must be sure that every seat has it in its record: then nobody ever has
// to be given a result that only a dead rank knew, or a contribution that only a rank that went on
// had.
Outcome GroupImpl::run_and_confirm(const Request& request, const PrologueCall& call,
                                   bool background, spi::Deadline until) {
  auto outcome = run(request, background, until);
  if (!outcome.ok()) return outcome;
  // No memory for it: a newcomer will be told so, the others go on.
  (void)job_.record(call, recorded_of(request), request.options.healed_later);
  auto confirmed = confirm(background, until);
  if (!confirmed.ok()) {
    job_.prologue().take_back(call);
    return confirmed;
  }
  job_.prologue().confirm(call);
  return outcome;
}

Outcome GroupImpl::confirm(bool background, spi::Deadline until) {
  Request barrier;
  barrier.operation = metrics::Operation::Barrier;
  barrier.spec.kind = spi::OpKind::Barrier;
  barrier.label = "confirm";
  return run(barrier, background, until);
}

}  // namespace regroup::engine
