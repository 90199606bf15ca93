package learner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/internal/rpc"
	"github.com/ssr-go/ssr/kernels/collective/c10d"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// Variables that make the test's program one process of a group: the policy that it
// trains, the folder that rank 0 writes, and where in a step that kills rank 1.
const (
	scenarioVariable = "LEARNER_TEST_SCENARIO"
	folderVariable   = "LEARNER_TEST_FOLDER"
	killVariable     = "LEARNER_TEST_KILL"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(scenarioVariable); name != "" {
		if err := process(distributed[name], os.Getenv(folderVariable)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// distributed are the policies that several processes train.
var distributed = map[string]model.Options{
	"float64":  {DType: torch.Float64},
	"float32":  {},
	"bfloat16": {DType: torch.BFloat16, EMA: 0.9},
	"adapters": {LoRA: &model.LoRA{Rank: 3}, EMA: 0.5},
	"sharded":  {ShardGradient: true},
}

const distributedSteps = 4

// process is one member of a group that trains a policy: rank 0 leads, has an update
// refused, which leaves nothing behind, saves, loads that again, takes one more step and
// saves.
func process(o model.Options, folder string) error {
	launch, err := c10d.FromEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	launch.Timeout = time.Minute
	ctx := context.Background()
	g, err := c10d.Join(ctx, launch.Options)
	if err != nil {
		return err
	}
	defer g.Close()
	o.Workers, o.Shard = 1, model.Shard{Index: g.Rank(), Of: g.World()}
	p, err := model.New(shape, 7, o)
	if err != nil {
		return err
	}
	defer p.Close()
	if g.Rank() > 0 {
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint("pid", g.Rank())), strconv.AppendInt(nil, int64(os.Getpid()), 10), 0o600); err != nil {
			return err
		}
		return Follow(ctx, g, func(s *rpc.Server) { Serve(s, p, g) })
	}
	if err := leading(ctx, p, g, folder); err != nil {
		return g.Fail(err)
	}
	return nil
}

func leading(ctx context.Context, p *model.Policy, g *c10d.Group, folder string) error {
	clients, err := Lead(ctx, g)
	if err != nil {
		return err
	}
	tok, err := tokenizer()
	if err != nil {
		return err
	}
	l, err := NewDistributed(ctx, p, tok, g, clients)
	if err != nil {
		return err
	}
	for step := range distributedSteps + 1 {
		if at := os.Getenv(killVariable); at != "" && step == 2 {
			if err := l.arm(at, g, filepath.Join(folder, "pid1")); err != nil {
				return err
			}
		}
		if step == 1 {
			if err := refuse(l, 99); err != nil {
				return err
			}
		}
		if step == distributedSteps {
			if err := errors.Join(l.Save(filepath.Join(folder, "saved")), l.Load(filepath.Join(folder, "saved"))); err != nil {
				return err
			}
		}
		loss, norm, err := update(l, uint64(step))
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		fmt.Println(loss, norm)
	}
	return errors.Join(l.Save(filepath.Join(folder, "last")), Leave(ctx, clients))
}

// killer is rank 0's replica; it kills rank 1 at one place of a step.
type killer struct {
	replicas.Replica[*torch.Tensor]
	at   string
	kill func()
	once sync.Once
}

// arm makes rank 0 kill the process whose number is in a file.
func (l *Learner) arm(at string, g *c10d.Group, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return err
	}
	all := []replicas.Replica[*torch.Tensor]{&killer{Replica: replica{l.policies[0]}, at: at, kill: func() { syscall.Kill(pid, syscall.SIGKILL) }}}
	for _, e := range l.elsewhere {
		all = append(all, e.(*remote))
	}
	bucket = 4000 // several of them
	armed, err := newGroup(all, processes{Group: g})
	l.group = ending{armed, g}
	return err
}

func (k *killer) fire(at string) {
	if k.at == at {
		k.once.Do(k.kill)
	}
}

func (k *killer) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	k.fire("accumulate") // the others are at it, too
	return k.Replica.Accumulate(ctx, batches, fn, final)
}

func (k *killer) Reduce(ctx context.Context, lo, hi int, sum func(*torch.Tensor) error) error {
	err := k.Replica.Reduce(ctx, lo, hi, sum)
	if lo > 0 { // more follow
		k.fire("reduce")
	}
	return err
}

func (k *killer) Update(o train.AdamW, scale float64, share func(*torch.Tensor) error) error {
	return k.Replica.Update(o, scale, func(weights *torch.Tensor) error {
		k.fire("gather")
		return share(weights)
	})
}

// chatter is what later versions of Gloo print when they connect.
var chatter = regexp.MustCompile(`(?m)^\[.*gloo.*\] INFO .*\n`)

// launch runs a group of processes to their end, which comes within a minute and a half.
func launch(t *testing.T, scenario, kill string, world int) (folder string, out []string, failed []bool) {
	t.Helper()
	port := envtest.FreePort(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	folder, out, failed = t.TempDir(), make([]string, world), make([]bool, world)
	var wait sync.WaitGroup
	for r := range world {
		wait.Go(func() {
			p := exec.CommandContext(ctx, os.Args[0])
			p.Env = append(os.Environ(), scenarioVariable+"="+scenario, killVariable+"="+kill, folderVariable+"="+folder, "GLOO_SOCKET_IFNAME=lo",
				"MASTER_ADDR=127.0.0.1", fmt.Sprint("MASTER_PORT=", port), fmt.Sprint("WORLD_SIZE=", world), fmt.Sprint("RANK=", r))
			text, err := p.CombinedOutput()
			out[r], failed[r] = chatter.ReplaceAllString(string(text), ""), err != nil
		})
	}
	wait.Wait()
	if ctx.Err() != nil {
		t.Fatalf("%s, %q: the processes did not end: %q", scenario, kill, out)
	}
	return folder, out, failed
}

// TestProcessesTrainAlike: 2 and 4 processes have the losses, norms, weights and
// optimizer state, and save the files, of as many replicas in one process, bit for bit
// (which TestReplicasTrainAlike compares with one), and go on alike from what they saved.
func TestProcessesTrainAlike(t *testing.T) {
	for name, o := range distributed {
		for _, world := range []int{2, 4} {
			t.Run(fmt.Sprint(name, " ", world), func(t *testing.T) {
				figures, saved4, l := trained(t, world, o, distributedSteps)
				loss, norm, err := update(l, distributedSteps)
				if err != nil {
					t.Fatal(err)
				}
				figures = append(figures, loss, norm)
				want := ""
				for i := 0; i < len(figures); i += 2 {
					want += fmt.Sprintln(figures[i], figures[i+1])
				}
				folder, out, failed := launch(t, name, "", world)
				for r := range failed {
					if failed[r] {
						t.Fatalf("rank %d: %s", r, out[r])
					}
				}
				if out[0] != want {
					t.Errorf("losses and norms %s, of replicas in one process %s", out[0], want)
				}
				same(t, "saved", files(filepath.Join(folder, "saved")), saved4)
				same(t, "after one more step", files(filepath.Join(folder, "last")), saved(t, l))
			})
		}
	}
}

// TestKilledProcess: where one of four processes is killed in the middle of a step, all
// others end with an error that names it.
func TestKilledProcess(t *testing.T) {
	for _, tc := range [][2]string{{"float32", "accumulate"}, {"float32", "reduce"}, {"float32", "gather"}, {"sharded", "reduce"}} {
		scenario, at := tc[0], tc[1]
		t.Run(scenario+" "+at, func(t *testing.T) {
			_, out, failed := launch(t, scenario, at, 4)
			for r, text := range out {
				t.Logf("rank %d: %s", r, strings.TrimSpace(text))
				if r != 1 && (!failed[r] || !strings.Contains(text, "rank 1")) {
					t.Errorf("rank %d does not name rank 1", r)
				}
				if r == 0 && strings.Count(text, "\n") != 3 {
					t.Errorf("rank 0 did not end in its third step")
				}
			}
		})
	}
}
