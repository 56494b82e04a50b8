/// Rules that can be broken on purpose: tests that never fail prove nothing. The `mutants.txt` of a
/// module names its rules and says what each breaks; docs/testing.md says what finds them.
///
///     if (!REGROUP_MUTANT(SKIP_PERSIST)) persist();
///
/// In what ships the condition is the constant false and leaves no code. A source compiled with
/// -DREGROUP_MUTANTS=NAME breaks the rule NAME; with -DREGROUP_MUTANTS=None it breaks the one that
/// the program stores in `broken_rule` before it starts, or none.
#pragma once

#ifdef REGROUP_MUTANTS
namespace regroup {

/// All names of all lists; a name in a source that no list has does not compile.
enum class Mutant {
  None,
#define REGROUP_MUTANT_NAME(name) name,
#include "mutant_names.inc"
#undef REGROUP_MUTANT_NAME
};

inline Mutant broken_rule = Mutant::REGROUP_MUTANTS;

}  // namespace regroup
#define REGROUP_MUTANT(name) (::regroup::broken_rule == ::regroup::Mutant::name)
#else
#define REGROUP_MUTANT(name) false
#endif
