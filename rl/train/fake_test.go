package train

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

const vocabulary = 6

// table is a learner small enough to be exact: a softmax policy whose logits
// are a table by previous token.
type table struct {
	W, G, M, V [vocabulary][vocabulary]float64
	N          int64

	// fail, where set, is asked before each call and may spoil it.
	fail func(call string) error
}

func (p *table) Version() int64 { return p.N }

func (p *table) failing(call string) error {
	if p.fail == nil {
		return nil
	}
	return p.fail(call)
}

func (p *table) probs(prev int32) [vocabulary]float64 {
	var q [vocabulary]float64
	var sum float64
	for v, w := range p.W[prev] {
		q[v] = math.Exp(w)
		sum += q[v]
	}
	for v := range q {
		q[v] /= sum
	}
	return q
}

func (p *table) Accumulate(ctx context.Context, batches []rl.Packed, fn GradientFunc) (err error) {
	defer func() {
		if err != nil {
			p.G = [vocabulary][vocabulary]float64{}
		}
	}()
	// fn is called concurrently and out of order, as the contract allows.
	grads := make([][]float64, len(batches))
	errs := make([]error, len(batches))
	var wg sync.WaitGroup
	for i := range batches {
		wg.Go(func() {
			b := batches[i]
			logprobs, entropies := make([]float64, len(b.Tokens)), make([]float64, len(b.Tokens))
			each(b, func(k int) {
				q := p.probs(b.Tokens[k-1])
				logprobs[k] = math.Log(q[b.Tokens[k]])
				for _, x := range q {
					entropies[k] -= x * math.Log(x)
				}
			})
			if p.failing("logprobs") != nil {
				logprobs[1] = math.NaN()
			}
			grads[i], errs[i] = fn(i, logprobs, entropies)
		})
	}
	wg.Wait()
	for i, b := range batches {
		if errs[i] != nil {
			return errs[i]
		}
		each(b, func(k int) {
			q := p.probs(b.Tokens[k-1])
			for v := range q {
				d := -q[v]
				if int32(v) == b.Tokens[k] {
					d++
				}
				p.G[b.Tokens[k-1]][v] += grads[i][k] * d
			}
		})
	}
	return p.failing("accumulate")
}

func (p *table) Logprobs(_ context.Context, batches []rl.Packed) ([][]float64, error) {
	out := make([][]float64, len(batches))
	for i, b := range batches {
		out[i] = make([]float64, len(b.Tokens))
		each(b, func(k int) {
			q := p.probs(b.Tokens[k-1])
			out[i][k] = math.Log(q[b.Tokens[k]])
		})
	}
	return out, p.failing("score")
}

// each visits the tokens that something predicts.
func each(b rl.Packed, visit func(k int)) {
	for s := range len(b.Offsets) - 1 {
		for k := b.Offsets[s] + 1; k < b.Offsets[s+1]; k++ {
			visit(k)
		}
	}
}

func (p *table) Step(_ context.Context, o AdamW) (float64, error) {
	defer func() { p.G = [vocabulary][vocabulary]float64{} }()
	if err := p.failing("step"); err != nil {
		return math.NaN(), err
	}
	var ss float64
	for i := range p.G {
		for _, g := range p.G[i] {
			ss += g * g
		}
	}
	norm := math.Sqrt(ss)
	scale := 1.0
	if o.Clip > 0 && norm > o.Clip {
		scale = o.Clip / norm
	}
	p.N++
	c1, c2 := 1-math.Pow(o.Beta1, float64(p.N)), 1-math.Pow(o.Beta2, float64(p.N))
	for i := range p.G {
		for j, g := range p.G[i] {
			g *= scale
			p.M[i][j] = o.Beta1*p.M[i][j] + (1-o.Beta1)*g
			p.V[i][j] = o.Beta2*p.V[i][j] + (1-o.Beta2)*g*g
			p.W[i][j] -= o.LR * (p.M[i][j]/c1/(math.Sqrt(p.V[i][j]/c2)+o.Eps) + o.WeightDecay*p.W[i][j])
		}
	}
	return norm, nil
}

func (p *table) Save(dir string) error {
	if err := p.failing("save"); err != nil {
		return err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "table.json"), data, 0o644)
}

func (p *table) Load(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "table.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, p)
}

// uniform is a counter-based draw from [0, 1).
func uniform(parts ...any) float64 {
	h := fnv.New64a()
	fmt.Fprint(h, parts...)
	x := h.Sum64()
	x ^= x >> 31
	x *= 0x9E3779B97F4A7C15
	x ^= x >> 29
	return float64(x>>11) / (1 << 53)
}

// puzzle is a game whose every figure follows from the policy and IDs: a solver
// is shown a token and must answer with its successor; an injector proposes
// which, and is paid when solvers fail it now and then. Groups finish in an order
// that differs from run to run.
type puzzle struct {
	policy *table
	log    string        // a file that gets a line before and after each group's episodes
	pause  time.Duration // of an episode, at most
	// Unsolved are the tokens no solver of the last step got; one more group
	// plays each, so that the state matters.
	Unsolved []int32

	played func(id string) error // where set, asked before each group's episodes
}

func (g *puzzle) State() ([]byte, error)     { return json.Marshal(g.Unsolved) }
func (g *puzzle) Restore(state []byte) error { return json.Unmarshal(state, &g.Unsolved) }
func (g *puzzle) note(line string, id string) error {
	if g.log == "" {
		return nil
	}
	f, err := os.OpenFile(g.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line + " " + id + "\n")
	return err
}

const solversPerTask = 8

func (g *puzzle) Play(ctx context.Context, step int, done []Finished, finish func(Finished) error) error {
	have := map[string]Finished{}
	for _, f := range done {
		have[f.Group.ID] = f
	}
	injectors, err := g.injectors(ctx, step, have, finish)
	if err != nil {
		return err
	}
	tasks := append([]int32(nil), g.Unsolved...)
	for _, t := range injectors.Trajectories {
		if t.Status == rollout.Scored {
			tasks = append(tasks, t.Tokens[1])
		}
	}
	groups := make([]*rollout.Group, len(tasks))
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i, token := range tasks {
		id := fmt.Sprintf("%03d-solve-%02d", step, i)
		if f, ok := have[id]; ok {
			groups[i] = f.Group
			continue
		}
		wg.Go(func() { groups[i], errs[i] = g.solvers(ctx, step, id, token, finish) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	g.Unsolved = nil
	var rates []float64
	for i, group := range groups {
		solved := 0
		for _, t := range group.Trajectories {
			if t.Outcome == outcomeSolved {
				solved++
			}
		}
		if solved == 0 && !slices.Contains(g.Unsolved, tasks[i]) && len(g.Unsolved) < 2 {
			g.Unsolved = append(g.Unsolved, tasks[i])
		}
		rates = append(rates, float64(solved)/solversPerTask)
	}
	return g.pay(injectors, rates[len(tasks)-scored(injectors):], have, finish)
}

func scored(g *rollout.Group) int {
	n := 0
	for _, t := range g.Trajectories {
		if t.Status == rollout.Scored {
			n++
		}
	}
	return n
}

// injectors proposes tokens, and records the group before its rewards are known.
func (g *puzzle) injectors(ctx context.Context, step int, have map[string]Finished, finish func(Finished) error) (*rollout.Group, error) {
	id := fmt.Sprintf("%03d-inject", step)
	if f, ok := have[id]; ok {
		return f.Group, nil
	}
	group := &rollout.Group{ID: id, Role: rollout.Injector}
	if err := g.begin(ctx, id); err != nil {
		return nil, err
	}
	for k := range 5 {
		t := g.episode(step, fmt.Sprint(id, "-", k), id, rollout.Injector, 0, 2)
		t.Outcome = outcomeValid
		if t.Tokens[1] == 0 {
			t.Status, t.Failure = rollout.Failed, "sandbox: it got lost"
		}
		group.Trajectories = append(group.Trajectories, t)
	}
	return group, g.end(Finished{Group: group, Counts: map[string]float64{"sandboxes": 5}}, finish)
}

// pay records the injectors again with their rewards, unless that is done.
func (g *puzzle) pay(injectors *rollout.Group, rates []float64, have map[string]Finished, finish func(Finished) error) error {
	paid := *injectors
	paid.Trajectories = nil
	for _, t := range injectors.Trajectories {
		u := *t
		if u.Detail != nil {
			return nil
		}
		u.Detail = "paid"
		if u.Status == rollout.Scored {
			u.Reward = 1 - 1.8*rates[0]
			if rates[0] == 0 || rates[0] == 1 {
				u.Reward, u.Outcome = -0.8, "refused:bug"
			}
			rates = rates[1:]
		}
		paid.Trajectories = append(paid.Trajectories, &u)
	}
	return finish(Finished{Group: &paid, Counts: map[string]float64{"sandboxes": 5}})
}

func (g *puzzle) solvers(ctx context.Context, step int, id string, token int32, finish func(Finished) error) (*rollout.Group, error) {
	if err := g.begin(ctx, id); err != nil {
		return nil, err
	}
	group := &rollout.Group{ID: id, Role: rollout.Solver}
	for k := range solversPerTask {
		t := g.episode(step, fmt.Sprint(id, "-", k), id, rollout.Solver, token, 2+k%2)
		t.Reward, t.Outcome = -1, "unsolved"
		if t.Tokens[1] == (token+1)%vocabulary {
			t.Reward, t.Outcome = 1, outcomeSolved
		}
		group.Trajectories = append(group.Trajectories, t)
	}
	return group, g.end(Finished{Group: group, Counts: map[string]float64{"sandboxes": solversPerTask}}, finish)
}

func (g *puzzle) begin(ctx context.Context, id string) error {
	if g.played != nil {
		if err := g.played(id); err != nil {
			return err
		}
	}
	if err := g.note("start", id); err != nil {
		return err
	}
	if g.pause == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(time.Duration(uniform(time.Now().UnixNano()) * float64(g.pause))):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *puzzle) end(f Finished, finish func(Finished) error) error {
	if err := finish(f); err != nil {
		return err
	}
	return g.note("end", f.Group.ID)
}

// episode samples n tokens after the prompt, with an observation in between.
func (g *puzzle) episode(step int, id, group string, role rollout.Role, prompt int32, n int) *rollout.Trajectory {
	t := &rollout.Trajectory{ID: id, Group: group, Role: role, Step: step, Status: rollout.Scored}
	t.Append([]int32{prompt}, nil, nil)
	for k := range n {
		q := g.policy.probs(t.Tokens[len(t.Tokens)-1])
		u := uniform(id, "/", k)
		token := int32(0)
		for u -= q[0]; u >= 0 && token < vocabulary-1; u -= q[token] {
			token++
		}
		t.Append([]int32{token}, []float32{float32(math.Log(q[token]))}, []int64{g.policy.N})
		t.Turns = append(t.Turns, rollout.Turn{Start: len(t.Tokens) - 1, End: len(t.Tokens), Text: string(rune('a' + token))})
		if k == 0 {
			t.Append([]int32{prompt}, nil, nil)
		}
	}
	return t
}

func testSettings(steps int) Settings {
	s := DefaultSettings()
	s.Steps = steps
	s.Loss.Length = 8
	s.TokenBudget = 12
	s.Optimizer.LR, s.Optimizer.Clip, s.Optimizer.WeightDecay = 0.1, 1, 0
	s.Schedule.Warmup = 3
	s.MaxLag = 0
	return s
}

// bits is what two equal learners have in common.
func (p *table) bits() []byte {
	var out []byte
	for _, m := range [][vocabulary][vocabulary]float64{p.W, p.M, p.V} {
		for _, row := range m {
			for _, x := range row {
				out = binary.LittleEndian.AppendUint64(out, math.Float64bits(x))
			}
		}
	}
	return binary.LittleEndian.AppendUint64(out, uint64(p.N))
}
