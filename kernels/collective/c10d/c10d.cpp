#define USE_C10D_GLOO
#include "c10d.h"

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <cstdlib>
#include <cstring>
#include <numeric>

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<c10d::ProcessGroupGloo>;
using std::chrono::milliseconds;

// tell runs f and turns what it throws into *why.
template <class F> auto tell(char **why, F f) -> decltype(f()) {
  *why = nullptr;
  try {
    return f();
  } catch (const c10::Error &e) {
    *why = strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    *why = strdup(e.what());
  }
  return decltype(f())();
}

struct Exchange {
  std::vector<int64_t> send, recv;
  at::Tensor from, to;
  c10::intrusive_ptr<c10d::Work> work;
};

} // namespace

extern "C" {

void *ssr_store_open(const char *host, int port, int serve, const char *prefix, long timeout_ms, char **why) {
  // What fails is in *why; c10d would print it too, with its stack.
  setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);
  c10::initLogging();
  return tell(why, [&]() -> void * {
    c10d::TCPStoreOptions o;
    o.port = static_cast<uint16_t>(port);
    o.isServer = serve != 0;
    o.waitWorkers = false;
    o.timeout = milliseconds(timeout_ms);
    o.useLibUV = false; // not every build has it
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, o);
    return new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp)));
  });
}

int ssr_store_check(void *store, const char *key, char **why) {
  return tell(why, [&]() -> int { return (*static_cast<Store *>(store))->check({key}); });
}

void ssr_store_set(void *store, const char *key, const char *value, char **why) {
  tell(why, [&] { (*static_cast<Store *>(store))->set(key, std::string(value)); });
}

char *ssr_store_get(void *store, const char *key, char **why) {
  return tell(why, [&] {
    auto value = (*static_cast<Store *>(store))->get(key);
    return strndup(reinterpret_cast<const char *>(value.data()), value.size());
  });
}

void ssr_store_close(void *store) { delete static_cast<Store *>(store); }

void *ssr_gloo_open(void *store, int rank, int world, const char *interface, long timeout_ms, char **why) {
  return tell(why, [&]() -> void * {
    auto o = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    o->devices.push_back(*interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                    : c10d::ProcessGroupGloo::createDefaultDevice());
    o->threads = 1; // operations of a rank follow each other
    return new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(*static_cast<Store *>(store), rank, world, o));
  });
}

void ssr_gloo_close(void *group) { delete static_cast<Group *>(group); }

void *ssr_exchange_new(int world, const long *send, const long *recv, char **from, char **to, char **why) {
  return tell(why, [&]() -> void * {
    auto x = std::make_unique<Exchange>();
    x->send.assign(send, send + world);
    x->recv.assign(recv, recv + world);
    auto bytes = [](const std::vector<int64_t> &n) {
      return at::empty({std::accumulate(n.begin(), n.end(), int64_t{0})}, at::kByte);
    };
    x->from = bytes(x->send);
    x->to = bytes(x->recv);
    *from = static_cast<char *>(x->from.data_ptr());
    *to = static_cast<char *>(x->to.data_ptr());
    return x.release();
  });
}

void ssr_exchange_start(void *exchange, void *group, char **why) {
  tell(why, [&] {
    auto x = static_cast<Exchange *>(exchange);
    x->work = (*static_cast<Group *>(group))->alltoall_base(x->to, x->from, x->recv, x->send);
  });
}

int ssr_exchange_done(void *exchange, char **why) {
  return tell(why, [&]() -> int {
    auto x = static_cast<Exchange *>(exchange);
    if (!x->work->isCompleted()) return 0;
    x->work->wait();
    return 1;
  });
}

void ssr_exchange_free(void *exchange) { delete static_cast<Exchange *>(exchange); }
}
