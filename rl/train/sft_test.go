package train

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

// successors are examples in which each token follows its predecessor; one
// token in each does not, but is not trained on.
func successors() []Example {
	var es []Example
	for k := range 20 {
		e := Example{}
		for i := range 5 {
			e.Tokens = append(e.Tokens, int32((k+i)%vocabulary))
			e.Trained = append(e.Trained, true)
		}
		e.Tokens[4], e.Trained[4] = e.Tokens[3], false
		es = append(es, e)
	}
	return es
}

func sftSettings() SFTSettings {
	s := DefaultSFTSettings()
	s.Epochs, s.BatchSize, s.TokenBudget = 30, 8, 12
	s.Optimizer.LR, s.Optimizer.WeightDecay = 0.3, 0
	return s
}

func TestSFT(t *testing.T) {
	var losses, rates []float64
	p := &table{}
	sum, err := SFT(context.Background(), SFTOptions{SFTSettings: sftSettings(), Dir: t.TempDir(), Seed: 1, OnEvent: func(e Event) {
		if e.Metrics != nil {
			losses, rates = append(losses, *e.Metrics.Loss), append(rates, e.Metrics.LR)
		}
	}}, p, successors())
	if err != nil {
		t.Fatal(err)
	}
	// The uniform table's cross-entropy is ln 6.
	if math.Abs(losses[0]-math.Log(6)) > 1e-12 || losses[len(losses)-1] > 0.02 {
		t.Errorf("the loss went from %g to %g", losses[0], losses[len(losses)-1])
	}
	if sum.Steps != 90 || len(losses) != 90 || p.N != 90 {
		t.Errorf("%d updates, summary %+v", len(losses), sum)
	}
	if math.Abs(rates[0]-0.03) > 1e-12 || slices.Max(rates) != 0.3 || rates[89] > 0.031 {
		t.Errorf("rates %g … %g", rates[0], rates[89])
	}
	for v := range int32(vocabulary) {
		if q := p.probs(v); q[(v+1)%vocabulary] < 0.95 {
			t.Errorf("after %d its successor has probability %g", v, q[(v+1)%vocabulary])
		}
	}
}

// TestSFTResumes interrupts at every third update.
func TestSFTResumes(t *testing.T) {
	s := sftSettings()
	s.Epochs, s.CheckpointEvery = 4, 2
	calm, dir := t.TempDir(), t.TempDir()
	if _, err := SFT(context.Background(), SFTOptions{SFTSettings: s, Dir: calm, Seed: 1}, &table{}, successors()); err != nil {
		t.Fatal(err)
	}
	stops := 0
	for {
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		_, err := SFT(ctx, SFTOptions{SFTSettings: s, Dir: dir, Seed: 1, Resume: stops > 0, OnEvent: func(Event) {
			if n++; n == 3 {
				cancel()
			}
		}}, &table{}, successors())
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		stops++
	}
	if stops < 4 {
		t.Errorf("only %d interruptions", stops)
	}
	sameRuns(t, calm, dir)
}

// TestSFTKeepsEpochs interrupts in the third of four epochs, of three updates each,
// and goes on with a run that is complete.
func TestSFTKeepsEpochs(t *testing.T) {
	s := sftSettings()
	s.Epochs = 4
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := SFT(ctx, SFTOptions{SFTSettings: s, Dir: dir, Seed: 1, OnEvent: func(e Event) {
		if e.Step == 8 {
			cancel()
		}
	}}, &table{}, successors())
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, want := range [][]int{{7, 8, 9, 10, 11, 12}, nil} {
		var steps []int
		sum, err := SFT(t.Context(), SFTOptions{SFTSettings: s, Dir: dir, Seed: 1, Resume: true, OnEvent: func(e Event) {
			if e.Phase == PhaseStep {
				steps = append(steps, e.Step)
			}
		}}, &table{}, successors())
		if err != nil || sum.Steps != 12 || !slices.Equal(steps, want) {
			t.Errorf("%v, %+v, updates %v, want %v", err, sum, steps, want)
		}
	}
}

func TestSFTStopsAfterEpoch(t *testing.T) {
	var epochs []int
	p := &table{}
	sum, err := SFT(context.Background(), SFTOptions{SFTSettings: sftSettings(), Dir: t.TempDir(),
		AfterEpoch: func(_ context.Context, epoch int) (bool, error) {
			epochs = append(epochs, epoch)
			return epoch == 2, nil
		}}, p, successors())
	if err != nil || sum.Steps != 6 || !slices.Equal(epochs, []int{1, 2}) {
		t.Errorf("%v, %+v, epochs %v", err, sum, epochs)
	}
}

func TestSFTRefusals(t *testing.T) {
	one := Example{Tokens: []int32{1}, Trained: []bool{true, true}}
	for want, examples := range map[string][]Example{"no examples": nil, "example 0": {one}} {
		_, err := SFT(context.Background(), SFTOptions{SFTSettings: sftSettings(), Dir: t.TempDir()}, &table{}, examples)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
	s := sftSettings()
	s.BatchSize = 0
	if _, err := SFT(context.Background(), SFTOptions{SFTSettings: s, Dir: t.TempDir()}, &table{}, successors()); err == nil || !strings.Contains(err.Error(), "batch_size") {
		t.Errorf("error %v", err)
	}
	s.BatchSize, s.Schedule.Warmup = 5, 1000 // more than there are updates
	for epochs, want := range map[int]string{1: "", 0: "epochs is 0; it must be positive"} {
		s.Epochs = epochs
		if err := s.Check(); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%d epochs: %v, want %q", epochs, err, want)
		}
		if _, err := SFT(context.Background(), SFTOptions{SFTSettings: s, Dir: t.TempDir()}, &table{}, successors()); (err == nil) != (want == "") {
			t.Errorf("%d epochs: %v", epochs, err)
		}
	}
}
