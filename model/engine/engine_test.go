package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vocab = 61

func tiny(t testing.TB, workers int) *model.Policy {
	t.Helper()
	p, err := model.New(model.Config{
		ModelType: "qwen2", VocabSize: vocab, Hidden: 32, Intermediate: 48, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8,
		MaxPositions: 160, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, InitStd: 0.3, BOS: -1,
	}, 7, model.Options{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func start(t testing.TB, p *model.Policy, o Options) *Engine {
	t.Helper()
	if o.CacheBytes == 0 && p.Device() != torch.CPU {
		o.CacheBytes = 32 << 20 // a device's is cleared, and so takes memory at once
	}
	e, err := New(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func prompt(seed uint64, n int) []int32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := make([]int32, n)
	for i := range s {
		s[i] = rng.Int32N(vocab)
	}
	return s
}

func generate(t testing.TB, e *Engine, req gen.Request) gen.Completion {
	t.Helper()
	c, err := e.Generate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mixed is a set of requests that differ in everything: some share a prefix,
// some are long, each samples in its own way.
func mixed() []gen.Request {
	var reqs []gen.Request
	samplings := []gen.Sampling{{Temperature: 1}, {Temperature: 0.7, TopP: 0.9}, {}, {Temperature: 1.3, TopK: 5}, {Temperature: 1.5, MinP: 0.2}}
	for i := range 24 {
		tokens := prompt(uint64(i%5), 1+i*7%90)
		if i%3 == 0 {
			tokens = append(prompt(99, 70), tokens[:min(len(tokens), 20)]...)
		}
		reqs = append(reqs, gen.Request{
			ID: fmt.Sprint("t", i), Seed: 5, Tokens: tokens, MaxTokens: 3 + i*5%40, Sampling: samplings[i%5], StopTokens: []int32{3},
		})
	}
	return reqs
}

func concurrently(t *testing.T, e *Engine, reqs []gen.Request, order []int) []gen.Completion {
	t.Helper()
	out := make([]gen.Completion, len(reqs))
	var wait sync.WaitGroup
	for _, i := range order {
		wait.Go(func() {
			var err error
			if out[i], err = e.Generate(t.Context(), reqs[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	return out
}

func equal(a, b gen.Completion) bool {
	return slices.Equal(a.Tokens, b.Tokens) && slices.Equal(a.Logprobs, b.Logprobs) &&
		slices.Equal(a.SamplingLogprobs, b.SamplingLogprobs) && slices.Equal(a.Versions, b.Versions) && a.Finish == b.Finish
}

// The same request gives the same completion, to the bit, alone or in company,
// in whatever order, over any number of workers, sharing products or not, with memory
// to spare or so little that sequences are evicted in the middle.
func TestCompletionsDoNotDependOnCompany(t *testing.T) {
	reqs := mixed()
	alone := start(t, tiny(t, 1), Options{})
	var want []gen.Completion
	for _, r := range reqs {
		want = append(want, generate(t, alone, r))
		alone.Release(r.ID)
	}
	block := int64(2 * 2 * 2 * 8 * native.BlockTokens * 4) // bytes over both layers
	for name, o := range map[string]Options{
		"roomy":   {},
		"chunked": {ChunkTokens: 32, StepTokens: 32, MaxSequences: 5},
		"cramped": {CacheBytes: 8 * block},
		"shared":  {},
	} {
		e := start(t, tiny(t, 3), o)
		if name == "shared" {
			e.weightBytes = togetherBytes
		}
		for round := range 3 {
			order := rand.New(rand.NewPCG(uint64(round), 1)).Perm(len(reqs))
			for i, c := range concurrently(t, e, reqs, order) {
				if !equal(c, want[i]) {
					t.Fatalf("%s, round %d, request %d:\n%+v\nalone it was\n%+v", name, round, i, c, want[i])
				}
			}
			if round == 1 {
				for _, r := range reqs {
					e.Release(r.ID)
				}
			}
		}
		if st := e.Stats(); name == "cramped" && st.Preempted == 0 {
			t.Errorf("nothing was preempted: %+v", st)
		} else if st.Reused == 0 {
			t.Errorf("nothing was reused: %+v", st)
		} else if shared := name == "shared"; shared != (st.Together > 0) || st.Together == st.Steps {
			t.Errorf("%s: workers shared the products of %d steps of %d", name, st.Together, st.Steps)
		}
	}
}

func TestTurnsFeedOnlyWhatIsNew(t *testing.T) {
	p := tiny(t, 1)
	e, fresh := start(t, p, Options{}), start(t, p, Options{})
	history := prompt(1, 50)
	for turn := range 3 {
		before := e.Stats()
		req := gen.Request{ID: "a", Seed: 9, Tokens: history, MaxTokens: 10, Sampling: gen.Sampling{Temperature: 1}}
		c := generate(t, e, req)
		if want := generate(t, fresh, req); !equal(c, want) {
			t.Fatalf("turn %d with its cache kept: %+v; without: %+v", turn, c, want)
		}
		fresh.Release("a")
		after := e.Stats()
		if turn > 0 && after.Prefilled-before.Prefilled != 1+4 {
			t.Errorf("turn %d prefilled %d tokens, want the last sampled one and 4 new", turn, after.Prefilled-before.Prefilled)
		}
		history = slices.Concat(history, c.Tokens, prompt(uint64(turn), 4))
	}
}

// sliding is a policy whose layers all see 20 tokens.
func sliding(t testing.TB, workers int) *model.Policy {
	t.Helper()
	p, err := model.New(model.Config{
		ModelType: "mistral", VocabSize: vocab, Hidden: 32, Intermediate: 48, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8,
		MaxPositions: 1200, NormEps: 1e-6, RopeTheta: 10000, InitStd: 0.3, Window: 20, Sliding: []bool{true, true}, BOS: -1,
	}, 7, model.Options{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Where all layers slide, sequences of 900 tokens generate in a cache of 16 blocks
// of 32, and score as training scores them.
func TestSlidingWindowsNeedNoMoreMemory(t *testing.T) {
	p := sliding(t, 2)
	block := int64(2 * 2 * 2 * 8 * native.BlockTokens * 4)
	e, roomy := start(t, p, Options{CacheBytes: 16 * block, ChunkTokens: 64, StepTokens: 64}), start(t, p, Options{})
	var reqs []gen.Request
	for i := range 3 {
		reqs = append(reqs, gen.Request{ID: fmt.Sprint(i), Tokens: prompt(uint64(i), 850), MaxTokens: 50, Sampling: gen.Sampling{Temperature: 1}})
	}
	for i, c := range concurrently(t, e, reqs, []int{0, 1, 2}) {
		if want := generate(t, roomy, reqs[i]); !equal(c, want) {
			t.Fatalf("request %d in little memory: %+v\nwith room: %+v", i, c, want)
		}
		for j, lp := range rescore(t, p, reqs[i], c) {
			if float64(c.Logprobs[j]) != lp {
				t.Fatalf("request %d, token %d: sampled at %v, recomputed %v", i, j, c.Logprobs[j], lp)
			}
		}
	}
}

// Alternatives are the best tokens in each place, as scoring ranks them.
func TestAlternatives(t *testing.T) {
	p := tiny(t, 2)
	e := start(t, p, Options{})
	req := gen.Request{ID: "a", Tokens: prompt(1, 9), MaxTokens: 6, Sampling: gen.Sampling{Temperature: 1}, Alternatives: 4}
	c := generate(t, e, req)
	for j := range c.Tokens {
		before := slices.Concat(req.Tokens, c.Tokens[:j])
		all := make([]float64, vocab)
		for id := range all {
			lp := rescore(t, p, gen.Request{Tokens: before}, gen.Completion{Tokens: []int32{int32(id)}})
			all[id] = lp[0]
		}
		if len(c.Alternatives[j]) != 4 {
			t.Fatalf("token %d has the alternatives %v", j, c.Alternatives[j])
		}
		for rank, a := range c.Alternatives[j] {
			better := 0
			for _, lp := range all {
				if lp > all[a.Token] {
					better++
				}
			}
			if better != rank || math.Abs(float64(a.Logprob)-all[a.Token]) > 1e-6 {
				t.Errorf("token %d, alternative %d: %+v, of which %d are better and scoring says %v", j, rank, a, better, all[a.Token])
			}
		}
	}
	if generate(t, e, gen.Request{ID: "b", Tokens: prompt(1, 9), MaxTokens: 2}).Alternatives != nil {
		t.Error("alternatives that nobody asked for")
	}
}

func TestDivergedPolicyIsAnError(t *testing.T) {
	p := tiny(t, 1)
	e := start(t, p, Options{})
	torch.Data[float32](p.Parameters()[0].Tensor)[3] = float32(math.NaN())
	if err := p.Refresh(); err != nil {
		t.Fatal(err)
	}
	_, err := e.Generate(t.Context(), gen.Request{ID: "a", Tokens: []int32{1, 2}, MaxTokens: 3})
	if err == nil || !strings.Contains(err.Error(), "not finite") {
		t.Errorf("NaN weights: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	e := start(t, tiny(t, 1), Options{CacheBytes: 4 * 8 << 10}) // 4 blocks of 8 KiB over two layers
	good := gen.Request{ID: "a", Tokens: []int32{1}, MaxTokens: 1}
	for want, change := range map[string]func(*gen.Request){
		"no tokens":   func(r *gen.Request) { r.Tokens = nil },
		"MaxTokens":   func(r *gen.Request) { r.MaxTokens = 0 },
		"vocabulary":  func(r *gen.Request) { r.Tokens = []int32{vocab} },
		"temperature": func(r *gen.Request) { r.Sampling.Temperature = math.NaN() },
		"top-p":       func(r *gen.Request) { r.Sampling.TopP = 1.5 },
		"min-p":       func(r *gen.Request) { r.Sampling.MinP = -0.1 },
		"alternative": func(r *gen.Request) { r.Alternatives = -1 },
		"top-k":       func(r *gen.Request) { r.Sampling.TopK = -1 },
		"KV cache":    func(r *gen.Request) { r.Tokens = prompt(1, 150); r.MaxTokens = 10 },
	} {
		r := good
		change(&r)
		if _, err := e.Generate(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
	generate(t, e, good)
	if _, err := New(e.policy, Options{CacheBytes: 1}); err == nil {
		t.Error("an engine with a cache of one byte started")
	}
}

// TestTogether: requests that arrive together begin in the same step and go on side by
// side, as many steps as one of them takes alone, with the tokens that each gets alone.
func TestTogether(t *testing.T) {
	const n, size, new = 5, 32, 7
	reqs := make([]gen.Request, n)
	for i := range reqs {
		reqs[i] = gen.Request{ID: fmt.Sprint(i), Seed: 2, Tokens: prompt(uint64(i), size), MaxTokens: new, Sampling: gen.Sampling{Temperature: 1}}
	}
	alone, e := start(t, tiny(t, 1), Options{}), start(t, tiny(t, 1), Options{})
	got, err := e.GenerateAll(t.Context(), reqs)
	if err != nil {
		t.Fatal(err)
	}
	e.Close() // the last step is counted after its requests have ended
	s := e.Stats()
	if s.Steps != new || s.Prefilled != n*size || s.Decoded != n*(new-1) {
		t.Errorf("%d steps, %d tokens prefilled and %d decoded; want %d, %d and %d", s.Steps, s.Prefilled, s.Decoded, new, n*size, n*(new-1))
	}
	for i, req := range reqs {
		if want := generate(t, alone, req); !equal(got[i], want) {
			t.Errorf("request %d: %v, alone %v", i, got[i], want)
		}
	}
	reqs[3].MaxTokens = -1
	if _, err := e.GenerateAll(t.Context(), reqs); err == nil || !strings.Contains(err.Error(), `request "3"`) {
		t.Errorf("one bad request: %v", err)
	}
}
