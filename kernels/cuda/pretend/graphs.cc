// Capture of streams, and graphs: what was queued while capturing, to be queued again.
#include "state.h"

using namespace pretend;

namespace {

std::set<CUgraph_st *> all_graphs;
std::set<CUgraphExec_st *> all_execs;

cudaError_t ret(int code) { return cudaError_t(code); }

} // namespace

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  const int was = capture_mode;
  capture_mode = *mode;
  *mode = cudaStreamCaptureMode(was);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  if (int e = use_stream("cudaStreamBeginCapture", s)) return ret(e);
  Lock lock(mutex);
  if (resolve(s) == legacy(resolve(s)->device)) return ret(fail(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture", "the default stream"));
  if (s->capture) return ret(fail(cudaErrorIllegalState, "cudaStreamBeginCapture", "it is capturing"));
  static unsigned long long ids;
  s->capture = new Capture{s, pthread_self(), mode, ++ids};
  captures.insert(s->capture);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
  Lock lock(mutex);
  *graph = nullptr;
  Capture *c = all_streams.count(s) ? s->capture : nullptr;
  if (!c || c->origin != s) return ret(fail(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture", "it does not capture"));
  if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
    return ret(fail(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture", "another thread began it"));
  for (CUstream_st *o : all_streams)
    if (o->capture == c) o->capture = nullptr;
  for (CUevent_st *e : all_events)
    if (e->capture == c) e->capture = nullptr;
  captures.erase(c);
  std::unique_ptr<Capture> end(c);
  if (c->broken) return ret(fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture", "an earlier call broke the capture"));
  *graph = new CUgraph_st{{c->graph}};
  all_graphs.insert(*graph);
  count(graphs, 1);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
  if (int e = use_stream("cudaStreamIsCapturing", s)) return ret(e);
  Lock lock(mutex);
  Capture *c = resolve(s)->capture;
  *status = !c ? cudaStreamCaptureStatusNone : c->broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *, const cudaGraphNode_t **, size_t *) {
  if (cudaError_t e = cudaStreamIsCapturing(s, status)) return e;
  Lock lock(mutex);
  if (Capture *c = resolve(s)->capture; c && id) *id = c->id;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *n) { return *n = g->nodes.size(), cudaSuccess; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long) {
  bind();
  Lock lock(mutex);
  if (!all_graphs.count(g)) return ret(fail(cudaErrorInvalidValue, "cudaGraphInstantiate", "no such graph"));
  *exec = new CUgraphExec_st{{g->nodes}};
  all_execs.insert(*exec);
  count(graph_execs, 1);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long flags) { return cudaGraphInstantiateWithFlags(exec, g, flags); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  if (int e = use_stream("cudaGraphLaunch", s)) return ret(e);
  Lock lock(mutex);
  if (!all_execs.count(exec)) return ret(fail(cudaErrorInvalidValue, "cudaGraphLaunch", "no such graph"));
  count(replays, 1);
  for (const Work &node : exec->nodes)
    if (int e = enqueue("node", s, node)) return ret(e);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  Lock lock(mutex);
  if (!all_graphs.erase(g)) return ret(fail(cudaErrorInvalidValue, "cudaGraphDestroy", "no such graph"));
  delete g;
  count(graphs, -1);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) {
  Lock lock(mutex);
  if (!all_execs.erase(g)) return ret(fail(cudaErrorInvalidValue, "cudaGraphExecDestroy", "no such graph"));
  delete g;
  count(graph_execs, -1);
  return cudaSuccess;
}
}
