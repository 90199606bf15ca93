//go:build gpu

#include "graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>

namespace {

using Pool = std::shared_ptr<const at::cuda::MempoolId_t>;

struct Graph {
  Graph(int device, c10::cuda::CUDAStream before, c10::cuda::CUDAStream own) : device(device), before(before), own(own) {}
  const int device;
  Pool pool; // before graph, to be given back after it
  at::cuda::CUDAGraph graph;
  c10::cuda::CUDAStream before, own;
  bool recording = false;
};

template <class F> char *run(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}

// The stream that a device's work is recorded on: one, since what cuBLAS keeps for a
// stream stays with it.
c10::cuda::CUDAStream recorder(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<int, c10::cuda::CUDAStream> streams;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = streams.find(device);
  if (found == streams.end()) found = streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first;
  return found->second;
}

// Held while graphs take memory of a pool and give it back.
std::mutex pools_mutex;

// The memory of a device's recordings, which those that live share: none needs what
// another has left there. When the last is freed libtorch gives the memory back, and does
// not know it again by its old name.
Pool pool_of(int device) {
  static std::map<int, std::weak_ptr<const at::cuda::MempoolId_t>> pools;
  Pool pool = pools[device].lock();
  if (!pool) pools[device] = pool = std::make_shared<const at::cuda::MempoolId_t>(at::cuda::graph_pool_handle());
  return pool;
}

Graph &of(void *graph) { return *static_cast<Graph *>(graph); }

} // namespace

extern "C" {

char *ssr_graph_open(int device, void **graph) {
  return run([&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    std::unique_ptr<Graph> g(new Graph(device, c10::cuda::getCurrentCUDAStream(index), recorder(index)));
    c10::cuda::device_synchronize();
    c10::cuda::setCurrentCUDAStream(g->own);
    *graph = g.release();
  });
}

char *ssr_graph_begin(void *graph) {
  return run([&] {
    c10::cuda::device_synchronize();
    Graph &g = of(graph);
    std::lock_guard<std::mutex> lock(pools_mutex);
    g.pool = pool_of(g.device);
    g.graph.capture_begin(*g.pool, cudaStreamCaptureModeThreadLocal);
    g.recording = true;
  });
}

char *ssr_graph_end(void *graph) {
  Graph &g = of(graph);
  char *why = run([&] {
    if (g.recording) g.graph.capture_end();
  });
  char *then = run([&] {
    c10::cuda::setCurrentCUDAStream(g.before);
    c10::cuda::device_synchronize();
  });
  if (!why) return then;
  free(then);
  return why;
}

char *ssr_graph_replay(void *graph) {
  return run([&] { of(graph).graph.replay(); });
}

void ssr_graph_free(void *graph) {
  std::lock_guard<std::mutex> lock(pools_mutex);
  delete static_cast<Graph *>(graph);
}
}
