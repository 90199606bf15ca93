#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// c10d's TCPStore and Gloo process group. A function that fails sets *why to what
// failed, which the caller frees; else it is NULL. Functions block as long as they
// say; those of one store wait for each other.

// ssr_store_open connects to the store at host:port, or serves it there, until
// timeout_ms. Keys begin with prefix.
void *ssr_store_open(const char *host, int port, int serve, const char *prefix, long timeout_ms, char **why);
// ssr_store_check says whether there is a value under the key.
int ssr_store_check(void *store, const char *key, char **why);
void ssr_store_set(void *store, const char *key, const char *value, char **why);
// ssr_store_get returns a value that is there; the caller frees it.
char *ssr_store_get(void *store, const char *key, char **why);
void ssr_store_close(void *store);

// ssr_gloo_open joins a group of world ranks, which all call it, until timeout_ms;
// its operations fail after that time, too. interface names a network interface;
// where it is empty that of the host's name is taken.
void *ssr_gloo_open(void *store, int rank, int world, const char *interface, long timeout_ms, char **why);
// ssr_gloo_close waits for operations under way.
void ssr_gloo_close(void *group);

// ssr_exchange is one operation: send[r] bytes go to each rank r and recv[r] come
// from it. ssr_exchange_new takes the memory for both, ranks one after the other;
// it lives until ssr_exchange_free and until the operation has ended.
void *ssr_exchange_new(int world, const long *send, const long *recv, char **from, char **to, char **why);
void ssr_exchange_start(void *exchange, void *group, char **why);
// ssr_exchange_done says whether the operation has ended; *why says how where it failed.
int ssr_exchange_done(void *exchange, char **why);
void ssr_exchange_free(void *exchange);

#ifdef __cplusplus
}
#endif
