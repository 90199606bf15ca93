package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
)

// small is a policy of 2 million parameters.
var small = model.Config{
	ModelType: "qwen2", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 4, Heads: 6, KVHeads: 2, HeadDim: 32,
	MaxPositions: 2048, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// BenchmarkGenerate samples 64 tokens after a prompt of 128, each its own. The
// second figure leaves out what other processes took of the machine.
func BenchmarkGenerate(b *testing.B) {
	p, err := model.New(small, 1, model.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for _, batch := range []int{1, 32, 128} {
		b.Run(fmt.Sprint("batch", batch), func(b *testing.B) {
			e := start(b, p, Options{})
			n, began := 0, time.Duration(0)
			for b.Loop() {
				if n++; n == 1 {
					began = cpuTime(b)
				}
				var wait sync.WaitGroup
				for i := range batch {
					wait.Go(func() {
						req := gen.Request{ID: fmt.Sprint(i), Tokens: prompt(uint64(i), 128), MaxTokens: 64, Sampling: gen.Sampling{Temperature: 1}}
						generate(b, e, req)
						e.Release(req.ID)
					})
				}
				wait.Wait()
				p.SetVersion(p.Version() + 1) // forget the prompts
			}
			tokens := float64(64 * batch * n)
			b.ReportMetric(tokens/b.Elapsed().Seconds(), "tok/s")
			b.ReportMetric(tokens*float64(p.Workers().Size())/(cpuTime(b)-began).Seconds(), "tok/cpu-s")
		})
	}
}

// BenchmarkArrivals plays 64 episodes of three turns that arrive at random, a mean of
// 20 ms apart, in groups of eight that share a prompt of 128 tokens. Each turn samples
// 32 tokens and reads 24. The last figure is the time from a turn's request to its
// completion that 95% of them do not exceed.
func BenchmarkArrivals(b *testing.B) {
	p, err := model.New(small, 1, model.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	e := start(b, p, Options{})
	rng := rand.New(rand.NewPCG(1, 1))
	const episodes, turns, fresh, read = 64, 3, 32, 24
	var mu sync.Mutex
	var waits []time.Duration
	n, began := 0, time.Duration(0)
	for b.Loop() {
		if n++; n == 1 {
			began = cpuTime(b)
		}
		var wait sync.WaitGroup
		for i := range episodes {
			time.Sleep(time.Duration(rng.ExpFloat64() * float64(20*time.Millisecond)))
			wait.Go(func() {
				history := prompt(uint64(i/8), 128)
				id := fmt.Sprint(i)
				for range turns {
					asked := time.Now()
					c := generate(b, e, gen.Request{ID: id, Tokens: history, MaxTokens: fresh, Sampling: gen.Sampling{Temperature: 1}})
					mu.Lock()
					waits = append(waits, time.Since(asked))
					mu.Unlock()
					history = slices.Concat(history, c.Tokens, prompt(uint64(i), read))
				}
				e.Release(id)
			})
		}
		wait.Wait()
		p.SetVersion(p.Version() + 1) // forget the prompts
	}
	tokens := float64(episodes * turns * fresh * n)
	slices.Sort(waits)
	b.ReportMetric(tokens/b.Elapsed().Seconds(), "tok/s")
	b.ReportMetric(tokens*float64(p.Workers().Size())/(cpuTime(b)-began).Seconds(), "tok/cpu-s")
	b.ReportMetric(float64(waits[len(waits)*95/100].Milliseconds()), "ms/turn-p95")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
