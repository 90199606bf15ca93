package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// rescore is what training recomputes for a completion.
func rescore(t *testing.T, p *model.Policy, req gen.Request, c gen.Completion) []float64 {
	t.Helper()
	all := slices.Concat(req.Tokens, c.Tokens)
	lp, err := p.Logprobs(t.Context(), all, []int{0, len(all)})
	if err != nil {
		t.Fatal(err)
	}
	return lp[len(req.Tokens):]
}

func TestSampledLogprobsAreRecomputedExactly(t *testing.T) {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		// The shape of a real small policy, so that products take their usual paths.
		p, err := model.New(model.Config{
			ModelType: "llama", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 2, Heads: 6, KVHeads: 2, HeadDim: 32,
			MaxPositions: 512, NormEps: 1e-6, RopeTheta: 10000, InitStd: 0.1, BOS: -1,
		}, 3, model.Options{Workers: 2, DType: dtype})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		e := start(t, p, Options{ChunkTokens: 64})
		var reqs []gen.Request
		for i := range 17 {
			s := gen.Sampling{Temperature: 1}
			if i%2 == 1 {
				s = gen.Sampling{Temperature: 0.6, TopP: 0.95, TopK: 100}
			}
			reqs = append(reqs, gen.Request{ID: fmt.Sprint(i), Tokens: prompt(uint64(i), 1+i*13), MaxTokens: 40, Sampling: s})
		}
		for i, c := range concurrently(t, e, reqs, rand.New(rand.NewPCG(1, 1)).Perm(len(reqs))) {
			for j, lp := range rescore(t, p, reqs[i], c) {
				if float64(c.Logprobs[j]) != lp {
					t.Fatalf("%v: request %d, token %d: sampled at %v, recomputed %v", dtype, i, j, c.Logprobs[j], lp)
				}
				if i%2 == 0 && math.Abs(float64(c.SamplingLogprobs[j])-lp) > 1e-5 {
					t.Fatalf("%v: at temperature 1 the sampling logprob is %v, the policy's %v", dtype, c.SamplingLogprobs[j], lp)
				}
			}
		}
	}
}

// TestGreedyMatchesTransformers: prompts of the golden checkpoints (see
// scripts/reference/model.py) are continued as transformers continues them, the
// prompt in one piece or cut, beyond the window and beyond the context that the
// rotary embeddings were made for.
func TestGreedyMatchesTransformers(t *testing.T) {
	files, err := filepath.Glob("../testdata/*/golden.json")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d golden checkpoints, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var golden struct{ Greedy [][2][]int32 }
		if err := json.Unmarshal(data, &golden); err != nil || len(golden.Greedy) == 0 {
			t.Fatalf("%s: %d continuations, %v", file, len(golden.Greedy), err)
		}
		p, err := model.Load(filepath.Dir(file), model.Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, o := range []Options{{}, {ChunkTokens: 32, StepTokens: 32}} {
			e := start(t, p, o)
			for i, g := range golden.Greedy {
				got := generate(t, e, gen.Request{ID: fmt.Sprint(i), Tokens: g[0], MaxTokens: len(g[1])})
				if !slices.Equal(got.Tokens, g[1]) {
					t.Errorf("%s, prompt %d: continued with %v, transformers with %v", filepath.Dir(file), i, got.Tokens, g[1])
				}
			}
			e.Close()
		}
	}
}

// naive continues greedily by computing everything again for every token.
func naive(t *testing.T, p *model.Policy, tokens []int32, n int) (out []int32) {
	t.Helper()
	arena := torch.NewArena(torch.Activations, torch.Float32)
	defer arena.Free()
	shape := p.Attention(0)
	for range n {
		s := arena.Scope()
		positions := make([]int32, len(tokens))
		for i := range positions {
			positions[i] = int32(i)
		}
		hidden := model.Forward(p, s, tokens, positions, func(_ int, qkv, att *torch.Tensor) {
			q, k, v := model.SplitQKV(p, torch.Data[float32](qkv))
			native.AttentionForward(shape, q, k, v, []int32{0, int32(len(tokens))}, torch.Data[float32](att), nil)
		})
		logits := torch.Data[float32](model.Logits(p, s, nil, hidden))
		last := logits[(len(tokens)-1)*vocab:]
		next := int32(slices.Index(last, slices.Max(last)))
		tokens, out = append(slices.Clone(tokens), next), append(out, next)
		s.Close()
	}
	return out
}

func TestGreedyEqualsNaive(t *testing.T) {
	p := tiny(t, 2)
	e := start(t, p, Options{ChunkTokens: 32})
	for i := range 4 {
		tokens := prompt(uint64(i), 20+i*17)
		c := generate(t, e, gen.Request{ID: fmt.Sprint(i), Tokens: tokens, MaxTokens: 30})
		if want := naive(t, p, tokens, 30); !slices.Equal(c.Tokens, want) {
			t.Errorf("greedy continuation %v, naive %v", c.Tokens, want)
		}
		for j, s := range c.SamplingLogprobs {
			if s != 0 {
				t.Errorf("greedy token %d has sampling logprob %v, want 0", j, s)
			}
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

// letters decodes token 0 to "a", 1 to "b", … and 60 to half of a character.
type letters struct{}

func (letters) Decode(ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		if id == 60 {
			b.WriteByte("é"[0])
		} else {
			b.WriteByte(byte('A' + id))
		}
	}
	return b.String()
}

func TestStops(t *testing.T) {
	e := start(t, tiny(t, 1), Options{Decoder: letters{}})
	req := gen.Request{ID: "a", Seed: 1, Tokens: prompt(1, 5), MaxTokens: 100, Sampling: gen.Sampling{Temperature: 1}}
	full := generate(t, e, req)
	if len(full.Tokens) != 100 || full.Finish != gen.FinishLength {
		t.Fatalf("%d tokens, finish %q; want 100 and length", len(full.Tokens), full.Finish)
	}
	text := letters{}.Decode(full.Tokens)
	check := func(name string, req gen.Request, n int) {
		t.Helper()
		c := generate(t, e, req)
		if !slices.Equal(c.Tokens, full.Tokens[:n]) || c.Finish != gen.FinishStop {
			t.Errorf("%s: %d tokens, finish %q; want %d and stop", name, len(c.Tokens), c.Finish, n)
		}
	}
	first := func(id int32) int { return slices.Index(full.Tokens, id) + 1 }

	withToken := req
	withToken.StopTokens = []int32{full.Tokens[40], vocab - 1}
	check("stop token", withToken, min(first(full.Tokens[40]), first(vocab-1)+1000*b2i(first(vocab-1) == 0)))
	for _, at := range []struct{ from, to int }{{30, 31}, {30, 34}, {2, 40}, {0, 99}} {
		s := text[at.from:at.to]
		withString := req
		withString.StopStrings = []string{"never seen", s}
		check(fmt.Sprintf("stop string of %d tokens", len(s)), withString, strings.Index(text, s)+len(s))
	}

	noDecoder := start(t, tiny(t, 1), Options{})
	withString := req
	withString.StopStrings = []string{"x"}
	if _, err := noDecoder.Generate(t.Context(), withString); err == nil || !strings.Contains(err.Error(), "decoder") {
		t.Errorf("stop strings without a decoder: %v", err)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestContextWindow(t *testing.T) {
	e := start(t, tiny(t, 1), Options{})
	for _, c := range []struct{ prompt, max, want int }{{150, 100, 10}, {159, 100, 1}, {160, 100, 0}, {150, 10, 10}, {150, 9, 9}} {
		got := generate(t, e, gen.Request{ID: "a", Tokens: prompt(1, c.prompt), MaxTokens: c.max, Sampling: gen.Sampling{Temperature: 1}})
		if len(got.Tokens) != c.want || got.Finish != gen.FinishLength {
			t.Errorf("%d tokens asked after %d in a window of 160: %d, finish %q", c.max, c.prompt, len(got.Tokens), got.Finish)
		}
	}
}

func TestCancellation(t *testing.T) {
	e := start(t, tiny(t, 1), Options{Decoder: letters{}})
	req := gen.Request{ID: "a", Tokens: prompt(1, 5), MaxTokens: 150, Sampling: gen.Sampling{Temperature: 1}}
	full := generate(t, e, req)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := e.Generate(cancelled, req); err != nil || c.Finish != gen.FinishCancelled || len(c.Tokens) != 0 {
		t.Errorf("cancelled before it began: %+v, %v", c, err)
	}
	// A decoder that cancels in the middle stands for a caller who does.
	ctx, cancel := context.WithCancel(t.Context())
	at := 0
	stopping := start(t, tiny(t, 1), Options{Decoder: decoderFunc(func(ids []int32) string {
		if at++; at == 20 {
			cancel()
		}
		return letters{}.Decode(ids)
	})})
	withString := req
	withString.StopStrings = []string{"never seen"}
	c, err := stopping.Generate(ctx, withString)
	if err != nil || c.Finish != gen.FinishCancelled {
		t.Fatalf("cancelled in the middle: finish %q, %v", c.Finish, err)
	}
	if n := len(c.Tokens); n == 0 || n >= 150 || !slices.Equal(c.Tokens, full.Tokens[:n]) {
		t.Errorf("a cancelled completion has %d tokens that begin the whole one", len(c.Tokens))
	}
}

type decoderFunc func([]int32) string

func (f decoderFunc) Decode(ids []int32) string { return f(ids) }

func TestCloseEndsWaitingRequests(t *testing.T) {
	e := start(t, tiny(t, 2), Options{MaxSequences: 2})
	failures := make(chan error, 20)
	for i := range cap(failures) {
		go func() {
			_, err := e.Generate(context.Background(), gen.Request{ID: fmt.Sprint(i), Tokens: prompt(1, 5), MaxTokens: 155, Sampling: gen.Sampling{Temperature: 1}})
			failures <- err
		}()
	}
	for e.Stats().Steps < 3 {
		time.Sleep(time.Millisecond)
	}
	e.Close()
	closed := 0
	for range cap(failures) {
		if err := <-failures; errors.Is(err, ErrClosed) {
			closed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if closed == 0 {
		t.Error("no request was ended by Close")
	}
	e.Close()
	if _, err := e.Generate(t.Context(), gen.Request{ID: "a", Tokens: prompt(1, 5), MaxTokens: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	e.Release("a")
}

// The weights change in the middle of a completion: each token says under which
// version it was drawn, and those of the last version are scored by it exactly,
// which a stale cache would not be.
func TestUpdatesInBetween(t *testing.T) {
	p := tiny(t, 2)
	steps := make(chan struct{}, 3)
	count := 0
	e := start(t, p, Options{Decoder: decoderFunc(func([]int32) string {
		if count++; count%30 == 0 {
			select {
			case steps <- struct{}{}:
			default:
			}
		}
		return ""
	})})
	var wait sync.WaitGroup
	train := prompt(4, 60)
	wait.Go(func() {
		for range 3 {
			<-steps
			err := p.Accumulate(t.Context(), train, []int{0, len(train)}, func(lp, _ []float64) ([]float64, error) {
				return slices.Repeat([]float64{-1}, len(lp)), nil
			})
			if err == nil {
				_, err = p.Step(model.AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8}, 0)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	req := gen.Request{ID: "a", Tokens: prompt(1, 9), MaxTokens: 150, Sampling: gen.Sampling{Temperature: 1}, StopStrings: []string{"never seen"}}
	c := generate(t, e, req)
	wait.Wait()
	if !slices.IsSorted(c.Versions) || c.Versions[0] == c.Versions[len(c.Versions)-1] {
		t.Fatalf("versions %v: want them to ascend", c.Versions)
	}
	again := generate(t, e, gen.Request{ID: "a", Tokens: slices.Concat(req.Tokens, c.Tokens)[:100], MaxTokens: 20, Sampling: gen.Sampling{Temperature: 1}})
	all := slices.Concat(req.Tokens, c.Tokens)[:100]
	for j, lp := range rescore(t, p, gen.Request{Tokens: all}, again) {
		if float64(again.Logprobs[j]) != lp {
			t.Fatalf("after the updates, token %d: sampled at %v, recomputed %v", j, again.Logprobs[j], lp)
		}
	}
	last := rescore(t, p, req, c)
	for j, v := range c.Versions {
		if v == p.Version() && float64(c.Logprobs[j]) != last[j] {
			t.Fatalf("token %d of version %d: sampled at %v, recomputed %v", j, v, c.Logprobs[j], last[j])
		}
		if v != p.Version() && float64(c.Logprobs[j]) == last[j] {
			t.Fatalf("token %d of version %d has the logprob of version %d", j, v, p.Version())
		}
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

// With a bound on staleness, the cache of an episode outlives an update, and its
// tokens say so; past the bound it is computed again.
func TestStaleCachesAreTold(t *testing.T) {
	p := tiny(t, 2)
	e := start(t, p, Options{MaxStale: 1})
	history := prompt(1, 60)
	for _, want := range []struct {
		version, oldest int64
		prefilled       int
	}{{0, 0, 60}, {1, 0, 2}, {2, 2, 68}} {
		for p.Version() < want.version {
			train := prompt(4, 60)
			err := p.Accumulate(t.Context(), train, []int{0, len(train)}, func(lp, _ []float64) ([]float64, error) {
				return slices.Repeat([]float64{-1}, len(lp)), nil
			})
			if err == nil {
				_, err = p.Step(model.AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8}, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		before := e.Stats().Prefilled
		req := gen.Request{ID: "a", Tokens: history, MaxTokens: 3, Sampling: gen.Sampling{Temperature: 1}}
		c := generate(t, e, req)
		if n := e.Stats().Prefilled - before; n != want.prefilled {
			t.Errorf("version %d prefilled %d tokens, want %d", want.version, n, want.prefilled)
		}
		exact := rescore(t, p, req, c)
		for j := range c.Tokens {
			if c.Versions[j] != want.version || c.CacheVersions[j] != want.oldest {
				t.Errorf("token %d: version %d over a cache of %d, want %d and %d", j, c.Versions[j], c.CacheVersions[j], want.version, want.oldest)
			}
			if same := float64(c.Logprobs[j]) == exact[j]; same != (want.version == want.oldest) {
				t.Errorf("version %d, token %d: sampled at %v, scored at %v", want.version, j, c.Logprobs[j], exact[j])
			}
		}
		history = slices.Concat(history, c.Tokens, prompt(uint64(want.version), 1))
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
