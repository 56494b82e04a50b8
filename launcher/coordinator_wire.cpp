#include "launcher/coordinator_wire.hpp"

#include <algorithm>
#include <utility>

namespace regroup::launcher {
namespace {

/// Shorter than any message.
constexpr std::byte kBeat[1] = {std::byte{0}};

class PairWire final : public CoordinatorWire {
 public:
  explicit PairWire(control::Channel channel) : channel_(std::move(channel)) {}
  [[nodiscard]] int fd() const override { return channel_.fd(); }
  [[nodiscard]] bool wants_write() const override { return channel_.wants_write(); }
  [[nodiscard]] bool ready() const override { return true; }
  Status progress() override { return channel_.flush(); }
  Status send(std::span<const std::byte> message) override { return channel_.send(message); }
  Result<std::optional<control::Bytes>> next() override {
    Result<std::optional<control::Packet>> packet = channel_.try_recv();
    if (!packet) return packet.error();
    if (!packet->has_value()) return std::optional<control::Bytes>();
    ++heard_;
    return std::optional<control::Bytes>(std::move((*packet)->bytes));
  }
  // On one host the end of a process closes the pair, and a stopped one shows in its beat page.
  Status send_beat() override { return {}; }
  [[nodiscard]] std::uint64_t heard() const override { return heard_; }
  void close() override {}
  [[nodiscard]] std::optional<secure::Refusal> refusal() const override { return std::nullopt; }

 private:
  control::Channel channel_;
  std::uint64_t heard_ = 0;
};

class SecureWire final : public CoordinatorWire {
 public:
  explicit SecureWire(secure::SecureChannel channel) : channel_(std::move(channel)) {}
  [[nodiscard]] int fd() const override { return channel_.fd(); }
  [[nodiscard]] bool wants_write() const override { return channel_.wants_write(); }
  [[nodiscard]] bool ready() const override { return channel_.established(); }
  Status progress() override { return channel_.progress(); }
  Status send(std::span<const std::byte> message) override { return channel_.send(message); }
  Result<std::optional<control::Bytes>> next() override {
    while (true) {
      std::optional<control::Bytes> message = channel_.next();
      if (message) ++heard_;
      if (!message || !std::ranges::equal(*message, kBeat)) return message;
    }
  }
  Status send_beat() override {
    const Status sent = channel_.send(kBeat);
    return sent.code() == Code::ResourceExhausted ? Status() : sent;
  }
  [[nodiscard]] std::uint64_t heard() const override { return heard_; }
  void close() override { channel_.close(); }
  [[nodiscard]] std::optional<secure::Refusal> refusal() const override {
    return channel_.refusal();
  }

 private:
  secure::SecureChannel channel_;
  std::uint64_t heard_ = 0;
};

}  // namespace

std::unique_ptr<CoordinatorWire> make_wire(control::Channel channel) {
  return std::make_unique<PairWire>(std::move(channel));
}

std::unique_ptr<CoordinatorWire> make_wire(secure::SecureChannel channel) {
  return std::make_unique<SecureWire>(std::move(channel));
}

Result<TcpControl> TcpControl::make(const std::string& job, const secure::SocketAddress& on) {
  Result<secure::JobSecret> secret = secure::JobSecret::make();
  if (!secret) return secret.error();
  Result<secure::ListeningPort> port = secure::ListeningPort::make(on);
  if (!port) return port.error();
  Result<secure::TlsContext> context = secure::TlsContext::make(secure::Role::Agent, *secret, job);
  if (!context) return context.error();
  return TcpControl{std::move(*secret), std::move(*port), std::move(*context)};
}

Result<TcpControl> TcpControl::join(secure::JobSecret secret, const std::string& job,
                                    const secure::SocketAddress& coordinator,
                                    membership::AgentId agent) {
  Result<secure::TlsContext> context = secure::TlsContext::make(secure::Role::Agent, secret, job);
  if (!context) return context.error();
  secure::ListeningPort there;
  there.address = coordinator;
  return TcpControl{std::move(secret), std::move(there), std::move(*context), agent};
}

}  // namespace regroup::launcher
