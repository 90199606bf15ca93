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

#ifdef __cplusplus
}
#endif
