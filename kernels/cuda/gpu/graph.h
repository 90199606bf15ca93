#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// A CUDA graph of libtorch's. Each function returns NULL, or what failed, which is the
// caller's to free. From open to end all is of one thread.

// ssr_graph_open waits for the device and makes the one stream that is for recording the
// thread's current one.
char *ssr_graph_open(int device, void **graph);
// ssr_graph_begin waits for the device and begins to record that stream.
char *ssr_graph_begin(void *graph);
// ssr_graph_end ends a recording, if there is one, waits for the device and makes the stream
// that was before the current one again.
char *ssr_graph_end(void *graph);
// ssr_graph_replay queues what was recorded on the current stream.
char *ssr_graph_replay(void *graph);
void ssr_graph_free(void *graph);

#ifdef __cplusplus
}
#endif
