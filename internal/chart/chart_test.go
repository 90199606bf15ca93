package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func render(t *testing.T, panels []Panel, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := SVG(&b, panels, o); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		if _, err := d.Token(); err == io.EOF {
			return b.String()
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		lo, hi float64
		want   []float64
	}{
		{0, 1, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{0, 100, []float64{0, 20, 40, 60, 80, 100}},
		{-3, 7, []float64{-2, 0, 2, 4, 6}},
		{0.11, 0.14, []float64{0.11, 0.12, 0.13, 0.14}},
	} {
		got := ticks(c.lo, c.hi, 5)
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-12 }) {
			t.Errorf("[%g, %g]: %v, want %v", c.lo, c.hi, got, c.want)
		}
	}
	for v, want := range map[float64]string{0: "0", 0.30000000000000004: "0.3", 25000: "25k", 3e6: "3M", -2: "-2", 5e-5: "5e-05"} {
		if got := number(v); got != want {
			t.Errorf("%g is written %s, want %s", v, got, want)
		}
	}
}

// A line from corner to corner of a fixed range lands on the corners of the frame.
func TestLineLandsOnTheFrame(t *testing.T) {
	svg := render(t, []Panel{{Title: "a<b", Min: 0, Max: 1, Series: []Series{{Name: "s", X: []float64{0, 10}, Y: []float64{0, 1}}}}}, Options{Columns: 1, Width: 400, Height: 200})
	if want := `d="M58 160L386 34"`; !strings.Contains(svg, want) {
		t.Errorf("no %s in\n%s", want, svg)
	}
	if !strings.Contains(svg, "a&lt;b") {
		t.Error("the title is not escaped")
	}
	if svg != render(t, []Panel{{Title: "a<b", Min: 0, Max: 1, Series: []Series{{Name: "s", X: []float64{0, 10}, Y: []float64{0, 1}}}}}, Options{Columns: 1, Width: 400, Height: 200}) {
		t.Error("two renderings differ")
	}
}

func TestGapsAndDegenerateData(t *testing.T) {
	nan := math.NaN()
	svg := render(t, []Panel{
		{Title: "gap", Series: []Series{{Name: "s", X: []float64{0, 1, 2, 3, 4}, Y: []float64{1, 2, nan, 2, 1}}, {Name: "t", X: []float64{0}, Y: []float64{5}}}},
		{Title: "constant", Series: []Series{{X: []float64{3}, Y: []float64{0}}}},
		{Title: "nothing", Series: []Series{{X: []float64{1}, Y: []float64{nan}}}},
		{Title: "band", Percent: true, Series: []Series{{X: []float64{1, 2}, Y: []float64{0.5, 0.6}, Low: []float64{0.4, 0.5}, High: []float64{0.6, 0.7}}}},
	}, Options{Title: "run"})
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Errorf("a number that is none:\n%s", svg)
	}
	if n := strings.Count(svg, `stroke="#0072b2" stroke-width="1.6"`); n != 4 {
		t.Errorf("%d stretches of line in the first colour, want 2 + 1 + 0 + 1", n)
	}
	if strings.Count(svg, "no data") != 1 || strings.Count(svg, "fill-opacity") != 1 || !strings.Contains(svg, "60%") {
		t.Errorf("missing parts:\n%s", svg)
	}
	if err := SVG(io.Discard, []Panel{{Series: []Series{{X: []float64{1}, Y: nil}}}}, Options{}); err == nil {
		t.Error("lengths that differ are accepted")
	}
}

// Equal ratios lie equally far apart on a logarithmic axis; what has no logarithm
// is left out.
func TestLogarithmicAxis(t *testing.T) {
	svg := render(t, []Panel{{Title: "p", LogX: true, Min: 0, Max: 1, Series: []Series{
		{Scattered: true, X: []float64{-1, 0, 0.1, 1, 10}, Y: []float64{0, 0, 0, 0, 0}}}}}, Options{Columns: 1, Width: 400, Height: 200})
	for _, want := range []string{"M58 160m", "M222 160m", "M386 160m"} { // the frame is from 58 to 386
		if strings.Count(svg, want) != 1 {
			t.Errorf("no mark at %s in\n%s", want, svg)
		}
	}
	if strings.Contains(svg, `stroke-width="1.6"`) || strings.Contains(svg, "NaN") {
		t.Errorf("scattered values are joined, or drawn where they are not:\n%s", svg)
	}
	for _, c := range []struct {
		lo, hi float64
		want   []float64
	}{
		{0.1, 10, []float64{0.1, 0.2, 0.5, 1, 2, 5, 10}},
		{1e-4, 1e4, []float64{1e-4, 1e-2, 1, 1e2, 1e4}},
		{0.9, 1.1, []float64{0.9, 0.95, 1, 1.05, 1.1}},
		{0.55, 1.8, []float64{0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8}},
	} {
		got := axis{min: c.lo, max: c.hi, log: true}.ticks(5)
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a/b-1) < 1e-9 }) {
			t.Errorf("[%g, %g]: %v, want %v", c.lo, c.hi, got, c.want)
		}
	}
}

// Values that are zero but for rounding lie on the zero of an axis that says so,
// and a mark shows around the one that a later series puts over it.
func TestNoiseAndHiddenMarks(t *testing.T) {
	svg := render(t, []Panel{{Title: "p", Series: []Series{
		{Scattered: true, X: []float64{1}, Y: []float64{-3e-17}}, {Scattered: true, X: []float64{1}, Y: []float64{2e-17}}}}},
		Options{Columns: 1, Width: 400, Height: 200})
	if n := strings.Count(svg, "M222 160m"); n != 2 || strings.Count(svg, ">0</text>") != 2 { // of both axes
		t.Errorf("%d marks at zero, or an axis without its zero, in\n%s", n, svg)
	}
	if strings.Count(svg, `stroke-width="1.4"`) != 1 {
		t.Errorf("no rim of 0.7 around the first mark alone in\n%s", svg)
	}
}

// Many names take lines of their own below the title, inside the panel, and push
// the frame down; no two series look alike.
func TestLegend(t *testing.T) {
	var all []Series
	for i := range 18 {
		all = append(all, Series{Name: strings.Repeat("n", 3+i), Scattered: true, X: []float64{1}, Y: []float64{1}})
	}
	svg := render(t, []Panel{{Title: "a title", Series: all}}, Options{Columns: 1, Width: 560, Height: 360})
	type place struct{ x, y float64 }
	var last place
	for _, s := range all {
		before, _, found := strings.Cut(svg, ">"+s.Name+"</text>")
		if !found {
			t.Fatalf("%s is not in the legend", s.Name)
		}
		var at place
		if _, err := fmt.Sscanf(before[strings.LastIndex(before, "<text"):], `<text x="%f" y="%f"`, &at.x, &at.y); err != nil {
			t.Fatal(err)
		}
		if at.y <= 20 || at.x+textWidth(s.Name) > 560 {
			t.Errorf("%s at %v is over the title or outside", s.Name, at)
		}
		if at.y == last.y && at.x < last.x+textWidth(s.Name)-6.2 {
			t.Errorf("%s at %v is over the name before it at %v", s.Name, at, last)
		}
		last = at
	}
	if want := fmt.Sprintf("M58 %gV320", last.y+14); !strings.Contains(svg, want) {
		t.Errorf("the frame does not begin below the legend, at %s:\n%s", want, svg)
	}
	looks := map[style]bool{}
	for i := range all {
		looks[styleOf(i)] = true
	}
	if len(looks) != len(all) {
		t.Errorf("%d series have %d looks", len(all), len(looks))
	}
}
