// The emulator: fibers, barriers and the table of kernels.
#include "emulate.h"

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "shim.h"

// The kernels are found by the path that cgo's flags give; each has a namespace.
#include "common.cuh"
namespace norm {
#include "norm.cu"
}
namespace norm_backward_ {
#include "norm_backward.cu"
}
namespace swiglu_ {
#include "swiglu.cu"
}
namespace sample_ {
#include "sample.cu"
}
namespace objective_ {
#include "objective.cu"
}
namespace adamw_ {
#include "adamw.cu"
}
namespace attention_ {
#include "attention.cu"
}
namespace attention_bf16_ {
#include "attention_bf16.cu"
}
namespace head_ {
#include "head.cu"
}
namespace linear_ {
#include "linear.cu"
}
namespace linear_bf16_ {
#include "linear_bf16.cu"
}

#include "faulty.h"

// ssr_switch_fiber saves the callee's registers and stack pointer and takes up another's.
extern "C" void ssr_switch_fiber(void **save, void *to);
asm(R"(
	.text
	.globl ssr_switch_fiber
	.hidden ssr_switch_fiber
	.type ssr_switch_fiber, @function
ssr_switch_fiber:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
	.size ssr_switch_fiber, .-ssr_switch_fiber
)");

namespace emulator {

Dim thread, block, block_dim, grid_dim;
void *shared;

namespace {

const size_t stack_bytes = 64 << 10;

struct Warp {
  uint64_t given[32], taken[32];
  uint32_t arrived;
  uint64_t turn; // exchanges completed
};

struct Copy {
  void *to;
  const void *from;
  bool there;
};

struct Fiber {
  void *sp;
  Dim id;
  Warp *warp;
  bool done;
  std::vector<Copy> copies; // not done yet; a group's end is a Copy to nowhere
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
char *stacks;
size_t stacks_for;
void *scheduler;
Fiber *self;
size_t at_barrier;
uint64_t barriers, events; // completed; and anything that let a fiber go on
bool late; // copies are done when they are waited for
std::string failure;

struct Call {
  void (*invoke)(void **args);
  void **args;
};
Call current;

void yield() {
  Fiber *me = self;
  ssr_switch_fiber(&me->sp, scheduler);
  self = me;
  thread = me->id;
}

void fail(const std::string &why) {
  if (failure.empty())
    failure = why + " (block " + std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z) + ", thread " +
              std::to_string(thread.x) + ")";
}

void body() {
  thread = self->id;
  current.invoke(current.args);
  self->done = true;
  events++;
  ssr_switch_fiber(&self->sp, scheduler);
}

uint64_t next(uint64_t &state) { // splitmix64
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// permute puts 0 … n in the order asked for.
void permute(std::vector<unsigned> &v, size_t n, uint64_t order, uint64_t &state) {
  v.resize(n);
  for (size_t i = 0; i < n; i++) v[i] = unsigned(order == 1 ? n - 1 - i : i);
  if (order > 1)
    for (size_t i = n; i > 1; i--) std::swap(v[i - 1], v[next(state) % i]);
}

void run_block(size_t shared_bytes, uint64_t order, uint64_t &state) {
  const size_t n = block_dim.x;
  if (shared_bytes) memset(shared, 0xff, shared_bytes);
  fibers.assign(n, Fiber{});
  warps.assign((n + 31) / 32, Warp{});
  at_barrier = 0;
  for (size_t i = 0; i < n; i++) {
    void **sp = reinterpret_cast<void **>(stacks + (i + 1) * stack_bytes);
    *--sp = nullptr; // keeps the stack aligned as a call would
    *--sp = reinterpret_cast<void *>(&body);
    for (int r = 0; r < 6; r++) *--sp = nullptr;
    fibers[i] = Fiber{sp, {unsigned(i), 0, 0}, &warps[i / 32], false, {}};
  }
  std::vector<unsigned> turn;
  for (;;) {
    permute(turn, n, order, state);
    const uint64_t before = events;
    size_t live = 0;
    for (unsigned i : turn) {
      if (fibers[i].done) continue;
      live++;
      self = &fibers[i];
      ssr_switch_fiber(&scheduler, self->sp);
      if (!failure.empty()) return;
    }
    if (!live) return;
    if (events == before) {
      thread = self->id;
      return fail("threads wait at different barriers, or some have ended that others wait for");
    }
  }
}

template <class... A, size_t... I> void call(void (*f)(A...), void **args, std::index_sequence<I...>) {
  f(*static_cast<A *>(args[I])...);
}

struct Entry {
  const char *name;
  void (*invoke)(void **args);
  std::vector<size_t> sizes;
};
template <class... A> std::vector<size_t> sizes_of(void (*)(A...)) { return {sizeof(A)...}; }
template <auto f> struct Invoke;
template <class... A, void (*f)(A...)> struct Invoke<f> {
  static void run(void **args) { call(f, args, std::index_sequence_for<A...>()); }
};
#define ENTRY(space, name) Entry{#name, &Invoke<&space::name>::run, sizes_of(&space::name)}

const std::vector<Entry> &table() {
  static const std::vector<Entry> entries = {
      ENTRY(norm, rms_norm_f32), ENTRY(norm, rms_norm_f32_bf16), ENTRY(norm, rms_norm_bf16),
      ENTRY(norm_backward_, rms_norm_backward_f32), ENTRY(norm_backward_, rms_norm_dweight_f32), ENTRY(norm_backward_, rms_norm_dweight_sum_f32),
      ENTRY(swiglu_, swiglu_f32), ENTRY(swiglu_, swiglu_f32_bf16), ENTRY(swiglu_, swiglu_bf16), ENTRY(swiglu_, swiglu_backward_f32), ENTRY(swiglu_, swiglu_backward_bf16),
      ENTRY(sample_, sample_f32),
      ENTRY(objective_, objective_f32), ENTRY(objective_, objective_sum),
      ENTRY(adamw_, adamw), ENTRY(adamw_, grad_squares), ENTRY(adamw_, grad_sum),
      ENTRY(attention_, rope_f32), ENTRY(attention_, rope_bf16), ENTRY(attention_, rope_append_f32), ENTRY(attention_, rope_append_bf16), ENTRY(attention_, decode_f32),
      ENTRY(attention_, decode_join_f32),
      ENTRY(attention_bf16_, attention_bf16_64), ENTRY(attention_bf16_, attention_bf16_128), ENTRY(attention_bf16_, attention_join),
      ENTRY(head_, head_update_f32), ENTRY(head_, head_update_bf16), ENTRY(head_, head_finish), ENTRY(head_, head_backward_f32),
      ENTRY(head_, head_backward_bf16),
      ENTRY(linear_, linear_f32_16x32), ENTRY(linear_, linear_f32_64x64), ENTRY(linear_, linear_f32_128x128),
      ENTRY(linear_bf16_, linear_round), ENTRY(linear_bf16_, linear_bf16_16x8), ENTRY(linear_bf16_, linear_bf16_16x16),
      ENTRY(linear_bf16_, linear_bf16_16x32), ENTRY(linear_bf16_, linear_bf16_64x64), ENTRY(linear_bf16_, linear_bf16_128x128),
      ENTRY(linear_bf16_, linear_bf16_16x8_bf16), ENTRY(linear_bf16_, linear_bf16_16x16_bf16), ENTRY(linear_bf16_, linear_bf16_16x32_bf16),
      ENTRY(linear_bf16_, linear_join),
      {"faulty_copy", &Invoke<&::faulty_copy>::run, sizes_of(&::faulty_copy)},
      {"faulty_race", &Invoke<&::faulty_race>::run, sizes_of(&::faulty_race)},
      {"faulty_exit", &Invoke<&::faulty_exit>::run, sizes_of(&::faulty_exit)},
      {"faulty_shuffle", &Invoke<&::faulty_shuffle>::run, sizes_of(&::faulty_shuffle)},
  };
  return entries;
}

} // namespace

void sync_block() {
  const uint64_t turn = barriers;
  if (++at_barrier == block_dim.x) {
    at_barrier = 0;
    barriers++;
    events++;
  }
  while (barriers == turn) yield();
}

const uint64_t *exchange(uint32_t mask, uint64_t value) {
  Warp &w = *self->warp;
  const unsigned lane = thread.x % 32;
  if (mask != 0xffffffffu) fail("a shuffle of part of a warp");
  const uint64_t turn = w.turn;
  w.given[lane] = value;
  w.arrived |= 1u << lane;
  if (w.arrived == mask) {
    memcpy(w.taken, w.given, sizeof w.given);
    w.arrived = 0;
    w.turn++;
    events++;
  }
  while (w.turn == turn) yield();
  return w.taken;
}

static void copy(const Copy &c) {
  if (c.there)
    memcpy(c.to, c.from, 16);
  else
    memset(c.to, 0, 16);
}

void copy_async(void *to, const void *from, bool there) {
  if ((uintptr_t(to) | uintptr_t(from)) % 16) fail("a copy of 16 bytes from or to an address that is not a multiple of that");
  if (late)
    self->copies.push_back({to, from, there});
  else
    copy({to, from, there});
}

void copies_commit() { self->copies.push_back({nullptr, nullptr, false}); }

void copies_wait(size_t groups) {
  std::vector<Copy> &all = self->copies;
  size_t open = 0, n = all.size(); // those before n are done
  while (n > 0 && (all[n - 1].to || open++ < groups)) n--;
  for (size_t i = 0; i < n; i++)
    if (all[i].to) copy(all[i]);
  all.erase(all.begin(), all.begin() + n);
}

} // namespace emulator

using namespace emulator;

extern "C" {

const char *ssr_emulate_name(int i) { return size_t(i) < table().size() ? table()[i].name : nullptr; }

const char *ssr_emulate(const char *kernel, const unsigned dims[6], size_t shared_bytes, void **args, const unsigned char *sizes, int n,
                        uint64_t order) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  static std::string answer;
  failure.clear();
  const Entry *entry = nullptr;
  for (const Entry &e : table())
    if (!strcmp(e.name, kernel)) entry = &e;
  grid_dim = {dims[0], dims[1], dims[2]};
  block_dim = {dims[3], dims[4], dims[5]};
  block = thread = {0, 0, 0};
  if (!entry)
    fail("no such kernel");
  else if (entry->sizes.size() != size_t(n))
    fail("it has " + std::to_string(entry->sizes.size()) + " parameters, not " + std::to_string(n));
  else if (block_dim.x == 0 || block_dim.x % 32 || block_dim.x > 1024 || block_dim.y != 1 || block_dim.z != 1)
    fail("a block must be one row of whole warps, at most 1024 threads");
  for (int i = 0; failure.empty() && i < n; i++)
    if (entry->sizes[i] != sizes[i]) fail("parameter " + std::to_string(i) + " has " + std::to_string(entry->sizes[i]) + " bytes, not " + std::to_string(sizes[i]));
  if (failure.empty()) {
    if (stacks_for < block_dim.x) {
      if (stacks) munmap(stacks, stacks_for * stack_bytes);
      stacks_for = block_dim.x;
      stacks = static_cast<char *>(mmap(nullptr, stacks_for * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (stacks == MAP_FAILED) abort();
    }
    shared = shared_bytes ? ssr_emulate_alloc(shared_bytes) : nullptr;
    current = {entry->invoke, args};
    uint64_t state = order;
    late = order % 2;
    std::vector<unsigned> blocks;
    permute(blocks, size_t(grid_dim.x) * grid_dim.y * grid_dim.z, order, state);
    for (unsigned b : blocks) {
      block = {b % grid_dim.x, b / grid_dim.x % grid_dim.y, b / grid_dim.x / grid_dim.y};
      run_block(shared_bytes, order, state);
      if (!failure.empty()) break;
    }
    if (shared) ssr_emulate_free(shared, shared_bytes);
  }
  answer = failure;
  return answer.empty() ? nullptr : answer.c_str();
}

static size_t pages(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

void *ssr_emulate_alloc(size_t bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), whole = pages(bytes, page);
  char *p = static_cast<char *>(mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (p == MAP_FAILED) return nullptr;
  mprotect(p + whole, page, PROT_NONE);
  memset(p, 0xff, whole);
  // Aligned as CUDA C's widest access; the last bytes short of that are not guarded.
  return p + (whole - (bytes + 15) / 16 * 16);
}

void ssr_emulate_free(void *p, size_t bytes) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), whole = pages(bytes, page);
  munmap(static_cast<char *>(p) - (whole - (bytes + 15) / 16 * 16), whole + page);
}
}
