package stats

import (
	"math"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 5e-4 }

// Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
func TestWilsonAgainstPublishedValues(t *testing.T) {
	for _, c := range []struct {
		k, n      int
		low, high float64
	}{{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061, 0.1718}, {29, 29, 0.8830, 1}} {
		i := Wilson(c.k, c.n)
		if !near(i.Low, c.low) || !near(i.High, c.high) || i.Low > i.Value || i.High < i.Value {
			t.Errorf("%d of %d: %+v, want [%g, %g]", c.k, c.n, i, c.low, c.high)
		}
	}
	if i := Wilson(0, 0); !math.IsNaN(i.Value) || i.Low != 0 || i.High != 1 {
		t.Errorf("of nothing: %+v", i)
	}
}

func TestPassKCountsSubsets(t *testing.T) {
	// Of the 10 pairs out of 5 attempts with 2 solved, 3 have no solved one.
	if got := PassK([]Task{{5, 2}}, 2); !near(got, 0.7) {
		t.Errorf("pass@2 of 2 in 5 is %g, want 0.7", got)
	}
	if got := PassK([]Task{{4, 1}, {4, 4}, {1, 0}}, 2); !near(got, 0.75) {
		t.Errorf("mean of 0.5 and 1 is %g", got)
	}
	if got := PassK([]Task{{3, 0}}, 3); got != 0 {
		t.Errorf("nothing solved: %g", got)
	}
	if got := PassK([]Task{{1, 1}}, 2); !math.IsNaN(got) {
		t.Errorf("too few attempts: %g", got)
	}
}

func TestPass1(t *testing.T) {
	single := Pass1([]Task{{1, 1}, {1, 0}, {1, 0}, {1, 0}}, 1)
	if single != Wilson(1, 4) {
		t.Errorf("one attempt each: %+v, want Wilson's", single)
	}
	// Attempts that always agree carry the information of one attempt a task.
	var agree []Task
	for i := range 40 {
		agree = append(agree, Task{8, 8 * (i % 2)})
	}
	i := Pass1(agree, 1)
	if w := Wilson(20, 40); i.Value != 0.5 || !(math.Abs(i.Low-w.Low) < 0.03 && math.Abs(i.High-w.High) < 0.03) {
		t.Errorf("%+v, want about %+v", i, w)
	}
	if i != Pass1(agree, 1) {
		t.Error("the same seed gives another interval")
	}
	// Tasks that are all alike: the attempts' own noise remains.
	even := Pass1([]Task{{8, 4}, {8, 4}}, 1)
	if w := Wilson(8, 16); even.Low != w.Low || even.High != w.High {
		t.Errorf("%+v, want %+v", even, w)
	}
}
