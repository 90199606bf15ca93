//go:build gpu

#include "driver.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#include "functions.h"

enum { stub_library = 34, nvrtc_internal_error = 11, not_supported = 801 };

static int init_result = stub_library;

// What stands for a function of a library that was not found, or is too old to have it.
static int no_driver(void) { return init_result ? init_result : not_supported; }
static int no_nvrtc(void) { return nvrtc_internal_error; }

#define X(name) __attribute__((visibility("hidden"))) void *ssr_to_##name = (void *)no_driver;
DRIVER_FUNCTIONS
#undef X
#define X(name) __attribute__((visibility("hidden"))) void *ssr_to_##name = (void *)no_nvrtc;
NVRTC_FUNCTIONS
#undef X

static void *open_first(const char *const *names) {
  void *handle = NULL;
  for (; *names && !handle; names++) handle = dlopen(*names, RTLD_NOW | RTLD_GLOBAL);
  return handle;
}

static const char *const driver_names[] = {"libcuda.so.1", NULL};
// The version that libtorch was built with is on the program's search path.
static const char *const nvrtc_names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so", NULL};
static int (*real_init)(unsigned);
static int has_driver, has_nvrtc;
static char lacking[1 << 14]; // more than all names

static void *find(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) strcat(strcat(lacking, " "), name);
  return found;
}

// Before main, since cu calls the driver when its package is initialised.
__attribute__((constructor)) static void resolve(void) {
  void *found, *driver = open_first(driver_names), *nvrtc = open_first(nvrtc_names);
  has_driver = driver != NULL;
  has_nvrtc = nvrtc != NULL;
  if (driver) {
    *(void **)&real_init = dlsym(driver, "cuInit");
#define X(name) \
  if ((found = find(driver, #name))) ssr_to_##name = found;
    DRIVER_FUNCTIONS
#undef X
  }
  if (nvrtc) {
#define X(name) \
  if ((found = find(nvrtc, #name))) ssr_to_##name = found;
    NVRTC_FUNCTIONS
#undef X
  }
}

// cu ends the process where cuInit fails. A machine without a GPU is no reason to:
// the failure is told by ssr_driver_status, and by every other call.
__attribute__((visibility("hidden"))) int cuInit(unsigned flags) {
  if (real_init) init_result = real_init(flags);
  return 0;
}

int ssr_driver_status(void) { return init_result; }
int ssr_has_driver(void) { return has_driver; }
int ssr_has_nvrtc(void) { return has_nvrtc; }
const char *ssr_driver_lacks(void) { return lacking; }
