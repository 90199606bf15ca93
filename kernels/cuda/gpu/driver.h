#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// ssr_driver_status is what the driver's cuInit answered: a CUresult, 0 for
// success, 34 (CUDA_ERROR_STUB_LIBRARY) where there is no driver.
int ssr_driver_status(void);
// Whether libcuda.so.1 and an NVRTC were found.
int ssr_has_driver(void);
int ssr_has_nvrtc(void);
// ssr_driver_lacks names, separated by spaces, the functions of functions.h that the
// libraries which were found do not have; of those that were not found, none.
const char *ssr_driver_lacks(void);

// ssr_cuda_lacks names, separated by spaces, what cu calls and the CUDA of
// ssr_cuda_version, CUDA_VERSION of its header, does not have as cu calls it.
const char *ssr_cuda_lacks(void);
int ssr_cuda_version(void);

#ifdef __cplusplus
}
#endif
