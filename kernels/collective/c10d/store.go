package c10d

// #include "c10d.h"
// #include <stdlib.h>
import "C"

import (
	"context"
	"errors"
	"sync"
	"time"
	"unsafe"
)

// store is a client of c10d's TCPStore, in one process its server too. A server that
// does not answer holds up a call for ever, so each runs in a goroutine of its own
// that is left behind when the context ends.
type store struct {
	c     unsafe.Pointer
	calls sync.WaitGroup // those in C
}

// apart runs f, which cannot be interrupted, beside the caller, who waits until the
// context ends; calls counts it until it returns.
func apart[T any](ctx context.Context, calls *sync.WaitGroup, f func() (T, error)) (T, error) {
	type result struct {
		x   T
		err error
	}
	done := make(chan result, 1)
	calls.Go(func() {
		x, err := f()
		done <- result{x, err}
	})
	select {
	case r := <-done:
		return r.x, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// openStore connects to the group's store.
func openStore(ctx context.Context, o Options) (*store, error) {
	s := &store{}
	_, err := apart(ctx, &s.calls, func() (struct{}, error) {
		host, prefix := C.CString(o.Host), C.CString("ssr/"+o.Attempt)
		defer C.free(unsafe.Pointer(host))
		defer C.free(unsafe.Pointer(prefix))
		serve := C.int(0)
		if o.Rank == 0 && !o.External {
			serve = 1
		}
		var why *C.char
		s.c = C.ssr_store_open(host, C.int(o.Port), serve, prefix, milliseconds(o.Timeout), &why)
		return struct{}{}, take(why)
	})
	return s, err
}

func (s *store) has(ctx context.Context, key string) (bool, error) {
	return apart(ctx, &s.calls, func() (bool, error) {
		k := C.CString(key)
		defer C.free(unsafe.Pointer(k))
		var why *C.char
		there := C.ssr_store_check(s.c, k, &why)
		return there != 0, take(why)
	})
}

func (s *store) set(ctx context.Context, key, value string) error {
	_, err := apart(ctx, &s.calls, func() (struct{}, error) {
		k, v := C.CString(key), C.CString(value)
		defer C.free(unsafe.Pointer(k))
		defer C.free(unsafe.Pointer(v))
		var why *C.char
		C.ssr_store_set(s.c, k, v, &why)
		return struct{}{}, take(why)
	})
	return err
}

// get returns a value that is there.
func (s *store) get(ctx context.Context, key string) (string, error) {
	return apart(ctx, &s.calls, func() (string, error) {
		k := C.CString(key)
		defer C.free(unsafe.Pointer(k))
		var why *C.char
		value := C.ssr_store_get(s.c, k, &why)
		defer C.free(unsafe.Pointer(value))
		return C.GoString(value), take(why)
	})
}

// await waits until there is a value under the key, or the context ends.
func (s *store) await(ctx context.Context, key string) error {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if there, err := s.has(ctx, key); there || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// close ends the connection, and the store where this process holds it, when no call
// is under way any more.
func (s *store) close() {
	s.calls.Wait()
	if s.c != nil {
		C.ssr_store_close(s.c)
	}
}

// take turns C's account of a failure into an error.
func take(why *C.char) error {
	if why == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(why))
	return errors.New(C.GoString(why))
}

func milliseconds(d time.Duration) C.long { return C.long(max(1, d.Milliseconds())) }
