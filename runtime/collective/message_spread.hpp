/// Which way something goes from one rank to all others, piece by piece. Pure.
#pragma once

#include <array>
#include <cstddef>

namespace regroup::collective {

/// Along a ring, or down two binary trees that take the pieces in turns: who passes pieces on in
/// one tree only takes them in the other, so nobody sends more than all of them once. After
/// Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"
/// (2009). Thread safety: a value.
class Spread {
 public:
  enum class Form : std::uint8_t { Ring, Trees };
  /// Up to two ranks; -1: none.
  using Receivers = std::array<int, 2>;

  Spread(Form form, int members, int root) : form_(form), members_(members), root_(root) {}

  [[nodiscard]] int root() const { return root_; }
  /// Who sends the piece to `member`; -1: it is the root.
  [[nodiscard]] int from(int member, std::size_t piece) const {
    const int behind = behind_root(member);
    if (behind == 0) return -1;
    if (form_ == Form::Ring) return member_at(behind - 1);
    const int place = place_of(behind, piece);
    int above = 0;
    for (int at = top(); at != place; at = place < at ? left(at) : right(at)) above = at;
    return above == 0 ? root_ : member_at(behind_of(above, piece));
  }
  [[nodiscard]] Receivers to(int member, std::size_t piece) const {
    const int behind = behind_root(member);
    if (members_ == 1) return {-1, -1};
    if (form_ == Form::Ring) return {behind + 1 < members_ ? member_at(behind + 1) : -1, -1};
    if (behind == 0) return {member_at(behind_of(top(), piece)), -1};
    const int place = place_of(behind, piece);
    const auto at = [&](int below) { return below == 0 ? -1 : member_at(behind_of(below, piece)); };
    return {at(left(place)), at(right(place))};
  }
  /// Messages that follow each other until any piece is at `member`.
  [[nodiscard]] int depth(int member) const {
    int most = 0;
    for (std::size_t piece = 0; piece < 2; ++piece) {
      int hops = 0;
      for (int at = member; at != root_; at = from(at, piece)) ++hops;
      most = most < hops ? hops : most;
    }
    return most;
  }

 private:
  [[nodiscard]] int behind_root(int member) const { return (member - root_ + members_) % members_; }
  [[nodiscard]] int member_at(int behind) const { return (root_ + behind) % members_; }

  // The others, 1..below(), are sorted into a binary tree, in which odd places have nobody below
  // them. In the second tree each is one place further, so that it is odd in one of them at least.
  [[nodiscard]] int below() const { return members_ - 1; }
  [[nodiscard]] int place_of(int behind, std::size_t piece) const {
    return piece % 2 == 0 ? behind : behind % below() + 1;
  }
  [[nodiscard]] int behind_of(int place, std::size_t piece) const {
    if (piece % 2 == 0) return place;
    return place == 1 ? below() : place - 1;
  }
  [[nodiscard]] int top() const {
    int place = 1;
    while (2 * place <= below()) place *= 2;
    return place;
  }
  [[nodiscard]] static int left(int place) {
    const int step = (place & -place) / 2;
    return step == 0 ? 0 : place - step;
  }
  [[nodiscard]] int right(int place) const {
    int step = (place & -place) / 2;
    while (step > 0 && place + step > below()) step /= 2;
    return step == 0 ? 0 : place + step;
  }

  Form form_;
  int members_;
  int root_;
};

}  // namespace regroup::collective
