// A CUDA without a GPU, for tests: a library that is loaded before libcuda, CUDA's runtime,
// cuBLAS and NCCL, and stands for them. What the parts of it share is here. Memory of a
// device is memory of the process; a stream is a queue of work that runs as late as the
// rules of CUDA allow: when somebody waits for it, and then on the thread that waits. A
// call that CUDA would refuse is refused, with a line on standard error.
//
// The environment: PRETEND_DEVICES (2), PRETEND_MIB of memory each (8192), PRETEND_EAGER=1
// to run work at once, PRETEND_ORDER as the emulator's of threads, PRETEND_IDLE=1 for
// kernels that do nothing (benchmarks are too large for the emulator), PRETEND_LOG=1 to
// tell of every operation, launch and copy, PRETEND_COUNTS=FILE for what there is and was.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

struct CUstream_st;

namespace pretend {

// Work returns false where it cannot go on yet: another stream, or another rank, is not as
// far. It is then asked again.
using Work = std::function<bool()>;

extern std::recursive_mutex mutex;

// fail tells what is wrong, once, on standard error, and returns code.
int fail(int code, const char *call, const std::string &why);
// fault is fail of a kernel, after which the devices work no more.
int fault(const char *call, const std::string &why);

// use_stream checks a handle as a call with it does: it is live and of the current device.
int use_stream(const char *call, CUstream_st *handle);
// enqueue appends work to a stream, or where it is capturing to its graph.
int enqueue(const char *call, CUstream_st *handle, Work work);
// finish runs all that was queued on a stream, but for what waits for ever.
void finish(CUstream_st *handle);
bool capturing(CUstream_st *handle);
// check_memory says whether bytes from p on are live memory of a device, of any for -1.
int check_memory(const char *call, const void *p, size_t bytes, int device);
// unsafe is what a call begins with that may not be made while the thread captures.
int unsafe(const char *call);
int current_device();

// In an operation of libtorch whose result the CPU computes, its kernels do nothing.
extern thread_local bool dry;
extern thread_local const char *operation; // that runs on this thread, for messages
// begin_operations is called before main, and begin_thread by every thread.
void begin_operations();
void begin_thread();

bool verbose(); // PRETEND_LOG is set

// count changes a number that is written to the file that PRETEND_COUNTS names.
enum Counter { streams, events, modules, graphs, graph_execs, launches, replays, operations, complaints, counters };
void count(Counter which, int by);

} // namespace pretend
