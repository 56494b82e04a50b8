#include "collective/message_hub.hpp"

#include <poll.h>

#include <algorithm>

#include "base/check.hpp"

namespace regroup::collective {

MessageHub::MessageHub(std::unique_ptr<spi::MessagePort> port) : port_(std::move(port)) {
  port_->deliver_to(*this);
  server_ = std::thread([this] { serve(); });
}

MessageHub::~MessageHub() {
  {
    const std::lock_guard guard(mutex_);
    over_ = true;
  }
  ending_.notify_all();
  port_->wake();
  server_.join();
  port_.reset();  // it may still report what ends now
}

// Who waits moves messages itself, without a hand-over between threads; this one steps aside then,
// and for a moment after, so that operations that follow each other do not wake it each time.
void MessageHub::serve() {
  Lock held(mutex_);
  std::uint64_t seen = 0;
  while (!over_) {
    if (waiting_ > 0 || waits_ != seen) {
      seen = waits_;
      ending_.wait_for(held, kIdle);
      continue;
    }
    if (move() > 0 || !port_->arm()) continue;
    held.unlock();
    pollfd ready{.fd = port_->descriptor(), .events = POLLIN, .revents = 0};
    (void)::poll(&ready, 1, static_cast<int>(kServeInterval.count()));
    held.lock();
  }
}

int MessageHub::move() {
  const int moved = port_->progress();
  if (moved > 0 && waiting_ > 1) changed_.notify_all();
  return moved;
}

void MessageHub::wait_for_turn(Lock& held, spi::Deadline until) {
  auto limit = std::chrono::milliseconds(kLookInterval);
  if (until != spi::kNoDeadline) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
    limit = std::clamp(left, std::chrono::milliseconds(0), limit);
  }
  if (blocking_) {
    changed_.wait_for(held, limit);
  } else {
    block(held, limit);
  }
}

void MessageHub::block(Lock& held, std::chrono::milliseconds limit) {
  if (!port_->arm()) return;
  blocking_ = true;
  held.unlock();
  pollfd ready{.fd = port_->descriptor(), .events = POLLIN, .revents = 0};
  (void)::poll(&ready, 1, static_cast<int>(limit.count()));
  held.lock();
  blocking_ = false;
  if (waiting_ > 1) changed_.notify_all();
}

void MessageHub::attach(Epoch epoch, std::uint32_t group, MessageReceiver& receiver) {
  const Key key{epoch.value(), group};
  REGROUP_ASSERT(!receivers_.contains(key));
  receivers_[key] = &receiver;
  const auto early = held_.find(key);
  if (early == held_.end()) return;
  const std::vector<Held> messages = std::move(early->second);
  held_.erase(early);
  held_count_ -= messages.size();
  for (const Held& each : messages) {
    receiver.on_message(each.header, each.data.data(), each.data.size());
  }
}

void MessageHub::detach(Epoch epoch, std::uint32_t group) {
  const Key key{epoch.value(), group};
  receivers_.erase(key);
  std::erase_if(places_, [&](const auto& each) {
    if (each.second != key) return false;
    port_->withdraw(each.first);
    return true;
  });
}

void MessageHub::begin_epoch(Epoch epoch) {
  epoch_ = std::max(epoch_, epoch.value());
  while (!held_.empty() && held_.begin()->first.first < epoch_) {
    counters_.stale += held_.begin()->second.size();
    held_count_ -= held_.begin()->second.size();
    held_.erase(held_.begin());
  }
}

void MessageHub::post(int channel, const spi::MessageHeader& header, const void* data,
                      std::size_t bytes) {
  if (is_open(channel)) port_->post(channel, header, data, bytes);
}

void MessageHub::send(int channel, const spi::MessageHeader& header, const void* data,
                      std::size_t bytes, MessageReceiver& receiver, std::uint64_t purpose) {
  const std::uint64_t token = next_token_++;
  sending_[token] = {&receiver, purpose};
  port_->send(channel, header, data, bytes, token);
}

void MessageHub::withdraw(const std::byte* place) {
  if (places_.erase(place) != 0) port_->withdraw(place);
}

void MessageHub::abandon(const MessageReceiver& receiver) {
  counters_.abandoned +=
      std::erase_if(sending_, [&](const auto& each) { return each.second.first == &receiver; });
}

MessageReceiver* MessageHub::receiver_of(const spi::MessageHeader& header) {
  const auto found = receivers_.find({header.epoch, header.group});
  return found == receivers_.end() ? nullptr : found->second;
}

void MessageHub::on_message(const spi::MessageHeader& header, const std::byte* data,
                            std::size_t bytes) {
  if (MessageReceiver* receiver = receiver_of(header)) {
    receiver->on_message(header, data, bytes);
    return;
  }
  if (header.epoch < epoch_) {
    ++counters_.stale;
    return;
  }
  // Somebody entered the epoch, or made the group, before this rank.
  if (held_count_ >= kHeldMax || bytes > spi::kPostedBytesMax) {
    ++counters_.refused;
    return;
  }
  ++held_count_;
  held_[{header.epoch, header.group}].push_back({header, {data, data + bytes}});
}

std::byte* MessageHub::place_for(const spi::MessageHeader& header, std::size_t bytes) {
  MessageReceiver* receiver = receiver_of(header);
  std::byte* place = receiver == nullptr ? nullptr : receiver->place_for(header, bytes);
  if (place == nullptr) {
    ++counters_.stale;
  } else {
    places_[place] = {header.epoch, header.group};
  }
  return place;
}

void MessageHub::on_placed(const spi::MessageHeader& header, const std::byte* place, bool whole) {
  if (places_.erase(place) == 0) return;
  if (MessageReceiver* receiver = receiver_of(header)) receiver->on_placed(header, whole);
}

void MessageHub::on_sent(std::uint64_t token, bool whole) {
  const auto found = sending_.find(token);
  if (found == sending_.end()) return;
  const auto [receiver, purpose] = found->second;
  sending_.erase(found);
  receiver->on_sent(purpose, whole);
}

void MessageHub::on_broken(int channel, const std::string& why) {
  closed_.try_emplace(channel, Closed{Clock::now(), why});
}

void MessageHub::close(int channel) {
  closed_.try_emplace(channel, Closed{Clock::now(), "closed by this rank"});
  port_->close(channel);
}

}  // namespace regroup::collective
