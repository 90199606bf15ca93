package engine

import (
	"slices"
	"sync"
	"testing"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
)

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
