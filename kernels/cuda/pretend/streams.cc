// Streams and events: what waits for what, and what may not be called in a capture.
#include "state.h"

#include <chrono>
#include <cstdio>
#include <thread>

namespace pretend {

std::set<CUstream_st *> all_streams;
std::set<CUevent_st *> all_events;
std::set<Capture *> captures;

namespace {

Capture *of_thread() {
  for (Capture *c : captures)
    if (pthread_equal(c->thread, pthread_self())) return c;
  return nullptr;
}

// progress runs what it can of a stream's queue.
void progress(CUstream_st *s) {
  if (s->busy) return;
  s->busy = true;
  while (!s->queue.empty() && s->queue.front()()) {
    s->queue.pop_front();
    s->done++;
  }
  s->busy = false;
}

// wait_until asks again and again, in case another thread must first queue its part.
template <class F> void wait_until(F ready) {
  for (;;) {
    {
      Lock lock(mutex);
      if (ready()) return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

// order makes work on a blocking stream and the legacy one wait for each other.
void order(CUstream_st *s) {
  if (!s->blocking) return;
  std::vector<std::pair<CUstream_st *, uint64_t>> before;
  if (s == legacy(s->device)) {
    for (CUstream_st *o : all_streams)
      if (o->blocking && o->device == s->device && o->done < o->queued) before.push_back({o, o->queued});
  } else if (CUstream_st *o = legacy(s->device); o->done < o->queued) {
    before.push_back({o, o->queued});
  }
  for (auto [o, at] : before) {
    s->queued++;
    s->queue.push_back([o = o, at = at] {
      if (o->done < at) progress(o);
      return o->done >= at;
    });
  }
}

int check_event(const char *call, CUevent_st *e) {
  return all_events.count(e) ? 0 : fail(cudaErrorInvalidResourceHandle, call, "no such event");
}

bool happened(CUevent_st *e) {
  if (!e->stream) return true;
  if (e->stream->done < e->at) progress(e->stream);
  return e->stream->done >= e->at;
}

} // namespace

CUstream_st *legacy(int device) {
  static std::map<int, CUstream_st *> streams;
  auto &s = streams[device];
  if (!s) s = new CUstream_st{device, true};
  return s;
}

CUstream_st *resolve(CUstream_st *s) {
  const int device = current_device();
  return s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread ? legacy(device) : s;
}

void finish_device(int device) {
  wait_until([&] {
    bool all = true;
    auto one = [&](CUstream_st *s) {
      if (s->device != device) return;
      progress(s);
      all = all && s->queue.empty();
    };
    one(legacy(device));
    for (CUstream_st *s : all_streams) one(s);
    return all;
  });
}

int synchronize_device(const char *call) {
  bind();
  const int device = current_device();
  {
    Lock lock(mutex);
    for (Capture *c : captures)
      if (c->origin->device == device) {
        c->broken = true;
        return fail(cudaErrorStreamCaptureUnsupported, call, "a stream of the device is capturing");
      }
  }
  finish_device(device);
  return sticky;
}

int unsafe(const char *call) {
  bind();
  Lock lock(mutex);
  if (capture_mode == cudaStreamCaptureModeRelaxed) return 0;
  Capture *bad = of_thread();
  if (bad && bad->mode == cudaStreamCaptureModeRelaxed) bad = nullptr;
  if (!bad && capture_mode == cudaStreamCaptureModeGlobal)
    for (Capture *c : captures)
      if (c->mode == cudaStreamCaptureModeGlobal) bad = c;
  if (!bad) return sticky;
  bad->broken = true;
  return fail(cudaErrorStreamCaptureUnsupported, call, "this may not be called while capturing");
}

int use_stream(const char *call, CUstream_st *handle) {
  bind();
  Lock lock(mutex);
  if (sticky) return sticky;
  CUstream_st *s = resolve(handle);
  if (s != legacy(s->device) && !all_streams.count(s)) return fail(cudaErrorInvalidResourceHandle, call, "no such stream");
  if (s == legacy(s->device))
    for (Capture *c : captures)
      if (c->origin->blocking && c->origin->device == s->device) {
        c->broken = true;
        return fail(cudaErrorStreamCaptureImplicit, call, "the default stream waits for one that is capturing");
      }
  return 0;
}

bool capturing(CUstream_st *handle) {
  Lock lock(mutex);
  return resolve(handle)->capture != nullptr;
}

int enqueue(const char *call, CUstream_st *handle, Work work) {
  Lock lock(mutex);
  CUstream_st *s = resolve(handle);
  if (s->capture) {
    if (!work) s->capture->broken = true;
    if (s->capture->broken) return cudaErrorStreamCaptureInvalidated;
    s->capture->graph.nodes.push_back(work);
    return 0;
  }
  if (verbose()) fprintf(stderr, "pretend: %s on %p of %d\n", call, static_cast<void *>(s), s->device);
  order(s);
  s->queued++;
  s->queue.push_back(std::move(work));
  static const bool eager = env("PRETEND_EAGER", 0);
  if (eager) progress(s);
  return sticky;
}

void finish(CUstream_st *handle) {
  CUstream_st *s = resolve(handle);
  wait_until([&] { return progress(s), s->queue.empty(); });
}

int make_stream(CUstream_st **s, bool blocking, bool driver) {
  Lock lock(mutex);
  *s = new CUstream_st{current_device(), blocking};
  all_streams.insert(*s);
  if (driver) count(streams, 1);
  return 0;
}

int end_stream(const char *call, CUstream_st *s, bool driver) {
  {
    Lock lock(mutex);
    if (!all_streams.count(s)) return fail(cudaErrorInvalidResourceHandle, call, "no such stream");
    if (s->capture) return fail(cudaErrorStreamCaptureUnsupported, call, "the stream is capturing");
  }
  finish(s);
  Lock lock(mutex);
  all_streams.erase(s);
  if (driver) count(streams, -1);
  return 0;
}

int query_stream(const char *call, CUstream_st *handle, bool wait) {
  if (int e = use_stream(call, handle)) return e;
  CUstream_st *s = resolve(handle);
  {
    Lock lock(mutex);
    if (s->capture) {
      s->capture->broken = true;
      return fail(cudaErrorStreamCaptureUnsupported, call, "the stream is capturing");
    }
  }
  if (int e = unsafe(call)) return e;
  {
    Lock lock(mutex);
    progress(s);
    if (s->queue.empty()) return sticky;
    if (!wait) return cudaErrorNotReady;
  }
  finish(handle);
  return sticky;
}

int make_event(CUevent_st **e, bool driver) {
  Lock lock(mutex);
  *e = new CUevent_st{current_device(), driver};
  all_events.insert(*e);
  if (driver) count(events, 1);
  return 0;
}

int end_event(const char *call, CUevent_st *e) {
  Lock lock(mutex);
  if (int code = check_event(call, e)) return code;
  all_events.erase(e);
  if (e->driver) count(events, -1);
  return 0;
}

int record(const char *call, CUevent_st *e, CUstream_st *handle) {
  if (int code = use_stream(call, handle)) return code;
  Lock lock(mutex);
  if (int code = check_event(call, e)) return code;
  CUstream_st *s = resolve(handle);
  if (e->device != s->device) return fail(cudaErrorInvalidResourceHandle, call, "the event is of another device than the stream");
  e->capture = s->capture;
  if (s->capture) return 0;
  order(s);
  s->queued++;
  e->stream = s;
  e->at = s->queued;
  s->queue.push_back([e] {
    if (all_events.count(e)) e->when = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return true;
  });
  return sticky;
}

int wait_event(const char *call, CUstream_st *handle, CUevent_st *e) {
  if (int code = use_stream(call, handle)) return code;
  Lock lock(mutex);
  if (int code = check_event(call, e)) return code;
  CUstream_st *s = resolve(handle);
  if (e->capture) {
    if (s->capture && s->capture != e->capture) return fail(cudaErrorStreamCaptureMerge, call, "two captures would be one");
    s->capture = e->capture;
    return 0;
  }
  if (s->capture) {
    s->capture->broken = true;
    return fail(cudaErrorStreamCaptureIsolation, call, "a capturing stream waits for an event from before the capture");
  }
  if (!e->stream) return 0;
  CUstream_st *other = e->stream;
  const uint64_t at = e->at;
  s->queued++;
  s->queue.push_back([other, at] {
    if (other->done < at) progress(other);
    return other->done >= at;
  });
  return sticky;
}

int query_event(const char *call, CUevent_st *e, bool wait) {
  if (int code = unsafe(call)) return code;
  {
    Lock lock(mutex);
    if (int code = check_event(call, e)) return code;
    if (e->capture) return fail(cudaErrorCapturedEvent, call, "the event was recorded in a capture");
    if (happened(e)) return sticky;
    if (!wait) return cudaErrorNotReady;
  }
  wait_until([&] { return happened(e); });
  return sticky;
}

} // namespace pretend
