// Stands before CUDA's own <cuda.h> on the include path and lets gorgonia.org/cu
// v0.9.4, written for CUDA 10, build against CUDA 12 and 13 without a patch.
//
// Since then the header maps some names to functions of another signature. The
// driver still exports the old ones, so here the names mean those again. Every
// line is right for every version: undefining what is not defined does nothing,
// and declaring a function twice with the same type is allowed.
#pragma once
#include_next <cuda.h>

#ifndef __cplusplus
// Removed from CUjit_target in CUDA 12.
#if CUDA_VERSION >= 12000
#define CU_TARGET_COMPUTE_20 20
#define CU_TARGET_COMPUTE_21 21
#endif

// cu hands this function of its own to the driver and declares it in another file.
void handleCUDACB(void *);

// CUDA 12: kernel nodes have another parameter type.
#if CUDA_VERSION >= 12000
#define CUDA_KERNEL_NODE_PARAMS CUDA_KERNEL_NODE_PARAMS_v1
#endif
#undef cuGraphAddKernelNode
#undef cuGraphKernelNodeGetParams
#undef cuGraphKernelNodeSetParams
#undef cuGraphExecKernelNodeSetParams
CUresult cuGraphAddKernelNode(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_KERNEL_NODE_PARAMS *);
CUresult cuGraphKernelNodeGetParams(CUgraphNode, CUDA_KERNEL_NODE_PARAMS *);
CUresult cuGraphKernelNodeSetParams(CUgraphNode, const CUDA_KERNEL_NODE_PARAMS *);
CUresult cuGraphExecKernelNodeSetParams(CUgraphExec, CUgraphNode, const CUDA_KERNEL_NODE_PARAMS *);

// CUDA 13: contexts take parameters, memory a location, edges their data.
#undef cuCtxCreate
#define cuCtxCreate cuCtxCreate_v2
CUresult cuCtxCreate_v2(CUcontext *, unsigned int, CUdevice);
#undef cuMemAdvise
CUresult cuMemAdvise(CUdeviceptr, size_t, CUmem_advise, CUdevice);
#undef cuMemPrefetchAsync
CUresult cuMemPrefetchAsync(CUdeviceptr, size_t, CUdevice, CUstream);
#undef cuGraphAddDependencies
CUresult cuGraphAddDependencies(CUgraph, const CUgraphNode *, const CUgraphNode *, size_t);
#undef cuGraphRemoveDependencies
CUresult cuGraphRemoveDependencies(CUgraph, const CUgraphNode *, const CUgraphNode *, size_t);
#undef cuGraphGetEdges
CUresult cuGraphGetEdges(CUgraph, CUgraphNode *, CUgraphNode *, size_t *);
#undef cuGraphNodeGetDependencies
CUresult cuGraphNodeGetDependencies(CUgraphNode, CUgraphNode *, size_t *);
#undef cuGraphNodeGetDependentNodes
CUresult cuGraphNodeGetDependentNodes(CUgraphNode, CUgraphNode *, size_t *);
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *, CUevent, CUevent);
#undef cuDeviceGetUuid
CUresult cuDeviceGetUuid(CUuuid *, CUdevice);
#endif
