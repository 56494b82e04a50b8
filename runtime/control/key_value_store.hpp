/// Small keys and values that the processes of a job share: what meets before groups exist.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <regroup/status.hpp>

#include "control/messages.hpp"

namespace regroup::control {

/// The machine behind regroup::Store; pure. It outlives the processes that it serves and is bounded
/// in memory. Thread safety: one thread at a time.
class KeyValueStore {
 public:
  /// One process; its waiting requests end with it.
  using Client = std::uint64_t;
  struct Answer {
    Client client = 0;
    StoreReply reply;
    bool operator==(const Answer&) const = default;
  };

  static constexpr std::size_t kKeyBytesMax = 4096;
  static constexpr std::size_t kKeysOfARequestMax = 4096;
  static constexpr std::size_t kValueBytesMax = std::size_t{512} << 10;
  static constexpr std::size_t kKeysMax = 65'536;
  static constexpr std::size_t kBytesMax = std::size_t{64} << 20;  ///< of all keys and values
  static constexpr std::size_t kWaitingMax = 256;                  ///< of one client

  /// The answers that the request gives, to other clients too; a request that waits gives none now.
  /// Errors, in the reply: InvalidArgument (misuse), ResourceExhausted (a limit above).
  std::vector<Answer> step(Client client, const StoreRequest& request);
  /// The client is gone.
  void drop(Client client);

 private:
  struct Waiting {
    StoreRequest request;
    std::set<std::string> missing;
  };
  [[nodiscard]] Status validate(const StoreRequest& request) const;
  Status put(const std::string& key, std::string value);
  StoreReply answer_now(const StoreRequest& request);
  StoreReply add(const StoreRequest& request);
  StoreReply compare_set(const StoreRequest& request);
  bool erase(const std::string& key);
  void wait(Client client, const StoreRequest& request, std::vector<Answer>& answers);
  void wake(const std::string& key, std::vector<Answer>& answers);
  [[nodiscard]] StoreReply found(const StoreRequest& request) const;

  std::map<std::string, std::string> values_;
  std::size_t bytes_ = 0;
  std::map<Client, std::map<std::uint64_t, Waiting>> waiting_;
};

}  // namespace regroup::control
