package learner

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/safetensors"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

var le = binary.LittleEndian

// shape has 15,312 weights, which two, three and four do not divide at tensors' ends.
var shape = model.Config{
	ModelType: "qwen2", VocabSize: 259, Hidden: 24, Intermediate: 40, Layers: 2, Heads: 3, KVHeads: 1, HeadDim: 8,
	MaxPositions: 64, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// newReplicas are n equal policies of one worker each.
func newReplicas(t *testing.T, n int, o model.Options) []*model.Policy {
	t.Helper()
	o.Workers = 1
	var all []*model.Policy
	number, onGPUs := o.Device.GPU()
	for i := range n {
		o.Shard = model.Shard{Index: i, Of: n}
		if onGPUs {
			o.Device, o.Kernels = torch.CUDA(number+i), kernels(t, number+i)
		}
		p, err := model.New(shape, 7, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		all = append(all, p)
	}
	return all
}

func tokenizer() (*token.Tokenizer, error) {
	return token.Train([]string{"x"}, token.TrainOptions{VocabSize: 259, Specials: token.ChatMLSpecials})
}

func newReplicated(t *testing.T, n int, o model.Options) *Learner {
	t.Helper()
	tok, err := tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewReplicated(newReplicas(t, n, o), tok)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// kernels are those of a GPU.
func kernels(t *testing.T, number int) cuda.Machine {
	t.Helper()
	m, err := gpu.Open(number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// TestReplicasOnGPUs: two replicas on a GPU each, with their gradients whole and in shards,
// are those on the CPU after three steps, within 2e-4; see TestReplicasTrainAlike.
func TestReplicasOnGPUs(t *testing.T) {
	if devices, why := gpu.Devices(); len(devices) < 2 {
		t.Skip("needs two GPUs: " + why)
	}
	for name, o := range map[string]model.Options{"whole": {}, "shards": {ShardGradient: true}} {
		t.Run(name, func(t *testing.T) {
			wantFigures, want, _ := trained(t, 2, o, 3)
			o.Device = torch.CUDA(0)
			figures, files, _ := trained(t, 2, o, 3)
			for i, x := range figures {
				if !(math.Abs(x-wantFigures[i]) <= 2e-4*math.Abs(wantFigures[i])) {
					t.Errorf("losses and norms %v, on the CPU %v", figures, wantFigures)
				}
			}
			for file, b := range want {
				if !strings.HasSuffix(file, ".safetensors") {
					continue
				}
				if d := apart(t, files[file], b); !(d <= 2e-4) {
					t.Errorf("%s: %.1e apart", file, d)
				}
			}
		})
	}
}

// drawn are seven micro-batches of random sequences.
func drawn(seed uint64) (all []rl.Packed) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 7 {
		b := rl.Packed{Offsets: []int{0}}
		for range 1 + rng.IntN(3) {
			for i := range 3 + rng.IntN(30) {
				b.Tokens = append(b.Tokens, int32(rng.IntN(259)))
				b.Mask = append(b.Mask, i > 0 && rng.IntN(3) > 0)
				b.Advantages = append(b.Advantages, rng.NormFloat64())
			}
			b.Offsets = append(b.Offsets, len(b.Tokens))
		}
		all = append(all, b)
	}
	return all
}

var adamw = train.AdamW{LR: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-6, WeightDecay: 0.1, Clip: 0.5}

// update takes a step on drawn micro-batches; the loss is that of the policy gradient.
func update(l *Learner, seed uint64) (loss, norm float64, err error) {
	all := drawn(seed)
	losses := make([]float64, len(all))
	err = l.Accumulate(context.Background(), all, func(i int, logprobs, _ []float64) ([]float64, error) {
		grad := make([]float64, len(logprobs))
		for t, m := range all[i].Mask {
			if m {
				grad[t] = -all[i].Advantages[t] / 100
				losses[i] += grad[t] * logprobs[t]
			}
		}
		return grad, nil
	})
	if err != nil {
		return 0, 0, err
	}
	for _, x := range losses {
		loss += x
	}
	norm, err = l.Step(context.Background(), adamw)
	return loss, norm, err
}

// trained is what n replicas have after some steps: the loss and norm of each, and
// every file that they save.
func trained(t *testing.T, n int, o model.Options, steps int) (figures []float64, files map[string][]byte, l *Learner) {
	t.Helper()
	l = newReplicated(t, n, o)
	for s := range steps {
		loss, norm, err := update(l, uint64(s))
		if err != nil {
			t.Fatal(err)
		}
		figures = append(figures, loss, norm)
	}
	for i, p := range l.policies[1:] {
		if name := difference(l.policies[0], p); name != "" {
			t.Errorf("after %d steps %s of replica %d is not that of replica 0", steps, name, i+1)
		}
	}
	return figures, saved(t, l), l
}

func saved(t *testing.T, l *Learner) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	if err := l.Save(dir); err != nil {
		t.Fatal(err)
	}
	return files(dir)
}

// files are those of a folder and its folders, by their names in it.
func files(dir string) map[string][]byte {
	files := map[string][]byte{}
	for _, pattern := range []string{"*", "*/*"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil {
				files[path[len(dir)+1:]] = data
			}
		}
	}
	return files
}

// same compares files byte for byte.
func same(t *testing.T, what string, got, want map[string][]byte) {
	t.Helper()
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Errorf("%s: files %v, want %v", what, g, w)
	}
	for name := range want {
		if string(got[name]) != string(want[name]) {
			t.Errorf("%s: %s differs", what, name)
		}
	}
}

// apart is the largest difference of a tensor in two files, relative to its largest
// element.
func apart(t *testing.T, a, b []byte) (most float64) {
	t.Helper()
	var files [2]*safetensors.File
	for i, data := range [][]byte{a, b} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := safetensors.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if !slices.Equal(files[0].Names(), files[1].Names()) || !maps.Equal(files[0].Metadata(), files[1].Metadata()) {
		t.Fatalf("%v %v, want %v %v", files[0].Names(), files[0].Metadata(), files[1].Names(), files[1].Metadata())
	}
	for _, name := range files[0].Names() {
		var values [2][]float64
		for i, f := range files {
			x, err := f.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			values[i] = floats(t, x)
		}
		difference, largest := 0.0, 0.0
		for i, x := range values[0] {
			difference, largest = max(difference, math.Abs(x-values[1][i])), max(largest, math.Abs(values[1][i]))
		}
		if difference > 0 {
			most = max(most, difference/largest)
		}
	}
	return most
}

func floats(t *testing.T, x safetensors.Tensor) (out []float64) {
	t.Helper()
	for d := x.Data; len(d) > 0; {
		switch x.DType {
		case safetensors.F32:
			out, d = append(out, float64(math.Float32frombits(le.Uint32(d)))), d[4:]
		case safetensors.F64:
			out, d = append(out, math.Float64frombits(le.Uint64(d))), d[8:]
		default:
			t.Fatalf("%s is %s", x.Name, x.DType)
		}
	}
	return out
}

// TestReplicasTrainAlike: 1, 2, 3 and 4 replicas have the same losses, gradient norms,
// weights and optimizer state after ten steps, within 1e-12 in float64 and 2e-4 in
// float32 (a tensor's largest difference, relative to its largest element): sums are
// taken in another order, and AdamW enlarges rounding where a gradient is near 0. So have
// 1, 2 and 4 that keep shards of the gradient, with three or more micro-batches each that
// are not equally many. The same number gives the same bytes.
func TestReplicasTrainAlike(t *testing.T) {
	for name, tc := range map[string]struct {
		o     model.Options
		bound float64
	}{
		"float64":            {model.Options{DType: torch.Float64}, 1e-12},
		"float32":            {model.Options{}, 2e-4},
		"adapters":           {model.Options{DType: torch.Float64, LoRA: &model.LoRA{Rank: 3}, EMA: 0.9}, 1e-12},
		"frozen":             {model.Options{DType: torch.Float64, FreezeLayers: 1, EMA: 0.5, Recompute: true}, 1e-12},
		"devices":            {model.Options{DType: torch.Float64, Device: torch.Generic, EMA: 0.9}, 1e-12},
		"devices in float32": {model.Options{Device: torch.Generic}, 2e-4},
	} {
		t.Run(name, func(t *testing.T) {
			const steps = 10
			alone, want, _ := trained(t, 1, tc.o, steps)
			for _, n := range []int{2, 3, 4, -1, -2, -4} {
				o, of := tc.o, "replicas"
				if n < 0 {
					n, o.ShardGradient, of = -n, true, "replicas with shards of the gradient"
				}
				figures, files, _ := trained(t, n, o, steps)
				again, bytes, _ := trained(t, n, o, steps)
				if !slices.Equal(figures, again) {
					t.Errorf("%d %s: %v, and again %v", n, of, figures, again)
				}
				same(t, fmt.Sprint(n, " ", of, " again"), bytes, files)
				most := 0.0
				for i, x := range figures {
					most = max(most, math.Abs(x-alone[i])/math.Abs(alone[i]))
				}
				line := fmt.Sprintf("%d %s: losses and norms %.1e apart", n, of, most)
				for _, file := range slices.Sorted(maps.Keys(want)) {
					if !strings.HasSuffix(file, ".safetensors") {
						continue
					}
					d := apart(t, files[file], want[file])
					line += fmt.Sprintf(", %s %.1e", file, d)
					most = max(most, d)
				}
				t.Log(line)
				if !(most <= tc.bound) {
					t.Errorf("%d %s are %g apart from one, more than %g", n, of, most, tc.bound)
				}
			}
		})
	}
}

// TestBuckets: gradients that are summed in short buckets, beside the backward pass, give
// the files that those give which are summed whole.
func TestBuckets(t *testing.T) {
	for name, o := range map[string]model.Options{
		"float32": {}, "adapters": {LoRA: &model.LoRA{Rank: 3}}, "devices": {Device: torch.Generic}, "bfloat16": {DType: torch.BFloat16, EMA: 0.9},
		"sharded": {ShardGradient: true}, "sharded adapters": {ShardGradient: true, LoRA: &model.LoRA{Rank: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			figures, want, _ := trained(t, 3, o, 3)
			whole := bucket
			bucket = 700
			t.Cleanup(func() { bucket = whole })
			again, files, _ := trained(t, 3, o, 3)
			if !slices.Equal(figures, again) {
				t.Errorf("losses and norms %v, whole %v", again, figures)
			}
			same(t, "in buckets", files, want)
		})
	}
}

// diary is a reducer and its replicas that note what happens in which order.
type diary struct {
	replicas.Reducer[*torch.Tensor]
	mu     sync.Mutex
	events []string
}

func (d *diary) note(event string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, event)
}

func (d *diary) ReduceScatter(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	d.note("sum")
	return d.Reducer.ReduceScatter(ctx, rank, vector, bounds)
}

// noted is a replica whose backward pass waits, before its last layer, for a sum.
type noted struct {
	replicas.Replica[*torch.Tensor]
	d *diary
}

func (n noted) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	return n.Replica.Accumulate(ctx, batches, fn, func(from int) {
		final(from)
		if from == 0 {
			n.d.note("end")
			return
		}
		for begun := false; !begun; time.Sleep(time.Millisecond) {
			n.d.mu.Lock()
			begun = slices.Contains(n.d.events, "sum") || ctx.Err() != nil
			n.d.mu.Unlock()
		}
	})
}

// TestSumsOverlapBackward: the first sum of real policies begins in the middle of their
// backward passes, which wait for it; without overlap none would come.
func TestSumsOverlapBackward(t *testing.T) {
	d := &diary{Reducer: collective.NewLocal(2, tensors{})}
	var all []replicas.Replica[*torch.Tensor]
	for _, p := range newReplicas(t, 2, model.Options{}) {
		all = append(all, noted{replica{p}, d})
	}
	g, err := replicas.New(all, d)
	if err != nil {
		t.Fatal(err)
	}
	g.Bucket = 700
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	packed := drawn(1)
	err = g.Accumulate(ctx, packed, func(i int, _, _ []float64) ([]float64, error) { return packed[i].Advantages, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Log(d.events)
	if first, last := slices.Index(d.events, "sum"), slices.Index(d.events, "end"); first > last {
		t.Errorf("sum %d begins after backward pass %d has ended", first, last)
	}
}

// TestIdleReplicas: replicas without a micro-batch add zeros, which changes no bit.
func TestIdleReplicas(t *testing.T) {
	var want map[string][]byte
	for _, n := range []int{1, 3} {
		l, one := newReplicated(t, n, model.Options{}), drawn(5)[:1]
		err := l.Accumulate(t.Context(), one, func(_ int, logprobs, _ []float64) ([]float64, error) {
			return one[0].Advantages, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		o := adamw
		o.Clip = 0 // the norm is a sum over shards
		if _, err := l.Step(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			want = saved(t, l)
		} else {
			same(t, "two idle replicas", saved(t, l), want)
		}
	}
}

// TestCheckpointsFitAnyNumber: what n replicas saved is, loaded by m and saved again,
// the same bytes; and as many as saved it go on as if they had never stopped.
func TestCheckpointsFitAnyNumber(t *testing.T) {
	for name, o := range map[string]model.Options{
		"float32": {}, "bfloat16": {DType: torch.BFloat16, EMA: 0.9},
		"adapters": {EMA: 0.5, LoRA: &model.LoRA{Rank: 3}}, "frozen": {FreezeLayers: 1},
		"devices": {Device: torch.Generic, EMA: 0.9}, "half products": {Device: torch.Generic, DType: torch.BFloat16},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1, 2, 3} {
				_, files, calm := trained(t, n, o, 3)
				dir := t.TempDir()
				if err := calm.Save(dir); err != nil {
					t.Fatal(err)
				}
				for _, m := range []int{1, 2, 3} {
					l := newReplicated(t, m, o)
					if _, _, err := update(l, 99); err != nil { // a state to be forgotten
						t.Fatal(err)
					}
					if err := l.Load(dir); err != nil {
						t.Fatal(err)
					}
					if l.Version() != 3 {
						t.Errorf("version %d, want 3", l.Version())
					}
					same(t, fmt.Sprintf("of %d replicas by %d", n, m), saved(t, l), files)
					if _, _, err := update(l, 3); err != nil {
						t.Fatal(err)
					}
					if m == n {
						if _, _, err := update(calm, 3); err != nil {
							t.Fatal(err)
						}
						same(t, fmt.Sprintf("%d replicas, a step after loading", n), saved(t, l), saved(t, calm))
					}
				}
			}
		})
	}
}

// TestOptimizerStateIsShared: what n replicas keep for the optimizer is together what
// one keeps, and of each a part that is 1/n but for a cache line of each buffer.
func TestOptimizerStateIsShared(t *testing.T) {
	for name, o := range map[string]model.Options{"float32": {}, "bfloat16": {DType: torch.BFloat16, EMA: 0.9}} {
		var one int64
		for _, n := range []int{1, 2, 3, 4} {
			sum := int64(0)
			for i, p := range newReplicas(t, n, o) {
				before := torch.Allocated()[torch.Optimizer]
				if err := p.Prepare(); err != nil {
					t.Fatal(err)
				}
				kept := torch.Allocated()[torch.Optimizer] - before
				sum += kept
				if n == 1 {
					one = kept
				}
				if off := kept - one/int64(n); off < -4*64 || off > 4*64 {
					t.Errorf("%s: replica %d of %d keeps %d bytes, one alone %d", name, i, n, kept, one)
				}
			}
			t.Logf("%s: %d replicas keep %d bytes, one %d", name, n, sum, one)
			if sum != one || one == 0 {
				t.Errorf("%s: %d replicas keep %d bytes together, one alone %d", name, n, sum, one)
			}
		}
	}
}

// TestGradientIsSharded: of twelve layers each of four replicas has, beside a quarter of
// the gradient, memory for two layers and the embedding.
func TestGradientIsSharded(t *testing.T) {
	const layer, norm, embedding = 4528, 32, 6224 // elements, in whole cache lines
	deep := shape
	deep.Layers = 12
	used := map[bool]int64{}
	for _, sharded := range []bool{false, true} {
		before := torch.Allocated()[torch.Gradients]
		var policies []*model.Policy
		for i := range 4 {
			p, err := model.New(deep, 7, model.Options{Workers: 1, Shard: model.Shard{Index: i, Of: 4}, ShardGradient: sharded})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			policies = append(policies, p)
		}
		l, err := NewReplicated(policies, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := update(l, 1); err != nil {
			t.Fatal(err)
		}
		used[sharded] = torch.Allocated()[torch.Gradients] - before
	}
	const all = embedding + 12*layer + norm
	if want := int64(4 * 4 * all); used[false] != want {
		t.Errorf("four whole gradients have %d bytes, want %d", used[false], want)
	}
	if want := int64(4 * (all + 4*(embedding+2*layer+norm))); used[true] != want {
		t.Errorf("four sharded gradients have %d bytes, want %d", used[true], want)
	}
}
