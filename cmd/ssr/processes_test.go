package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/internal/envtest"
)

// TestProcesses plays a run with two processes, which is the run of two replicas in
// one process, byte for byte. Where one of them is killed the other ends with an error
// that names it; the run goes on with both, and is still the same.
func TestProcesses(t *testing.T) {
	s := newStage(t)
	s.play(t, "replicas", "--set", "policy.replicas=2", "--set", "policy.workers=1")
	want, episodes := s.decided(t, "replicas"), s.episodes(t, "replicas")
	same := func(run string) {
		if diff := cmp.Diff(want, s.decided(t, run)); diff != "" {
			t.Errorf("run %s differs from two replicas in one process: %s", run, diff)
		}
		if diff := cmp.Diff(episodes, s.episodes(t, run)); diff != "" {
			t.Errorf("episodes of run %s differ from those of two replicas in one process: %s", run, diff)
		}
	}
	for r, l := range s.launch(t, "processes", 2) {
		<-l.ended
		t.Logf("rank %d:\n%s", r, l.output.String())
		if l.err != nil {
			t.Fatalf("rank %d: %v", r, l.err)
		}
	}
	same("processes")

	for _, after := range []int{0, 1, 2} {
		ranks := s.launch(t, "killed", 2)
		for ranks[0].phase() != playing || newestCheckpoint(s.path("killed")) != after {
			select {
			case <-ranks[0].ended:
				t.Fatalf("rank 0 ended before it played after step %d: %v\n%s", after, ranks[0].err, ranks[0].output.String())
			case <-time.After(time.Millisecond):
			}
		}
		time.Sleep(time.Second) // into the episodes
		ranks[1].cmd.Process.Kill()
		<-ranks[0].ended
		t.Logf("rank 1 killed after step %d:\n%s", after, ranks[0].output.String())
		if ranks[0].err == nil || !strings.Contains(ranks[0].output.String(), "rank 1") || !strings.Contains(ranks[0].output.String(), "--resume") {
			t.Errorf("rank 0 ends with %v", ranks[0].err)
		}
		<-ranks[1].ended
	}
	for r, l := range s.launch(t, "killed", 2) {
		<-l.ended
		if l.err != nil {
			t.Fatalf("rank %d: %v\n%s", r, l.err, l.output.String())
		}
	}
	same("killed")
	s.nothingIsLeft(t)
}

// launch starts the processes of a run, of one worker each, as torchrun would.
func (s *stage) launch(t *testing.T, run string, world int) (ranks []*life) {
	t.Helper()
	port := envtest.FreePort(t)
	var commands []*exec.Cmd
	for r := range world {
		cmd := s.command(t, run, "--set", "policy.workers=1")
		cmd.Env = append(cmd.Env, "MASTER_ADDR=127.0.0.1", fmt.Sprint("MASTER_PORT=", port), fmt.Sprint("WORLD_SIZE=", world), fmt.Sprint("RANK=", r),
			fmt.Sprint("LOCAL_WORLD_SIZE=", world), fmt.Sprint("LOCAL_RANK=", r), "GLOO_SOCKET_IFNAME=lo")
		commands = append(commands, cmd)
	}
	for _, cmd := range commands {
		ranks = append(ranks, s.begin(t, run, cmd))
	}
	return ranks
}
