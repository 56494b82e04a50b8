/// Status and Result: how every fallible call of Regroup answers. No exceptions cross the API.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <regroup/types.hpp>

namespace regroup {

enum class Code : std::uint8_t {
  Ok,                  ///< done
  InvalidArgument,     ///< the call itself is wrong; nothing happened
  FailedPrecondition,  ///< right call, wrong moment (after destroy, after fork, outside a step)
  Unsupported,         ///< not offered in this build, on this machine or by this version
  ResourceExhausted,   ///< memory, descriptors or a limit of ours
  DeadlineExceeded,    ///< the caller's own deadline passed; the outcome is uniform all the same
  RankLost,            ///< a rank of this epoch was lost; the text names it
  Revoked,             ///< the epoch ended for another reason
  Fenced,              ///< this process was removed from the job
  Cancelled,           ///< the job is ending
  Unauthenticated,     ///< the other side could not show who it is
  Internal,            ///< a defect of ours
};

/// The enumerator's name. The text lives for ever.
[[nodiscard]] constexpr std::string_view name(Code code) {
  switch (code) {
    case Code::Ok: return "Ok";
    case Code::InvalidArgument: return "InvalidArgument";
    case Code::FailedPrecondition: return "FailedPrecondition";
    case Code::Unsupported: return "Unsupported";
    case Code::ResourceExhausted: return "ResourceExhausted";
    case Code::DeadlineExceeded: return "DeadlineExceeded";
    case Code::RankLost: return "RankLost";
    case Code::Revoked: return "Revoked";
    case Code::Fenced: return "Fenced";
    case Code::Cancelled: return "Cancelled";
    case Code::Unauthenticated: return "Unauthenticated";
    case Code::Internal: return "Internal";
  }
  return "?";
}

/// Where a failure belongs; fields are absent where they do not apply.
struct Where {
  std::optional<Rank> rank;                ///< the rank that is blamed
  std::optional<Incarnation> incarnation;  ///< its life
  std::optional<Epoch> epoch;
  std::string group;
  std::optional<Sequence> sequence;
};

/// Success, or a code with a text that says what to do. Converts to true when it is a success.
/// Costs one pointer.
/// Thread safety: a value; concurrent reads are fine.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string text, Where where = {})
      : error_(code == Code::Ok ? nullptr
                                : std::make_shared<const Error>(
                                      Error{code, std::move(text), std::move(where)})) {}

  [[nodiscard]] bool ok() const { return error_ == nullptr; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] Code code() const { return error_ ? error_->code : Code::Ok; }
  /// Empty on success.
  [[nodiscard]] std::string_view text() const {
    return error_ ? std::string_view(error_->text) : std::string_view();
  }
  /// Empty fields on success.
  [[nodiscard]] const Where& where() const {
    static const Where nowhere;
    return error_ ? error_->where : nowhere;
  }
  /// "RankLost: rank 2 ..." or "Ok".
  [[nodiscard]] std::string to_string() const {
    return ok() ? std::string("Ok") : std::string(name(code())) + ": " + std::string(text());
  }

 private:
  struct Error {
    Code code;
    std::string text;
    Where where;
  };
  std::shared_ptr<const Error> error_;
};

/// A value or the Status that explains its absence; member names follow std::expected.
/// Thread safety: a value; concurrent reads are fine.
template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;
  Result(T value)
      : data_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Status error)
      : data_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool has_value() const { return data_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  /// Ends the process with the error's text when there is no value.
  [[nodiscard]] T& value() & { return require(), std::get<0>(data_); }
  [[nodiscard]] const T& value() const& { return require(), std::get<0>(data_); }
  [[nodiscard]] T&& value() && { return require(), std::get<0>(std::move(data_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  /// Ok when there is a value.
  [[nodiscard]] Status error() const { return has_value() ? Status() : std::get<1>(data_); }

 private:
  void require() const {
    if (has_value()) return;
    std::fprintf(stderr, "regroup: %s\n", std::get<1>(data_).to_string().c_str());
    std::abort();
  }
  std::variant<T, Status> data_;
};

}  // namespace regroup
