package selfplay

import (
	"math"
	"strings"
	"testing"
)

func TestDrawsBelongToTheirLabels(t *testing.T) {
	if Draw(1, "a", 2).Uint64() != Draw(1, "a", 2).Uint64() {
		t.Error("the same labels draw differently")
	}
	seen := map[uint64]string{}
	for _, d := range []struct {
		name string
		x    uint64
	}{{"1 a 2", Draw(1, "a", 2).Uint64()}, {"1 a 3", Draw(1, "a", 3).Uint64()}, {"2 a 2", Draw(2, "a", 2).Uint64()}, {"1 a2", Draw(1, "a2").Uint64()}, {"12 a", Draw(12, "a").Uint64()}} {
		if other, ok := seen[d.x]; ok {
			t.Errorf("%s and %s draw alike", d.name, other)
		}
		seen[d.x] = d.name
	}
	count := map[Strategy]int{}
	for i := range 4000 {
		count[drawStrategy(Draw(1, i), map[Strategy]float64{Removal: 3, History: 1, Direct: 0}, func(Strategy) bool { return true })]++
	}
	// Binomial with n 4000 and p 3/4: standard deviation 27.
	if count[Direct] != 0 || count[Removal] < 2860 || count[Removal] > 3140 {
		t.Errorf("weights 3:1:0 drew %v of 4000", count)
	}
	if n := secondOrderGroups(0.25, 9); n != 3 {
		t.Errorf("a quarter beside 9 groups is %d, want 3", n)
	}
}

func TestGameOptionsCheck(t *testing.T) {
	fine := GameOptions{InjectorGroups: 1, InjectorsPerPrompt: 1, SolversPerBug: 1}
	if err := fine.Check(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*GameOptions){
		`no mode is called "solo"`:   func(o *GameOptions) { o.Mode = "solo" },
		`no signal is called "luck"`: func(o *GameOptions) { o.Signal = "luck" },
		"alpha is -1":                func(o *GameOptions) { o.Alpha = -1 },
		"alpha is NaN":               func(o *GameOptions) { o.Alpha = math.NaN() },
		`strategy "luck"`:            func(o *GameOptions) { o.Strategies = map[Strategy]float64{"luck": 1} },
		"weight NaN":                 func(o *GameOptions) { o.Strategies = map[Strategy]float64{Direct: math.NaN()} },
		"all weights":                func(o *GameOptions) { o.Strategies = map[Strategy]float64{Direct: 0} },
		"0 injector groups":          func(o *GameOptions) { o.InjectorGroups = 0 },
		"0 solvers":                  func(o *GameOptions) { o.SolversPerBug = 0 },
		"resample is 1":              func(o *GameOptions) { o.Resample = 1 },
		"second-order fraction 1":    func(o *GameOptions) { o.SecondOrderFraction = 1 },
		"second-order fraction NaN":  func(o *GameOptions) { o.SecondOrderFraction = math.NaN() },
	} {
		o := fine
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}
