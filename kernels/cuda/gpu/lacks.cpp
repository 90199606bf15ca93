//go:build gpu

// Which of the functions and names that gorgonia.org/cu uses the version of CUDA that
// this is built with does not have as cu calls them. compat/cuda.h, which is for C alone,
// stands in for them.
#include "driver.h"

#include <cuda.h>

#include <string>
#include <type_traits>
#include <utility>

namespace {

// A call through arguments of a template is looked up with these, and counts as missing,
// not as an error, where the header declares nothing that fits.
#define PROBE(name, ...)                                                            \
  template <class Graph, class Node, class Exec, class Context, class Stream, class Event, class Advice, class = void> \
  struct lacks_##name : std::true_type {};                                          \
  template <class Graph, class Node, class Exec, class Context, class Stream, class Event, class Advice> \
  struct lacks_##name<Graph, Node, Exec, Context, Stream, Event, Advice, std::void_t<decltype(__VA_ARGS__)>> : std::false_type {};
#define A(type) std::declval<type>()

#if CUDA_VERSION >= 12000
using Params = CUDA_KERNEL_NODE_PARAMS_v1;
#else
using Params = CUDA_KERNEL_NODE_PARAMS;
#endif

PROBE(cuCtxCreate, cuCtxCreate(A(Context *), 0u, A(CUdevice)))
PROBE(cuEventElapsedTime, cuEventElapsedTime(A(float *), A(Event), A(Event)))
PROBE(cuGraphAddDependencies, cuGraphAddDependencies(A(Graph), A(const Node *), A(const Node *), size_t(0)))
PROBE(cuGraphAddKernelNode, cuGraphAddKernelNode(A(Node *), A(Graph), A(const Node *), size_t(0), A(const Params *)))
PROBE(cuGraphExecKernelNodeSetParams, cuGraphExecKernelNodeSetParams(A(Exec), A(Node), A(const Params *)))
PROBE(cuGraphGetEdges, cuGraphGetEdges(A(Graph), A(Node *), A(Node *), A(size_t *)))
PROBE(cuGraphKernelNodeGetParams, cuGraphKernelNodeGetParams(A(Node), A(Params *)))
PROBE(cuGraphKernelNodeSetParams, cuGraphKernelNodeSetParams(A(Node), A(const Params *)))
PROBE(cuGraphNodeGetDependencies, cuGraphNodeGetDependencies(A(Node), A(Node *), A(size_t *)))
PROBE(cuGraphNodeGetDependentNodes, cuGraphNodeGetDependentNodes(A(Node), A(Node *), A(size_t *)))
PROBE(cuGraphRemoveDependencies, cuGraphRemoveDependencies(A(Graph), A(const Node *), A(const Node *), size_t(0)))
PROBE(cuMemAdvise, cuMemAdvise(A(CUdeviceptr), size_t(0), A(Advice), A(CUdevice)))
PROBE(cuMemPrefetchAsync, cuMemPrefetchAsync(A(CUdeviceptr), size_t(0), A(CUdevice), A(Stream)))

} // namespace

extern "C" int ssr_cuda_version(void) { return CUDA_VERSION; }

extern "C" const char *ssr_cuda_lacks(void) {
  static const std::string all = [] {
    std::string s;
#define TELL(name) \
  if (lacks_##name<CUgraph, CUgraphNode, CUgraphExec, CUcontext, CUstream, CUevent, CUmem_advise>::value) s += " " #name;
    TELL(cuCtxCreate) TELL(cuEventElapsedTime) TELL(cuGraphAddDependencies) TELL(cuGraphAddKernelNode)
    TELL(cuGraphExecKernelNodeSetParams) TELL(cuGraphGetEdges) TELL(cuGraphKernelNodeGetParams)
    TELL(cuGraphKernelNodeSetParams) TELL(cuGraphNodeGetDependencies) TELL(cuGraphNodeGetDependentNodes)
    TELL(cuGraphRemoveDependencies) TELL(cuMemAdvise) TELL(cuMemPrefetchAsync)
    return s;
  }();
  return all.c_str();
}
