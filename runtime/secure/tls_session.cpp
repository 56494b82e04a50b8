#include "secure/tls_session.hpp"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <array>
#include <charconv>
#include <string_view>
#include <utility>

namespace regroup::secure {
namespace {

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(SSL_SESSION* session) const { SSL_SESSION_free(session); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

constexpr const char* kSuite = "TLS_AES_256_GCM_SHA384";
constexpr std::array<unsigned char, 2> kSuiteId = {0x13, 0x02};

/// The newest reason that OpenSSL gives; clears all.
std::string openssl_reason() {
  const unsigned long error = ERR_peek_last_error();
  const char* const text = error == 0 ? nullptr : ERR_reason_error_string(error);
  std::string out = text == nullptr ? "no reason given" : text;
  ERR_clear_error();
  return out;
}

Status openssl_failed(const char* what) {
  return {Code::Internal, fmt::format("OpenSSL: {}: {}", what, openssl_reason())};
}

template <class T>
bool read_number(std::string_view& text, T& value) {
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
  return true;
}

bool skip(std::string_view& text, std::string_view what) {
  if (!text.starts_with(what)) return false;
  text.remove_prefix(what.size());
  return true;
}

}  // namespace

std::string Identity::text() const {
  return fmt::format("regroup/{}/{}/agent/{}", version, job, agent.value());
}

std::optional<Identity> Identity::parse(std::string_view text) {
  if (text.size() > kBytesMax) return std::nullopt;
  Identity out;
  std::uint32_t agent = 0;
  if (!skip(text, "regroup/") || !read_number(text, out.version) || !skip(text, "/"))
    return std::nullopt;
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos || slash == 0) return std::nullopt;
  out.job = text.substr(0, slash);
  text.remove_prefix(slash);
  if (!skip(text, "/agent/") || !read_number(text, agent) || !text.empty()) return std::nullopt;
  out.agent = membership::AgentId{agent};
  return out;
}

struct TlsContext::Impl {
  Role role = Role::Agent;
  std::string job;
  Owned<SSL_CTX> context;
  Owned<SSL_SESSION> key;  ///< how OpenSSL wants an external pre-shared key
};

struct TlsSession::Impl {
  std::shared_ptr<TlsContext::Impl> context;
  Owned<SSL> ssl;
  BIO* in = nullptr;   ///< of ssl
  BIO* out = nullptr;  ///< of ssl
  std::string identity;
  std::optional<membership::AgentId> named;  ///< in a hello whose job and version are ours
  bool established = false;
  Refusal refusal = Refusal::NoKey;
};

namespace {

// Called by OpenSSL with the identity of a hello, before its proof is checked.
int find_key(SSL* ssl, const unsigned char* identity, std::size_t bytes, SSL_SESSION** found) {
  auto& self = *static_cast<TlsSession::Impl*>(SSL_get_app_data(ssl));
  *found = nullptr;
  const std::optional<Identity> who =
      Identity::parse({reinterpret_cast<const char*>(identity), bytes});
  if (!who || who->job != self.context->job) return 1;
  if (who->version != kSecureVersion) {
    self.refusal = Refusal::Version;
    return 1;
  }
  // From here on only the proof can be wrong.
  self.refusal = Refusal::WrongKey;
  self.named = who->agent;
  SSL_SESSION_up_ref(self.context->key.get());
  *found = self.context->key.get();
  return 1;
}

int use_key(SSL* ssl, const EVP_MD* digest, const unsigned char** identity, std::size_t* bytes,
            SSL_SESSION** used) {
  auto& self = *static_cast<TlsSession::Impl*>(SSL_get_app_data(ssl));
  *used = nullptr;
  *identity = nullptr;
  *bytes = 0;
  // Asked again for another digest after a retry request: ours has the one.
  if (digest != nullptr &&
      digest != SSL_CIPHER_get_handshake_digest(SSL_SESSION_get0_cipher(self.context->key.get())))
    return 1;
  SSL_SESSION_up_ref(self.context->key.get());
  *used = self.context->key.get();
  *identity = reinterpret_cast<const unsigned char*>(self.identity.data());
  *bytes = self.identity.size();
  return 1;
}

bool configure(SSL_CTX* context, Role role) {
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  if (role == Role::Coordinator) {
    SSL_CTX_set_psk_find_session_callback(context, find_key);
  } else {
    // It takes no certificate in place of the secret: it trusts no authority at all.
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_psk_use_session_callback(context, use_key);
  }
  return SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
         SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
         SSL_CTX_set_ciphersuites(context, kSuite) == 1 &&
         SSL_CTX_set1_groups_list(context, "X25519") == 1 &&
         SSL_CTX_set_num_tickets(context, 0) == 1 && SSL_CTX_set_max_early_data(context, 0) == 1;
}

}  // namespace

Result<TlsContext> TlsContext::make(Role role, const JobSecret& secret, std::string job) {
  // The machine's configuration file must not change what is spoken here.
  OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, nullptr);
  auto impl = std::make_shared<Impl>();
  impl->role = role;
  impl->job = std::move(job);
  if (!Identity::parse(Identity{kSecureVersion, impl->job, {}}.text())) {
    return Status(Code::InvalidArgument,
                  fmt::format("'{}' cannot name a job on the wire", impl->job));
  }
  impl->context.reset(
      SSL_CTX_new(role == Role::Coordinator ? TLS_server_method() : TLS_client_method()));
  if (!impl->context || !configure(impl->context.get(), role)) return openssl_failed("context");
  const Owned<SSL> ssl(SSL_new(impl->context.get()));
  const SSL_CIPHER* const suite = ssl ? SSL_CIPHER_find(ssl.get(), kSuiteId.data()) : nullptr;
  impl->key.reset(SSL_SESSION_new());
  const auto bytes = secret.bytes();
  if (!impl->key || suite == nullptr || SSL_SESSION_set_cipher(impl->key.get(), suite) != 1 ||
      SSL_SESSION_set_protocol_version(impl->key.get(), TLS1_3_VERSION) != 1 ||
      SSL_SESSION_set1_master_key(impl->key.get(),
                                  reinterpret_cast<const unsigned char*>(bytes.data()),
                                  bytes.size()) != 1) {
    return openssl_failed("pre-shared key");
  }
  return TlsContext(std::move(impl));
}

TlsSession::TlsSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TlsSession::TlsSession(TlsSession&&) noexcept = default;
TlsSession& TlsSession::operator=(TlsSession&&) noexcept = default;
TlsSession::~TlsSession() = default;

Result<TlsSession> TlsSession::make(const TlsContext& context, membership::AgentId agent) {
  auto impl = std::make_unique<Impl>();
  impl->context = context.impl();
  impl->identity = Identity{kSecureVersion, impl->context->job, agent}.text();
  impl->ssl.reset(SSL_new(impl->context->context.get()));
  impl->in = BIO_new(BIO_s_mem());
  impl->out = BIO_new(BIO_s_mem());
  if (!impl->ssl || impl->in == nullptr || impl->out == nullptr) {
    BIO_free(impl->in);
    BIO_free(impl->out);
    return openssl_failed("session");
  }
  SSL_set_bio(impl->ssl.get(), impl->in, impl->out);  // owns both from here on
  SSL_set_app_data(impl->ssl.get(), impl.get());
  if (impl->context->role == Role::Coordinator) {
    SSL_set_accept_state(impl->ssl.get());
  } else {
    SSL_set_connect_state(impl->ssl.get());
  }
  return TlsSession(std::move(impl));
}

Status TlsSession::advance() {
  if (impl_->established) return {};
  ERR_clear_error();
  const int done = SSL_do_handshake(impl_->ssl.get());
  if (done == 1) {
    // What OpenSSL calls a resumption is the use of the pre-shared key. Nothing else counts.
    if (SSL_session_reused(impl_->ssl.get()) != 1)
      return {Code::Unauthenticated, "control channel: the other end did not use the job's secret"};
    impl_->established = true;
    return {};
  }
  if (SSL_get_error(impl_->ssl.get(), done) == SSL_ERROR_WANT_READ) return {};
  return {Code::Unauthenticated,
          fmt::format("control channel: the other end does not prove that it belongs to this job "
                      "({})",
                      openssl_reason())};
}

bool TlsSession::established() const { return impl_->established; }

bool TlsSession::offered() const {
  return impl_->named && SSL_session_reused(impl_->ssl.get()) == 1;
}

membership::AgentId TlsSession::agent() const {
  return impl_->named.value_or(membership::AgentId{});
}

Refusal TlsSession::refusal() const { return impl_->refusal; }

Status TlsSession::feed(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int taken = BIO_write(impl_->in, bytes.data(), static_cast<int>(bytes.size()));
    if (taken <= 0) return openssl_failed("memory");
    bytes = bytes.subspan(static_cast<std::size_t>(taken));
  }
  return {};
}

void TlsSession::take_output(control::Bytes& out) {
  const std::size_t ready = BIO_ctrl_pending(impl_->out);
  if (ready == 0) return;
  const std::size_t before = out.size();
  out.resize(before + ready);
  const int got = BIO_read(impl_->out, out.data() + before, static_cast<int>(ready));
  out.resize(before + static_cast<std::size_t>(got > 0 ? got : 0));
}

Status TlsSession::write(std::span<const std::byte> plain) {
  std::size_t written = 0;
  ERR_clear_error();
  // A memory file takes everything, so a write is whole or it failed.
  if (SSL_write_ex(impl_->ssl.get(), plain.data(), plain.size(), &written) != 1 ||
      written != plain.size()) {
    return openssl_failed("write");
  }
  return {};
}

Result<std::size_t> TlsSession::read(std::span<std::byte> plain) {
  std::size_t got = 0;
  ERR_clear_error();
  const int done = SSL_read_ex(impl_->ssl.get(), plain.data(), plain.size(), &got);
  if (done == 1) return got;
  switch (SSL_get_error(impl_->ssl.get(), done)) {
    case SSL_ERROR_WANT_READ: return std::size_t{0};
    case SSL_ERROR_ZERO_RETURN:
      return Status(Code::Cancelled, "control channel closed by its other end");
    default: break;
  }
  impl_->refusal = Refusal::BadRecord;
  return Status(Code::Unauthenticated,
                fmt::format("control channel: a record is not authentic ({})", openssl_reason()));
}

void TlsSession::close() {
  if (!impl_->established) return;
  ERR_clear_error();
  (void)SSL_shutdown(impl_->ssl.get());
  ERR_clear_error();
}

}  // namespace regroup::secure
