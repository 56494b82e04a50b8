#include "control/key_value_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace regroup::control {
namespace {

using Kind = StoreRequest::Kind;

StoreReply failure(std::uint64_t id, const Status& why) {
  return {.id = id, .code = why.code(), .value = std::string(why.text())};
}

bool names_one_key(Kind kind) {
  return kind == Kind::Set || kind == Kind::Get || kind == Kind::Add || kind == Kind::CompareSet ||
         kind == Kind::Erase;
}

std::optional<std::int64_t> number_in(const std::string& text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

Status KeyValueStore::validate(const StoreRequest& request) const {
  if (names_one_key(request.kind) && request.keys.size() != 1)
    return {Code::InvalidArgument, "this request to the store is about one key"};
  if (request.keys.size() > kKeysOfARequestMax) {
    return {Code::ResourceExhausted,
            fmt::format("a request to the store names at most {} keys", kKeysOfARequestMax)};
  }
  for (const auto& key : request.keys) {
    if (key.empty() || key.size() > kKeyBytesMax) {
      return {Code::InvalidArgument,
              fmt::format("a key of the store has 1 to {} bytes, this one {}", kKeyBytesMax,
                          key.size())};
    }
  }
  if (request.value.size() <= kValueBytesMax) return {};
  return {Code::ResourceExhausted,
          fmt::format("a value of the store has at most {} bytes, this one {}; send larger data by "
                      "a collective",
                      kValueBytesMax, request.value.size())};
}

std::vector<KeyValueStore::Answer> KeyValueStore::step(Client client, const StoreRequest& request) {
  std::vector<Answer> answers;
  if (request.kind == Kind::Cancel) {
    if (const auto mine = waiting_.find(client); mine != waiting_.end())
      mine->second.erase(request.id);
    return answers;
  }
  if (auto status = validate(request); !status) {
    answers.push_back({client, failure(request.id, status)});
  } else if (request.kind == Kind::Get || request.kind == Kind::Wait) {
    wait(client, request, answers);
  } else {
    auto reply = answer_now(request);
    const bool may_wake = reply.code == Code::Ok && names_one_key(request.kind);
    answers.push_back({client, std::move(reply)});
    if (may_wake && values_.contains(request.keys[0])) wake(request.keys[0], answers);
  }
  return answers;
}

void KeyValueStore::drop(Client client) { waiting_.erase(client); }

StoreReply KeyValueStore::answer_now(const StoreRequest& request) {
  const auto has = [this](const std::string& key) { return values_.contains(key); };
  switch (request.kind) {
    case Kind::Set:
      if (auto status = put(request.keys[0], request.value); !status)
        return failure(request.id, status);
      return {.id = request.id};
    case Kind::Has:
      return {.id = request.id, .number = std::ranges::all_of(request.keys, has) ? 1 : 0};
    case Kind::Add: return add(request);
    case Kind::CompareSet: return compare_set(request);
    case Kind::Erase: return {.id = request.id, .number = erase(request.keys[0]) ? 1 : 0};
    case Kind::Count:
      return {.id = request.id, .number = static_cast<std::int64_t>(values_.size())};
    case Kind::Get:
    case Kind::Wait:
    case Kind::Cancel: break;
  }
  return failure(request.id, {Code::Internal, "this request to the store has no answer"});
}

Status KeyValueStore::put(const std::string& key, std::string value) {
  const auto found = values_.find(key);
  const std::size_t before = found == values_.end() ? 0 : key.size() + found->second.size();
  const std::size_t after = bytes_ - before + key.size() + value.size();
  if (after > kBytesMax || (before == 0 && values_.size() >= kKeysMax)) {
    return {Code::ResourceExhausted,
            fmt::format("the job's store is full: at most {} keys and {} MiB; delete keys that "
                        "nobody needs any more",
                        kKeysMax, kBytesMax >> 20)};
  }
  bytes_ = after;
  values_.insert_or_assign(key, std::move(value));
  return {};
}

StoreReply KeyValueStore::add(const StoreRequest& request) {
  const auto& key = request.keys[0];
  const auto found = values_.find(key);
  const auto before =
      found == values_.end() ? std::optional<std::int64_t>(0) : number_in(found->second);
  std::int64_t sum = 0;
  if (!before || __builtin_add_overflow(*before, request.amount, &sum)) {
    return failure(request.id,
                   {Code::InvalidArgument,
                    fmt::format("key \"{}\" of the store holds no number, or the sum is beyond 64 "
                                "bits",
                                key)});
  }
  if (auto status = put(key, fmt::format("{}", sum)); !status) return failure(request.id, status);
  return {.id = request.id, .number = sum};
}

StoreReply KeyValueStore::compare_set(const StoreRequest& request) {
  const auto& key = request.keys[0];
  const auto found = values_.find(key);
  const std::string now = found == values_.end() ? std::string() : found->second;
  if (now != request.expected) return {.id = request.id, .value = now};
  if (auto status = put(key, request.value); !status) return failure(request.id, status);
  return {.id = request.id, .value = request.value, .number = 1};
}

bool KeyValueStore::erase(const std::string& key) {
  const auto found = values_.find(key);
  if (found == values_.end()) return false;
  bytes_ -= key.size() + found->second.size();
  values_.erase(found);
  return true;
}

StoreReply KeyValueStore::found(const StoreRequest& request) const {
  StoreReply reply{.id = request.id};
  if (request.kind == Kind::Get) reply.value = values_.at(request.keys[0]);
  return reply;
}

void KeyValueStore::wait(Client client, const StoreRequest& request, std::vector<Answer>& answers) {
  std::set<std::string> missing;
  for (const auto& key : request.keys) {
    if (!values_.contains(key)) missing.insert(key);
  }
  if (missing.empty()) {
    answers.push_back({client, found(request)});
    return;
  }
  auto& mine = waiting_[client];
  if (mine.size() >= kWaitingMax) {
    answers.push_back({client, failure(request.id, {Code::ResourceExhausted,
                                                    fmt::format("a process waits for at most {} "
                                                                "things in the store at once",
                                                                kWaitingMax)})});
    return;
  }
  mine.insert_or_assign(request.id, Waiting{request, std::move(missing)});
}

void KeyValueStore::wake(const std::string& key, std::vector<Answer>& answers) {
  for (auto& [client, requests] : waiting_) {
    for (auto each = requests.begin(); each != requests.end();) {
      auto& [request, missing] = each->second;
      // Another of its keys may have been deleted since.
      missing.erase(key);
      if (missing.empty()) {
        for (const auto& wanted : request.keys) {
          if (!values_.contains(wanted)) missing.insert(wanted);
        }
      }
      if (!missing.empty()) {
        ++each;
        continue;
      }
      answers.push_back({client, found(request)});
      each = requests.erase(each);
    }
  }
}

}  // namespace regroup::control
