// Package chart draws line charts as SVG: a grid of panels, each with axes,
// a legend and optional bands. The same input gives the same bytes.
package chart

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"math"
	"strconv"
	"strings"
)

// Series is one line. A NaN or infinite Y interrupts it.
type Series struct {
	Name string
	X, Y []float64
	// Low and High bound a band around the line, for instance an interval of
	// confidence; both nil for none.
	Low, High []float64
	// Points marks every value, as evaluations far apart want; a series of one
	// value is always marked. Scattered marks them and joins none.
	Points, Scattered bool
}

// Panel is one chart.
type Panel struct {
	Title  string
	XLabel string
	Series []Series
	// Min and Max fix the range of Y where Max > Min; otherwise it follows the data.
	Min, Max float64
	// Percent writes Y as a percentage: 0.5 is 50%.
	Percent bool
	// LogX spaces X by its logarithm; what is not positive is not drawn.
	LogX bool
}

// Options shape the picture.
type Options struct {
	Title string
	// Columns of panels; 0 means 2, or 1 for a single panel.
	Columns int
	// Width and Height of a panel in pixels; 0 means 460 and 260.
	Width, Height int
}

// colours are Okabe and Ito's, which readers with colour blindness can tell apart.
// Where they are used up, they come again with other dashes and marks.
var (
	colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}
	dashes  = []string{"", ` stroke-dasharray="6 3"`, ` stroke-dasharray="2 2"`}
	marks   = []string{"M%s %sm-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z", "M%s %sm-2.4-2.4h4.8v4.8h-4.8z", "M%s %sm0-3.4l3.4 3.4l-3.4 3.4l-3.4-3.4z"}
)

// style is how the series at that place looks.
type style struct{ colour, dash, mark string }

func styleOf(i int) style {
	round := i / len(colours) % len(dashes)
	return style{colours[i%len(colours)], dashes[round], marks[round]}
}

// point draws a mark, with a rim so many pixels wide.
func (s style) point(b *bufio.Writer, x, y, rim float64) {
	fmt.Fprintf(b, `<path d="`+s.mark+`" fill="%[3]s"`, px(x), px(y), s.colour)
	if rim > 0 {
		fmt.Fprintf(b, ` stroke="%s" stroke-width="%s"`, s.colour, px(2*rim))
	}
	b.WriteString("/>\n")
}

const (
	left, right, top, bottom = 58, 14, 34, 40
	heading                  = 40
	legendLine               = 16 // the height of a line of the legend

	rimStep, rimMost = 0.7, 3.5 // of marks that others hide
	// noise is what values stay below that are nothing but the rounding of zero, as
	// the loss of a batch whose advantages add up to it.
	noise = 1e-12
)

// SVG writes a picture of panels, row by row. Panels without a drawable value
// say so.
func SVG(w io.Writer, panels []Panel, o Options) error {
	if o.Columns <= 0 {
		o.Columns = 2
	}
	o.Columns = max(1, min(o.Columns, len(panels)))
	if o.Width <= 0 {
		o.Width = 460
	}
	if o.Height <= 0 {
		o.Height = 260
	}
	for _, p := range panels {
		for _, s := range p.Series {
			if len(s.X) != len(s.Y) || s.Low != nil && len(s.Low) != len(s.X) || len(s.Low) != len(s.High) {
				return fmt.Errorf("chart: series %q of %q: lengths differ", s.Name, p.Title)
			}
		}
	}
	offset := 0
	if o.Title != "" {
		offset = heading
	}
	rows := (len(panels) + o.Columns - 1) / o.Columns
	width, height := o.Columns*o.Width, offset+rows*o.Height
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="11" fill="#333">`+"\n", width, height, width, height)
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	if o.Title != "" {
		fmt.Fprintf(b, `<text x="%d" y="26" text-anchor="middle" font-size="16" font-weight="600">%s</text>`+"\n", width/2, html.EscapeString(o.Title))
	}
	for i, p := range panels {
		fmt.Fprintf(b, `<g transform="translate(%d %d)">`+"\n", i%o.Columns*o.Width, offset+i/o.Columns*o.Height)
		p.draw(b, o.Width, o.Height)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Flush()
}

// axis maps values, or their logarithms, to pixels.
type axis struct {
	min, max, from, to float64
	log                bool
}

func (a axis) at(v float64) float64 {
	if a.log {
		return a.from + math.Log(v/a.min)/math.Log(a.max/a.min)*(a.to-a.from)
	}
	return a.from + (v-a.min)/(a.max-a.min)*(a.to-a.from)
}

// ticks are some n round values of the axis.
func (a axis) ticks(n int) []float64 {
	if !a.log {
		return ticks(a.min, a.max, n)
	}
	digits := []float64{1, 2, 5}
	if math.Log10(a.max/a.min)*3 > 2*float64(n) {
		digits = digits[:1]
	}
	every := max(1, math.Ceil(math.Log10(a.max/a.min)/float64(n)))
	var out []float64
	for e := math.Floor(math.Log10(a.min)/every) * every; e <= math.Log10(a.max); e += every {
		for _, d := range digits {
			if v := d * math.Pow(10, e); v >= a.min && v <= a.max {
				out = append(out, v)
			}
		}
	}
	for m := n; len(out) < 3; m += n { // over so small a factor other round values lie evenly enough
		out = ticks(a.min, a.max, m)
	}
	return out
}

func (p Panel) draw(b *bufio.Writer, width, height int) {
	w, h := float64(width), float64(height)
	fmt.Fprintf(b, `<text x="%d" y="20" font-size="13" font-weight="600">%s</text>`+"\n", left, html.EscapeString(p.Title))
	top := top + p.legend(b, w)
	xs, ys := p.ranges()
	if xs.min > xs.max {
		fmt.Fprintf(b, `<text x="%s" y="%s" text-anchor="middle" fill="#888">no data</text>`+"\n", px(w/2), px(h/2))
		return
	}
	xs.from, xs.to = left, w-right
	ys.from, ys.to = h-bottom, float64(top)
	for _, t := range ys.ticks(5) {
		y := px(ys.at(t))
		fmt.Fprintf(b, `<path d="M%d %sH%s" stroke="#e4e4e4"/>`, left, y, px(w-right))
		fmt.Fprintf(b, `<text x="%d" y="%s" text-anchor="end" dy=".35em">%s</text>`+"\n", left-6, y, p.label(t))
	}
	for _, t := range xs.ticks(6) {
		x := px(xs.at(t))
		fmt.Fprintf(b, `<path d="M%s %sv4" stroke="#888"/>`, x, px(h-bottom))
		fmt.Fprintf(b, `<text x="%s" y="%s" text-anchor="middle">%s</text>`+"\n", x, px(h-bottom+16), number(t))
	}
	fmt.Fprintf(b, `<path d="M%d %dV%sH%s" fill="none" stroke="#888"/>`+"\n", left, top, px(h-bottom), px(w-right))
	if p.XLabel != "" {
		fmt.Fprintf(b, `<text x="%s" y="%s" text-anchor="middle" fill="#666">%s</text>`+"\n", px((left+w-right)/2), px(h-8), html.EscapeString(p.XLabel))
	}
	for i, s := range p.Series {
		rim := 0.0
		if s.Scattered { // what is hidden by a later series shows around it
			rim = math.Min(rimStep*float64(len(p.Series)-1-i), rimMost)
		}
		s.draw(b, xs, ys, styleOf(i), rim)
	}
}

// ranges are the spans of the finite data, widened where they are a point; min
// exceeds max when there is none.
func (p Panel) ranges() (x, y axis) {
	x, y = axis{min: math.Inf(1), max: math.Inf(-1), log: p.LogX}, axis{min: math.Inf(1), max: math.Inf(-1)}
	for _, s := range p.Series {
		for i := range s.X {
			if !x.has(s.X[i]) || !finite(s.Y[i]) {
				continue
			}
			x.include(s.X[i])
			y.include(s.Y[i])
			if s.Low != nil && finite(s.Low[i]) && finite(s.High[i]) {
				y.include(s.Low[i])
				y.include(s.High[i])
			}
		}
	}
	if x.min > x.max {
		return x, y
	}
	if x.min == x.max && x.log {
		x.min, x.max = x.min/2, x.max*2
	} else if x.min == x.max {
		x.min, x.max = x.min-1, x.max+1
	}
	switch {
	case p.Max > p.Min:
		y.min, y.max = p.Min, p.Max
	case math.Max(-y.min, y.max) < noise:
		y.min, y.max = 0, 1
	case y.min == y.max:
		d := math.Abs(y.min) * 0.1
		y.min, y.max = y.min-d, y.max+d
	default:
		d := (y.max - y.min) * 0.05
		if y.min < 0 || y.min-d >= 0 {
			y.min -= d
		} else {
			y.min = 0
		}
		y.max += d
	}
	return x, y
}

func (a *axis) include(v float64) { a.min, a.max = math.Min(a.min, v), math.Max(a.max, v) }

// has says whether a value can be drawn.
func (a axis) has(v float64) bool { return finite(v) && (!a.log || v > 0) }

func (s Series) draw(b *bufio.Writer, x, y axis, look style, rim float64) {
	clamp := func(v float64) float64 { return math.Max(y.min, math.Min(y.max, v)) }
	at := func(i int, v float64) string { return px(x.at(s.X[i])) + " " + px(y.at(clamp(v))) }
	for _, r := range s.runs(x) {
		if s.Low != nil {
			var d strings.Builder
			for i := r[0]; i < r[1]; i++ {
				d.WriteString("L" + at(i, s.High[i]))
			}
			for i := r[1] - 1; i >= r[0]; i-- {
				d.WriteString("L" + at(i, s.Low[i]))
			}
			fmt.Fprintf(b, `<path d="M%sZ" fill="%s" fill-opacity="0.15"/>`+"\n", d.String()[1:], look.colour)
		}
		var d strings.Builder
		for i := r[0]; i < r[1]; i++ {
			d.WriteString("L" + at(i, s.Y[i]))
			if s.Points || s.Scattered || r[1]-r[0] == 1 {
				look.point(b, x.at(s.X[i]), y.at(clamp(s.Y[i])), rim)
			}
		}
		if !s.Scattered {
			fmt.Fprintf(b, `<path d="M%s" fill="none" stroke="%s" stroke-width="1.6" stroke-linejoin="round"%s/>`+"\n", d.String()[1:], look.colour, look.dash)
		}
	}
}

// runs are the stretches [from, to) of drawable values.
func (s Series) runs(x axis) (out [][2]int) {
	from := -1
	for i := range len(s.X) + 1 {
		ok := i < len(s.X) && x.has(s.X[i]) && finite(s.Y[i]) && (s.Low == nil || finite(s.Low[i]) && finite(s.High[i]))
		if ok && from < 0 {
			from = i
		} else if !ok && from >= 0 {
			out = append(out, [2]int{from, i})
			from = -1
		}
	}
	return out
}

// legend names the series: at the right of the title's line where they fit beside
// it, and otherwise in lines of their own below, whose height it returns.
func (p Panel) legend(b *bufio.Writer, w float64) int {
	if len(p.Series) == 0 || len(p.Series) == 1 && p.Series[0].Name == "" {
		return 0
	}
	width := func(i int) float64 { return 24 + textWidth(p.Series[i].Name) + 10 }
	var total float64
	for i := range p.Series {
		total += width(i)
	}
	lines, x, y := 0, w-right-total+10, 20.0
	if x < left+1.25*textWidth(p.Title)+10 { // the title is set larger, in bold
		lines, x, y = 1, left, y+legendLine
	}
	for i, s := range p.Series {
		if lines > 0 && x > left && x+width(i) > w-right+10 {
			lines, x, y = lines+1, left, y+legendLine
		}
		look := styleOf(i)
		if s.Scattered {
			look.point(b, x+9, y-4, 0)
		} else {
			fmt.Fprintf(b, `<path d="M%s %sh18" stroke="%s" stroke-width="3"%s/>`, px(x), px(y-4), look.colour, look.dash)
		}
		fmt.Fprintf(b, `<text x="%s" y="%s">%s</text>`+"\n", px(x+24), px(y), html.EscapeString(s.Name))
		x += width(i)
	}
	return lines * legendLine
}

// textWidth is about what a text of the common size takes.
func textWidth(text string) float64 { return 6.2 * float64(len([]rune(text))) }

func (p Panel) label(v float64) string {
	if p.Percent {
		return number(v*100) + "%"
	}
	return number(v)
}

// ticks are about n round values within [lo, hi]: steps of 1, 2 or 5 times a power of ten.
func ticks(lo, hi float64, n int) []float64 {
	raw := (hi - lo) / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := 10 * unit
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= raw*0.999 {
			step = m * unit
			break
		}
	}
	var out []float64
	for k := math.Ceil(lo/step - 1e-9); k*step <= hi+step*1e-9; k++ {
		out = append(out, k*step)
	}
	return out
}

// number writes a tick's value: short, without the noise of its last bits.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case a < noise:
		return "0"
	case a >= 1e6:
		return trim(v/1e6) + "M"
	case a >= 1e4:
		return trim(v/1e3) + "k"
	case a < 1e-3:
		return strconv.FormatFloat(v, 'e', 0, 64)
	}
	return trim(v)
}

func trim(v float64) string { return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64) }

func px(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
