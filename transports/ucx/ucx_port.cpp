#include "transports/ucx/ucx_port.hpp"

#include <fmt/format.h>
#include <ucp/api/ucp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "base/check.hpp"

namespace regroup::ucx {
namespace {

constexpr unsigned kMessageId = 7;
/// One call of progress() moves so much at most: others wait for the lock.
constexpr int kMovesMax = 64;
constexpr std::chrono::milliseconds kCloseMax{100};
/// So many calls of progress without any: then UCX has nothing left to do.
constexpr int kIdleEnough = 20;

Status failure(const char* what, ucs_status_t status) {
  const bool scarce = status == UCS_ERR_NO_MEMORY || status == UCS_ERR_NO_RESOURCE;
  return {scarce ? Code::ResourceExhausted : Code::Internal,
          fmt::format("UCX {}: {}: {}", version(), what, ucs_status_string(status))};
}

/// What says that the other side is gone or cannot be reached, not that this call was wrong.
bool is_unreachable(ucs_status_t status) {
  return status == UCS_ERR_UNREACHABLE || status == UCS_ERR_REJECTED ||
         status == UCS_ERR_NOT_CONNECTED || status == UCS_ERR_CONNECTION_RESET ||
         status == UCS_ERR_IO_ERROR || status == UCS_ERR_TIMED_OUT ||
         status == UCS_ERR_ENDPOINT_TIMEOUT;
}

struct ConfigRelease {
  void operator()(ucp_config_t* config) const { ucp_config_release(config); }
};
struct ContextCleanup {
  void operator()(ucp_context* context) const { ucp_cleanup(context); }
};
struct WorkerDestroy {
  void operator()(ucp_worker* worker) const { ucp_worker_destroy(worker); }
};

/// Settings of UCX that hold unless the environment says otherwise.
void set_defaults(ucp_config_t* config) {
  constexpr std::pair<const char*, const char*> kDefaults[] = {{"KEEPALIVE_INTERVAL", "1s"},
                                                               {"WARN_UNUSED_ENV_VARS", "n"}};
  for (const auto& [name, value] : kDefaults) {
    if (std::getenv(fmt::format("UCX_{}", name).c_str()) == nullptr) {  // NOLINT
      // An older library may not know one of them.
      (void)ucp_config_modify(config, name, value);
    }
  }
}

class Port final : public spi::MessagePort {
 public:
  Port() = default;
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;
  ~Port() override;
  Status open();

  void deliver_to(spi::MessageSink& sink) override { sink_ = &sink; }
  [[nodiscard]] std::vector<std::byte> address() const override { return address_; }
  Result<int> connect(std::span<const std::byte> address) override;
  void close(int channel) override;
  void post(int channel, const spi::MessageHeader& header, const void* data,
            std::size_t bytes) override;
  void send(int channel, const spi::MessageHeader& header, const void* data, std::size_t bytes,
            std::uint64_t token) override;
  void withdraw(const std::byte* place) override;
  int progress() override;
  [[nodiscard]] int descriptor() const override { return descriptor_; }
  bool arm() override { return ucp_worker_arm(worker_.get()) == UCS_OK; }
  void wake() override { (void)ucp_worker_signal(worker_.get()); }

 private:
  struct Endpoint {
    Port* port = nullptr;
    int channel = 0;
    ucp_ep_h handle = nullptr;  ///< null: closed
    bool broken = false;
  };
  /// A message that UCX has yet to send. It owns header and, of a posted one, bytes.
  struct Outgoing {
    Port* port = nullptr;
    spi::MessageHeader header;
    std::vector<std::byte> copy;
    std::uint64_t token = 0;
    bool posted = true;
  };
  /// UCX may still write what it receives after the endpoint was closed by force (seen with 1.13,
  /// over TCP: the sender had been stopped). So it gets memory of this port, whose bytes are copied
  /// once they are whole, if somebody still wants them.
  struct Incoming {
    Port* port = nullptr;
    spi::MessageHeader header;
    std::byte* place = nullptr;  ///< null: withdrawn
    std::vector<std::byte> bytes;
  };

  static ucs_status_t on_active_message(void* arg, const void* header, std::size_t header_length,
                                        void* data, std::size_t length,
                                        const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* outgoing);
  static void on_received(void* request, ucs_status_t status, std::size_t length, void* incoming);
  static void on_error(void* arg, ucp_ep_h handle, ucs_status_t status);
  ucs_status_t receive(const spi::MessageHeader& header, void* data, std::size_t length,
                       bool waits_at_sender);
  [[nodiscard]] Endpoint* usable(int channel);
  static void* start_close(Endpoint& endpoint, unsigned flags);
  void start(Endpoint& endpoint, std::unique_ptr<Outgoing> outgoing, const void* data,
             std::size_t bytes, unsigned flags);
  void finish(Outgoing& outgoing, ucs_status_t status);
  void deliver(Incoming& incoming, bool whole);
  Status open_worker();

  std::unique_ptr<ucp_context, ContextCleanup> context_;
  std::unique_ptr<ucp_worker, WorkerDestroy> worker_;
  int descriptor_ = -1;
  std::vector<std::byte> address_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;  ///< UCX keeps pointers to them
  std::set<Incoming*> incoming_;                      ///< owned by UCX's requests
  spi::MessageSink* sink_ = nullptr;
};

Status Port::open() {
  ucp_config_t* raw_config = nullptr;
  if (const auto status = ucp_config_read(nullptr, nullptr, &raw_config); status != UCS_OK) {
    return failure("reading its configuration", status);
  }
  const std::unique_ptr<ucp_config_t, ConfigRelease> config(raw_config);
  set_defaults(config.get());
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  ucp_context_h context = nullptr;
  if (const auto status = ucp_init(&params, config.get(), &context); status != UCS_OK) {
    return failure("opening the network devices", status);
  }
  context_.reset(context);
  return open_worker();
}

Status Port::open_worker() {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h worker = nullptr;
  if (const auto status = ucp_worker_create(context_.get(), &params, &worker); status != UCS_OK) {
    return failure("creating a UCX worker", status);
  }
  worker_.reset(worker);
  if (const auto status = ucp_worker_get_efd(worker, &descriptor_); status != UCS_OK) {
    return failure("its descriptor", status);
  }
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = &Port::on_active_message;
  handler.arg = this;
  if (const auto status = ucp_worker_set_am_recv_handler(worker, &handler); status != UCS_OK) {
    return failure("its handler of active messages", status);
  }
  ucp_worker_attr_t attributes{};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS | UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS;
  attributes.address_flags = UCP_WORKER_ADDRESS_FLAG_NET_ONLY;
  if (const auto status = ucp_worker_query(worker, &attributes); status != UCS_OK) {
    return failure("its address", status);
  }
  const auto* begin = reinterpret_cast<const std::byte*>(attributes.address);
  address_.assign(begin, begin + attributes.address_length);
  ucp_worker_release_address(worker, attributes.address);
  return {};
}

// What this process sent last still leaves, within limits. A UCX worker that is destroyed while one
// of its endpoints is still being closed ends the process (seen with 1.13): then it is not.
Port::~Port() {
  if (!worker_) return;
  std::vector<void*> closing;
  for (const auto& endpoint : endpoints_) {
    if (endpoint->handle == nullptr) continue;
    void* const request = start_close(*endpoint, endpoint->broken ? UCP_EP_CLOSE_FLAG_FORCE : 0);
    if (UCS_PTR_IS_PTR(request)) closing.push_back(request);
  }
  const auto under_way = [](void* request) {
    return ucp_request_check_status(request) == UCS_INPROGRESS;
  };
  const TimePoint end = Clock::now() + kCloseMax;
  int idle = 0;
  while ((idle < kIdleEnough || std::ranges::any_of(closing, under_way)) && Clock::now() < end) {
    idle = ucp_worker_progress(worker_.get()) == 0 ? idle + 1 : 0;
  }
  const bool unfinished = std::ranges::any_of(closing, under_way);
  for (void* const request : closing) ucp_request_free(request);
  if (!unfinished) return;
  (void)worker_.release();
  (void)context_.release();
}

Result<int> Port::connect(std::span<const std::byte> address) {
  auto endpoint = std::make_unique<Endpoint>();
  endpoint->port = this;
  endpoint->channel = static_cast<int>(endpoints_.size());
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {.cb = &Port::on_error, .arg = endpoint.get()};
  const auto status = ucp_ep_create(worker_.get(), &params, &endpoint->handle);
  const bool unreachable = is_unreachable(status);
  if (status != UCS_OK && !unreachable) return failure("connecting to another rank", status);
  if (unreachable) endpoint->handle = nullptr;
  const int channel = endpoint->channel;
  endpoints_.push_back(std::move(endpoint));
  if (unreachable) sink_->on_broken(channel, ucs_status_string(status));
  return channel;
}

void* Port::start_close(Endpoint& endpoint, unsigned flags) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = flags;
  return ucp_ep_close_nbx(std::exchange(endpoint.handle, nullptr), &params);
}

// Requests under way end with an error within the loop. What does not is UCX's to end later.
void Port::close(int channel) {
  Endpoint& endpoint = *endpoints_[static_cast<std::size_t>(channel)];
  if (endpoint.handle == nullptr) return;
  void* const request = start_close(endpoint, UCP_EP_CLOSE_FLAG_FORCE);
  if (!UCS_PTR_IS_PTR(request)) return;
  const TimePoint end = Clock::now() + kCloseMax;
  while (ucp_request_check_status(request) == UCS_INPROGRESS && Clock::now() < end) {
    (void)ucp_worker_progress(worker_.get());
  }
  ucp_request_free(request);
}

Port::Endpoint* Port::usable(int channel) {
  Endpoint& endpoint = *endpoints_[static_cast<std::size_t>(channel)];
  return endpoint.handle == nullptr || endpoint.broken ? nullptr : &endpoint;
}

void Port::post(int channel, const spi::MessageHeader& header, const void* data,
                std::size_t bytes) {
  REGROUP_ASSERT(bytes <= spi::kPostedBytesMax);
  Endpoint* const endpoint = usable(channel);
  if (endpoint == nullptr) return;
  auto outgoing = std::make_unique<Outgoing>();
  outgoing->port = this;
  outgoing->header = header;
  const auto* begin = static_cast<const std::byte*>(data);
  outgoing->copy.assign(begin, begin + bytes);
  const std::byte* copy = outgoing->copy.data();
  start(*endpoint, std::move(outgoing), copy, bytes, UCP_AM_SEND_FLAG_EAGER);
}

void Port::send(int channel, const spi::MessageHeader& header, const void* data, std::size_t bytes,
                std::uint64_t token) {
  Endpoint* const endpoint = usable(channel);
  if (endpoint == nullptr) {
    sink_->on_sent(token, false);
    return;
  }
  auto outgoing = std::make_unique<Outgoing>();
  outgoing->port = this;
  outgoing->header = header;
  outgoing->token = token;
  outgoing->posted = false;
  start(*endpoint, std::move(outgoing), data, bytes, UCP_AM_SEND_FLAG_RNDV);
}

void Port::start(Endpoint& endpoint, std::unique_ptr<Outgoing> outgoing, const void* data,
                 std::size_t bytes, unsigned flags) {
  ucp_request_param_t params{};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = flags;
  params.cb.send = &Port::on_sent;
  params.user_data = outgoing.get();
  void* const request = ucp_am_send_nbx(endpoint.handle, kMessageId, &outgoing->header,
                                        sizeof outgoing->header, data, bytes, &params);
  if (UCS_PTR_IS_PTR(request)) {
    (void)outgoing.release();  // on_sent() has it
  } else {
    finish(*outgoing, UCS_PTR_STATUS(request));
  }
}

void Port::finish(Outgoing& outgoing, ucs_status_t status) {
  if (!outgoing.posted) sink_->on_sent(outgoing.token, status == UCS_OK);
}

void Port::on_sent(void* request, ucs_status_t status, void* outgoing) {
  const std::unique_ptr<Outgoing> sent(static_cast<Outgoing*>(outgoing));
  sent->port->finish(*sent, status);
  ucp_request_free(request);
}

ucs_status_t Port::on_active_message(void* arg, const void* header, std::size_t header_length,
                                     void* data, std::size_t length,
                                     const ucp_am_recv_param_t* param) {
  spi::MessageHeader copy;
  if (header_length != sizeof copy) return UCS_OK;
  std::memcpy(&copy, header, sizeof copy);
  const bool waits = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  return static_cast<Port*>(arg)->receive(copy, data, length, waits);
}

ucs_status_t Port::receive(const spi::MessageHeader& header, void* data, std::size_t length,
                           bool waits_at_sender) {
  const auto* bytes = static_cast<const std::byte*>(data);
  if (!waits_at_sender && length <= spi::kPostedBytesMax) {
    sink_->on_message(header, bytes, length);
    return UCS_OK;
  }
  std::byte* const place = sink_->place_for(header, length);
  if (place == nullptr) return UCS_OK;  // UCX tells its sender that it was sent
  if (!waits_at_sender) {
    std::memcpy(place, bytes, length);
    sink_->on_placed(header, place, true);
    return UCS_OK;
  }
  auto incoming =
      std::make_unique<Incoming>(Incoming{this, header, place, std::vector<std::byte>(length)});
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.recv_am = &Port::on_received;
  params.user_data = incoming.get();
  void* const request =
      ucp_am_recv_data_nbx(worker_.get(), data, incoming->bytes.data(), length, &params);
  if (UCS_PTR_IS_PTR(request)) {
    incoming_.insert(incoming.release());  // on_received() has it
  } else {
    deliver(*incoming, UCS_PTR_STATUS(request) == UCS_OK);
  }
  return UCS_INPROGRESS;
}

void Port::on_received(void* request, ucs_status_t status, std::size_t /*length*/, void* incoming) {
  const std::unique_ptr<Incoming> received(static_cast<Incoming*>(incoming));
  received->port->incoming_.erase(received.get());
  received->port->deliver(*received, status == UCS_OK);
  ucp_request_free(request);
}

void Port::deliver(Incoming& incoming, bool whole) {
  if (incoming.place == nullptr) return;
  if (whole) std::memcpy(incoming.place, incoming.bytes.data(), incoming.bytes.size());
  sink_->on_placed(incoming.header, incoming.place, whole);
}

void Port::withdraw(const std::byte* place) {
  for (Incoming* const each : incoming_) {
    if (each->place == place) each->place = nullptr;
  }
}

void Port::on_error(void* arg, ucp_ep_h /*handle*/, ucs_status_t status) {
  auto& endpoint = *static_cast<Endpoint*>(arg);
  endpoint.broken = true;
  endpoint.port->sink_->on_broken(endpoint.channel, ucs_status_string(status));
}

int Port::progress() {
  int moved = 0;
  while (moved < kMovesMax && ucp_worker_progress(worker_.get()) != 0) ++moved;
  return moved;
}

}  // namespace

std::string version() { return ucp_get_version_string(); }

Result<std::unique_ptr<spi::MessagePort>> open_port() {
  auto port = std::make_unique<Port>();
  if (auto status = port->open(); !status) return status;
  return std::unique_ptr<spi::MessagePort>(std::move(port));
}

}  // namespace regroup::ucx
