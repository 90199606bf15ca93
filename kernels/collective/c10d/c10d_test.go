package c10d

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/collective"
)

// scenarioVariable makes the test's program one process of a group.
const scenarioVariable = "C10D_TEST_SCENARIO"

func TestMain(m *testing.M) {
	if name := os.Getenv(scenarioVariable); name != "" {
		if err := process(name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// process plays a scenario as one process.
func process(name string) error {
	l, err := FromEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	l.Timeout = time.Minute // a busy machine starts processes slowly
	if name == "missing" {
		l.Timeout = 12 * time.Second
	}
	g, err := Join(context.Background(), l.Options)
	if err != nil {
		return err
	}
	defer g.Close()
	g.o.Timeout = 5 * time.Second
	return scenarios[name](g)
}

// scenarios are what each process does.
var scenarios = map[string]func(*Group) error{
	"missing": nil,
	"sums": func(g *Group) error {
		bucket, g.o.Timeout = 1<<12, time.Minute
		return errors.Join(sums[float32](g, 50, []int{3, 10, 10, 31, 47}), sums[float64](g, 50, []int{0, 0, 20, 50, 50}),
			sums[float32](g, 9<<10, []int{5, 4<<10 + 1, 4<<10 + 1, 9<<10 - 3, 9 << 10}), messages(g))
	},
	"killed":  ending(1, func(*Group) { go die(syscall.SIGKILL) }),
	"stopped": ending(1, func(*Group) { go die(syscall.SIGSTOP) }),
	"late":    ending(1, func(*Group) { time.Sleep(20 * time.Second) }),
	"fails": ending(1, func(g *Group) {
		g.Fail(errors.New("the device is lost"))
		time.Sleep(20 * time.Second) // its connections stay open
	}),
	"holder killed":  ending(0, func(*Group) { go die(syscall.SIGKILL) }),
	"holder stopped": ending(0, func(*Group) { go die(syscall.SIGSTOP) }),
	"cancelled": func(g *Group) error {
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		if g.Rank() == 1 { // in the middle of an operation that rank 2 is late for
			time.AfterFunc(200*time.Millisecond, func() { cancel(errors.New("the user had enough")) })
		} else if g.Rank() == 2 {
			time.Sleep(1500 * time.Millisecond)
		}
		return Vectors[float64]{g}.AllGather(ctx, g.Rank(), make([]float64, 4), []int{0, 1, 2, 3, 4})
	},
}

// ending lets all ranks add long vectors again and again, and one do something before
// its third time.
func ending(rank int, f func(*Group)) func(*Group) error {
	return func(g *Group) error {
		v := Vectors[float32]{g}
		vector, bounds := make([]float32, 6<<20), []int{0}
		for r := range g.World() {
			bounds = append(bounds, len(vector)*(r+1)/g.World())
		}
		for time := 0; ; time++ {
			if g.Rank() == rank && time == 2 {
				f(g)
			}
			if err := v.ReduceScatter(context.Background(), g.Rank(), vector, bounds); err != nil {
				return err
			}
		}
	}
}

// die comes in the middle of an operation: they follow each other without a pause.
func die(by syscall.Signal) {
	time.Sleep(20 * time.Millisecond)
	syscall.Kill(os.Getpid(), by)
}

// sums checks every operation on vectors against collective.Local, bit for bit.
func sums[F float32 | float64](g *Group, length int, bounds []int) error {
	bounds = bounds[:g.World()+1]
	vectors := make([][]F, g.World())
	for r := range vectors {
		rng := rand.New(rand.NewPCG(uint64(r), 1))
		for range length {
			vectors[r] = append(vectors[r], F(rng.NormFloat64()))
		}
	}
	got := slices.Clone(vectors[g.Rank()])
	local, scattered, gathered := collective.NewLocal(g.World(), collective.Slices[F]{}), make([][]F, g.World()), make([][]F, g.World())
	var wait sync.WaitGroup
	for r, v := range vectors {
		wait.Go(func() {
			local.ReduceScatter(context.Background(), r, v, bounds)
			scattered[r] = slices.Clone(v)
			local.AllGather(context.Background(), r, v, bounds)
			gathered[r] = v
		})
	}
	wait.Wait()
	over := Vectors[F]{g}
	if err := over.ReduceScatter(context.Background(), g.Rank(), got, bounds); err != nil {
		return err
	}
	if !slices.Equal(got, scattered[g.Rank()]) {
		return fmt.Errorf("rank %d of %d: ReduceScatter of %d elements differs from that in one process", g.Rank(), g.World(), length)
	}
	if err := over.AllGather(context.Background(), g.Rank(), got, bounds); err != nil {
		return err
	}
	if !slices.Equal(got, gathered[g.Rank()]) {
		return fmt.Errorf("rank %d of %d: AllGather of %d elements differs from that in one process", g.Rank(), g.World(), length)
	}
	return nil
}

// messages gives bytes of several lengths, one longer than a bucket, to everybody.
func messages(g *Group) error {
	for turn := range 4 {
		message := func(from int) []byte {
			return bytes.Repeat([]byte{byte(1 + from), byte(16 + turn)}, []int{0, 1, 500, 3*bucket + 7}[(from+turn)%4])
		}
		got, err := g.AllGatherBytes(context.Background(), message(g.Rank()))
		if err != nil {
			return err
		}
		for from, m := range got {
			if !bytes.Equal(m, message(from)) {
				return fmt.Errorf("rank %d of %d: a message of %d bytes from %d, want %d", g.Rank(), g.World(), len(m), from, len(message(from)))
			}
		}
	}
	return nil
}

// outcome is how a process ended.
type outcome struct {
	text  string
	state *os.ProcessState
}

// launch starts the ranks of a group of world processes and waits for them, less than
// the minute that Gloo would wait; those in expendable are killed when all others have ended.
func launch(t *testing.T, scenario string, world int, ranks, expendable []int) map[int]outcome {
	t.Helper()
	port := envtest.FreePort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
	defer cancel()
	var mu sync.Mutex
	out, left := map[int]outcome{}, len(ranks)-len(expendable)
	processes := map[int]*exec.Cmd{}
	var wait sync.WaitGroup
	for _, r := range ranks {
		p := exec.CommandContext(ctx, os.Args[0])
		p.Env = append(os.Environ(), scenarioVariable+"="+scenario, "MASTER_ADDR=127.0.0.1", "MASTER_PORT="+strconv.Itoa(port),
			"WORLD_SIZE="+strconv.Itoa(world), "RANK="+strconv.Itoa(r), "GLOO_SOCKET_IFNAME=lo")
		text := &bytes.Buffer{}
		p.Stdout, p.Stderr = text, text
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		processes[r] = p
		wait.Go(func() {
			p.Wait()
			mu.Lock()
			defer mu.Unlock()
			out[r] = outcome{text.String(), p.ProcessState}
			if !slices.Contains(expendable, r) {
				left--
			}
			if left == 0 {
				for _, r := range expendable {
					if out[r].state == nil {
						processes[r].Process.Kill()
					}
				}
			}
		})
	}
	wait.Wait()
	if ctx.Err() != nil {
		t.Fatalf("%s: %v: %v", scenario, ctx.Err(), out)
	}
	return out
}

// TestSums: 2, 3 and 4 processes add, gather and send as goroutines of one process do.
func TestSums(t *testing.T) {
	for _, world := range []int{2, 3, 4} {
		for r, o := range launch(t, "sums", world, []int{0, 1, 2, 3}[:world], nil) {
			if !o.state.Success() {
				t.Errorf("rank %d of %d: %v\n%s", r, world, o.state, o.text)
			}
		}
	}
}

// TestFailures: whatever becomes of one of four processes, all others end soon, with an
// error that names it.
func TestFailures(t *testing.T) {
	for _, tc := range []struct {
		scenario string
		rank     int // to blame
		want     string
	}{
		{"killed", 1, "rank 1 does not answer: killed"},
		{"stopped", 1, "rank 1 does not answer: killed, stopped"},
		{"late", 1, "rank 1 did not come within 5s"},
		{"fails", 1, "rank 1 gave up: the device is lost"},
		{"cancelled", 1, "rank 1 gave up: the user had enough"},
		{"holder killed", 0, "rank 0, which holds the store"},
		{"holder stopped", 0, "rank 0, which holds the store"},
	} {
		t.Run(tc.scenario, func(t *testing.T) {
			for r, o := range launch(t, tc.scenario, 4, []int{0, 1, 2, 3}, []int{tc.rank}) {
				if r == tc.rank {
					continue
				}
				t.Logf("rank %d: %s", r, strings.TrimSpace(o.text))
				if o.state.ExitCode() != 1 || !strings.Contains(o.text, tc.want) || !strings.Contains(o.text, fmt.Sprintf("rank %d of 4: ", r)) {
					t.Errorf("rank %d: %v: want %q", r, o.state, tc.want)
				}
			}
		})
	}
}

// TestMissing: a group that does not come together says who is missing.
func TestMissing(t *testing.T) {
	for r, o := range launch(t, "missing", 4, []int{0, 2}, nil) {
		want := fmt.Sprintf("rank %d of 4: join: ranks 1, 3 have not come: not within 12s", r)
		if lost := "rank 2 of 4: join: rank 0, which holds the store"; r == 2 && strings.Contains(o.text, lost) {
			want = lost // it began later, so rank 0 left before
		}
		if o.state.ExitCode() != 1 || !strings.Contains(o.text, want) {
			t.Errorf("rank %d: %v %q, want %q", r, o.state, o.text, want)
		}
	}
	for _, o := range launch(t, "missing", 2, []int{1}, nil) {
		if want := "rank 1 of 2 finds no store at 127.0.0.1:"; !strings.Contains(o.text, want) {
			t.Errorf("%q, want %q", o.text, want)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	whole := map[string]string{"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
	for _, tc := range []struct {
		set  map[string]string
		want string
	}{
		{map[string]string{"RANK": ""}, "not RANK"}, {map[string]string{"RANK": "4"}, "rank 4 of 4"}, {map[string]string{"RANK": "x"}, `RANK is "x"`},
		{map[string]string{"MASTER_ADDR": ""}, "not MASTER_ADDR"}, {map[string]string{"MASTER_PORT": "0"}, "port 0"}, {map[string]string{"MASTER_PORT": ""}, "not MASTER_PORT"},
		{map[string]string{"LOCAL_RANK": "2"}, "LOCAL_RANK is 2 of LOCAL_WORLD_SIZE 2"}, {map[string]string{"WORLD_SIZE": "-3"}, "of -3"},
	} {
		_, err := FromEnvironment(func(name string) string {
			if v, ok := tc.set[name]; ok {
				return v
			}
			return whole[name]
		})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.set, err, tc.want)
		}
	}
	l, err := FromEnvironment(func(name string) string { return whole[name] })
	if want := (Launch{Options{Rank: 3, World: 4, Host: "node0", Port: 29500}, 1, 2}); err != nil || *l != want {
		t.Errorf("%+v, want %+v (%v)", l, want, err)
	}
	whole["TORCHELASTIC_USE_AGENT_STORE"], whole["TORCHELASTIC_RESTART_COUNT"] = "True", "2"
	if l, err := FromEnvironment(func(name string) string { return whole[name] }); err != nil || !l.External || l.Attempt != "2" {
		t.Errorf("under torchrun: %+v, %v", l, err)
	}
	for _, alone := range []string{"", "1"} {
		if l, err := FromEnvironment(func(string) string { return alone }); l != nil || err != nil {
			t.Errorf("WORLD_SIZE %q: %v, %v", alone, l, err)
		}
	}
}
