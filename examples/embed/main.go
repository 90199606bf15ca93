// Command embed is a Go service that trains a policy by self-play while it
// serves. It shows what a program needs of the library, and nothing more:
//
//	curl -d '{"repo": "DIR", "model": "DIR", "steps": 3}' localhost:8080/runs
//	curl localhost:8080/runs/1
//	curl -X DELETE localhost:8080/runs/1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	dir := flag.String("dir", "runs", "folder of the runs")
	flag.Parse()
	if err := serve(*addr, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

// serve answers until a signal, then stops the runs: each goes on where it was
// when it is started again with "resume".
func serve(addr, dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	service := NewService(ctx, dir)
	server := &http.Server{Addr: addr, Handler: service, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	var err error
	select {
	case err = <-failed:
		stop()
	case <-ctx.Done():
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = server.Shutdown(closing)
	}
	service.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
