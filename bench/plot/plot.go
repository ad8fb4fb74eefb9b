// Package plot draws the charts of reports, as SVG and as PNG, from one description. Colours are roles, which a page's style
// sheet fills in for light, dark and paper.
package plot

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Size of a chart in units; one is a pixel of SVG and two of PNG.
const (
	Width  = 720
	height = 360 // of charts whose height does not follow from their rows
)

// Kind of a series.
type Kind uint8

const (
	Line    Kind = iota // points joined, each marked
	Curve               // points joined, without marks
	Dots                // points, of which there may be many thousands
	Ceiling             // a limit that others cannot pass: dashed
	Stack               // horizontal bars, one after the other in each row; Y has the row
	Box                 // one box in each row: Boxes
)

// Series is one thing in a chart.
type Series struct {
	Name  string
	Kind  Kind
	X, Y  []float64
	Boxes []Values
	Role  int // of the colour; series of the same thing have the same in every chart
}

// Values are single values in a row of a chart with boxes.
type Values struct {
	Row    int
	Values []float64
}

// Tick is a labelled place of an axis.
type Tick struct {
	At   float64
	Text string
}

// Axis of a chart.
type Axis struct {
	Label    string
	Log      bool
	Min, Max float64 // both 0: as the data wants
	Zero     bool    // a linear axis begins at 0
	Ticks    []Tick  // where the axis has its own; otherwise round numbers
}

// Chart is one picture.
type Chart struct {
	Name   string // of files: letters, digits, dashes
	Title  string
	Note   string // a line below the title
	X, Y   Axis
	Rows   []string // names of rows, for Stack and Box; the Y axis is theirs then
	Series []Series
}

type point struct{ x, y float64 }

// style of a mark: a role of colour, and how it is drawn.
type style struct {
	role  string // "s0" to "s7", "ink", "muted", "grid"
	width float64
	dash  bool
	fade  bool
}

type anchor uint8

const (
	start anchor = iota
	middle
	end
)

// canvas is what charts are drawn on.
type canvas interface {
	line(s style, p []point)
	dots(s style, p []point, radius float64)
	disc(s style, p point, radius float64, tip string)
	rect(s style, x, y, w, h float64, tip string)
	text(s style, x, y, size float64, a anchor, t string)
}

// frame is the part of a chart inside its axes, and how values get there.
type frame struct {
	c          *Chart
	x0, x1     float64
	y0, y1     float64 // y0 is the lower edge
	xmin, xmax float64 // of the axes, as transformed
	ymin, ymax float64
}

const (
	fontSize = 12.0
	rowSize  = 26.0
	charSize = 0.55 // of the font's size, on average
)

func textWidth(s string, size float64) float64 { return float64(len([]rune(s))) * size * charSize }

func (c *Chart) legend() (rows [][]int) {
	x := 0.0
	for i := range c.Series {
		if c.Series[i].Name == "" || c.Series[i].Kind == Box {
			continue
		}
		w := textWidth(c.Series[i].Name, fontSize) + 40
		if len(rows) == 0 || x+w > Width-20 {
			rows, x = append(rows, nil), 0
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], i)
		x += w
	}
	return rows
}

// head is the height above the frame.
func (c *Chart) head() float64 {
	h := 34.0
	if c.Note != "" {
		h += 18
	}
	return h + 20*float64(len(c.legend())) + 14
}

func (c *Chart) height() float64 {
	if len(c.Rows) > 0 {
		return c.head() + rowSize*float64(len(c.Rows)) + 48
	}
	return height + c.head() - 60
}

// bounds of the data along an axis.
func (c *Chart) bounds(a *Axis, along func(*Series) []float64) (lo, hi float64) {
	if a.Min != a.Max {
		return a.value(a.Min), a.value(a.Max)
	}
	lo, hi = math.Inf(1), math.Inf(-1)
	take := func(v float64) {
		if !math.IsNaN(v) && !math.IsInf(v, 0) && !(a.Log && v <= 0) {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	for i := range c.Series {
		for _, v := range along(&c.Series[i]) {
			take(v)
		}
	}
	for _, t := range a.Ticks {
		take(t.At)
	}
	if lo > hi {
		lo, hi = 1, 10
	}
	if a.Log {
		lo, hi = math.Log10(lo), math.Log10(hi)
		if hi-lo < 0.3 {
			lo, hi = lo-0.15, hi+0.15
		}
		return lo - 0.02*(hi-lo), hi + 0.02*(hi-lo)
	}
	if a.Zero {
		lo = min(lo, 0)
	}
	if lo == hi {
		lo, hi = lo-1, hi+1
	}
	if a.Zero && lo == 0 {
		return 0, hi * 1.05
	}
	return lo - 0.04*(hi-lo), hi + 0.04*(hi-lo)
}

func (a *Axis) value(v float64) float64 {
	if a.Log {
		return math.Log10(v)
	}
	return v
}

func (f *frame) at(x, y float64) point {
	fx := (f.c.X.value(x) - f.xmin) / (f.xmax - f.xmin)
	fy := (f.c.Y.value(y) - f.ymin) / (f.ymax - f.ymin)
	return point{f.x0 + fx*(f.x1-f.x0), f.y0 - fy*(f.y0-f.y1)}
}

// ticks are round numbers along an axis from lo to hi, as transformed, about n of them.
func (a *Axis) ticks(lo, hi float64, n int) (l []Tick) {
	if a.Ticks != nil {
		return a.Ticks
	}
	if a.Log {
		for _, steps := range [][]float64{{1}, {1, 3}, {1, 2, 5}, {1, 1.5, 2, 3, 5, 7}} {
			l = l[:0]
			for e := math.Floor(lo); e <= hi; e++ {
				for _, m := range steps {
					if v := m * math.Pow(10, e); math.Log10(v) >= lo && math.Log10(v) <= hi {
						l = append(l, Tick{v, Number(v)})
					}
				}
			}
			if len(l) >= 4 {
				break
			}
		}
		for len(l) > 2*n {
			l = slices.DeleteFunc(l, func(t Tick) bool { return int(math.Round(math.Log10(t.At)))%2 != 0 })
			n *= 2
		}
		return l
	}
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if (hi-lo)/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	for k := math.Ceil(lo/step) + 0; k*step <= hi*(1+1e-12); k++ {
		l = append(l, Tick{k * step, Number(k*step + 0)}) // not -0
	}
	return l
}

// Number is a short form of a value: three digits and a power of a thousand.
func Number(v float64) string {
	a, unit := math.Abs(v), ""
	for _, u := range []struct {
		f float64
		s string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if a >= u.f*0.9995 {
			v, unit = v/u.f, " "+u.s
			break
		}
	}
	s := strconv.FormatFloat(v, 'g', 3, 64)
	if strings.Contains(s, "e") {
		if a < 1e-9 {
			return "0"
		}
		s = strconv.FormatFloat(v, 'g', 2, 64)
		return s
	}
	return s + unit
}

func role(i int) string { return "s" + strconv.Itoa(i%8) }

var (
	ink   = style{role: "ink"}
	muted = style{role: "muted"}
	grid  = style{role: "grid", width: 1}
)

// draw draws the chart.
func (c *Chart) draw(to canvas) {
	f := &frame{c: c, x1: Width - 20, y1: c.head(), y0: c.height() - 42}
	to.text(ink, 16, 24, 15, start, c.Title)
	y := 34.0
	if c.Note != "" {
		to.text(muted, 16, 42, fontSize, start, c.Note)
		y += 18
	}
	for _, row := range c.legend() {
		x := 16.0
		for _, i := range row {
			s := &c.Series[i]
			st := style{role: role(s.Role), width: 2}
			switch s.Kind {
			case Ceiling:
				st.dash = true
				to.line(st, []point{{x, y + 9}, {x + 18, y + 9}})
			case Stack:
				to.rect(st, x+3, y+4, 11, 11, "")
			case Dots:
				to.disc(st, point{x + 9, y + 9}, 3, "")
			default:
				to.line(st, []point{{x, y + 9}, {x + 18, y + 9}})
			}
			to.text(ink, x+24, y+13, fontSize, start, s.Name)
			x += textWidth(s.Name, fontSize) + 40
		}
		y += 20
	}
	f.xmin, f.xmax = c.bounds(&c.X, (*Series).across)
	if len(c.Rows) > 0 {
		c.drawRows(to, f)
		return
	}
	f.ymin, f.ymax = c.bounds(&c.Y, func(s *Series) []float64 { return s.Y })
	yt := c.Y.ticks(f.ymin, f.ymax, 6)
	f.x0 = 16
	for _, t := range yt {
		f.x0 = max(f.x0, 24+textWidth(t.Text, fontSize))
	}
	if c.Y.Label != "" {
		to.text(muted, 16, f.y1-6+4, 11, start, c.Y.Label)
		f.y1 += 12
	}
	for _, t := range yt {
		p := f.at(c.X.back(f.xmin), t.At)
		to.line(grid, []point{{f.x0, p.y}, {f.x1, p.y}})
		to.text(muted, f.x0-8, p.y+4, fontSize, end, t.Text)
	}
	c.drawX(to, f)
	for i := range c.Series {
		c.Series[i].draw(to, f)
	}
}

func (a *Axis) back(v float64) float64 {
	if a.Log {
		return math.Pow(10, v)
	}
	return v
}

// across is what a series takes along the X axis.
func (s *Series) across() []float64 {
	switch s.Kind {
	case Box:
		var l []float64
		for _, b := range s.Boxes {
			l = append(l, b.Values...)
		}
		return l
	}
	return s.X
}

func (c *Chart) drawX(to canvas, f *frame) {
	last := math.Inf(-1)
	for _, t := range c.X.ticks(f.xmin, f.xmax, 8) {
		p := f.at(t.At, c.Y.back(f.ymin))
		if p.x < f.x0-1 || p.x > f.x1+1 {
			continue
		}
		to.line(grid, []point{{p.x, f.y0}, {p.x, f.y1}})
		if w := textWidth(t.Text, fontSize); p.x-w/2 > last+4 {
			to.text(muted, p.x, f.y0+18, fontSize, middle, t.Text)
			last = p.x + w/2
		}
	}
	to.text(muted, f.x1, f.y0+36, 11, end, c.X.Label)
}

func (s *Series) draw(to canvas, f *frame) {
	st := style{role: role(s.Role), width: 2}
	var p []point
	var at []int
	for i := range s.X {
		q := f.at(s.X[i], s.Y[i])
		if math.IsNaN(q.x+q.y) || math.IsInf(q.x+q.y, 0) {
			continue
		}
		p, at = append(p, q), append(at, i)
	}
	switch s.Kind {
	case Dots:
		to.dots(st, p, 2)
	case Ceiling:
		st.dash, st.width = true, 1.5
		to.line(st, p)
	case Curve:
		to.line(st, p)
	case Line:
		to.line(st, p)
		for k, q := range p {
			to.disc(st, q, 3.5, fmt.Sprintf("%s: %s at %s", s.Name, Number(s.Y[at[k]]), Number(s.X[at[k]])))
		}
	}
}

// drawRows draws a chart whose Y axis are named rows.
func (c *Chart) drawRows(to canvas, f *frame) {
	f.x0 = 16
	for _, r := range c.Rows {
		f.x0 = max(f.x0, min(24+textWidth(r, fontSize), Width/2))
	}
	f.ymin, f.ymax = 0, 1
	c.drawX(to, f)
	for i, r := range c.Rows {
		to.text(ink, f.x0-8, f.rowY(i)+rowSize/2+4, fontSize, end, r)
	}
	sum := make([]float64, len(c.Rows))
	for i := range c.Series {
		s := &c.Series[i]
		st := style{role: role(s.Role), width: 1.5}
		switch s.Kind {
		case Stack:
			for k, row := range s.Y {
				r := int(row)
				from := f.at(sum[r], 0).x
				// s.X is where the bar ends, so that the axis knows its bounds.
				to.rect(st, from, f.rowY(r)+4, max(f.at(s.X[k], 0).x-from, 0), rowSize-8,
					fmt.Sprintf("%s, %s: %s", c.Rows[r], s.Name, Number(s.X[k]-sum[r])))
				sum[r] = s.X[k]
			}
		case Box:
			for _, b := range s.Boxes {
				f.box(to, st, b)
			}
		}
	}
}

func (f *frame) rowY(i int) float64 { return f.y1 + rowSize*float64(i) }

// box draws quartiles, median and whiskers to the last values within 1.5 times the quartiles' distance (Tukey), and
// every single value.
func (f *frame) box(to canvas, st style, b Values) {
	v := slices.Clone(b.Values)
	slices.Sort(v)
	if len(v) == 0 {
		return
	}
	q := func(p float64) float64 {
		x := p * float64(len(v)-1)
		i := min(int(x), len(v)-2)
		if i < 0 {
			return v[0]
		}
		return v[i] + (x-float64(i))*(v[i+1]-v[i])
	}
	q1, q2, q3 := q(0.25), q(0.5), q(0.75)
	lo, hi := q1, q3
	for _, x := range v {
		if x >= q1-1.5*(q3-q1) && x < lo {
			lo = x
		}
		if x <= q3+1.5*(q3-q1) && x > hi {
			hi = x
		}
	}
	y := f.rowY(b.Row) + rowSize/2
	x := func(v float64) float64 { return f.at(v, 0).x }
	to.line(st, []point{{x(lo), y}, {x(hi), y}})
	box := st
	box.fade = true
	to.rect(box, x(q1), y-7, max(x(q3)-x(q1), 1), 14, fmt.Sprintf("%s: median %s, quartiles %s and %s, %d values", f.c.Rows[b.Row],
		Number(q2), Number(q1), Number(q3), len(v)))
	thick := st
	thick.width = 2.5
	to.line(thick, []point{{x(q2), y - 7}, {x(q2), y + 7}})
	var p []point
	for i, w := range v {
		p = append(p, point{x(w), y + float64(i%3-1)*3})
	}
	to.dots(st, p, 1.6)
}
