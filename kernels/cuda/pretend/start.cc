// How the pretended CUDA gets into a process.
#include "pretend.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstdlib>

using namespace pretend;

// libtorch is ready when main begins, and no thread has been started.
extern "C" int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(), void (*fini)(), void (*end)(), void *stack) {
  begin_operations();
  const auto real = reinterpret_cast<decltype(&__libc_start_main)>(dlsym(RTLD_NEXT, "__libc_start_main"));
  return real(main, argc, argv, init, fini, end, stack);
}

// A thread of Go's or libtorch's is one of the dispatcher's from its beginning on.
extern "C" int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*f)(void *), void *arg) {
  using Create = int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  static const auto real = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  struct Start {
    void *(*f)(void *);
    void *arg;
  };
  return real(thread, attr, [](void *p) -> void * {
    const Start s = *static_cast<Start *>(p);
    delete static_cast<Start *>(p);
    begin_thread();
    return s.f(s.arg);
  }, new Start{f, arg});
}

// Programs that this one starts, and that are of another C library, do without.
__attribute__((constructor)) static void only_here() { unsetenv("LD_PRELOAD"); }
