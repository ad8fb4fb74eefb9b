package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image/png"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

func charts() []*Chart {
	var many Series
	many = Series{Name: "trials", Kind: Dots, Role: 3}
	for i := range 10_000 {
		many.X, many.Y = append(many.X, float64(i)*1e3), append(many.Y, float64(i%97)/100)
	}
	return []*Chart{
		{Name: "lines", Title: "Rate & size <all>", Note: "a note", X: Axis{Label: "frame size, bytes", Log: true}, Y: Axis{Label: "frames/s", Zero: true}, Series: []Series{
			{Name: "line rate", Kind: Ceiling, X: []float64{64, 512, 1518}, Y: []float64{14.88e6, 2.35e6, 812e3}, Role: 7},
			{Name: "millrace", X: []float64{64, 512, 1518}, Y: []float64{9e6, 2.3e6, 812e3}},
			{Name: "kernel", X: []float64{64, 512, 1518}, Y: []float64{1e6, math.NaN(), 800e3}, Role: 1}}},
		{Name: "dots", Title: "Loss", X: Axis{Label: "offered"}, Y: Axis{Label: "loss"}, Series: []Series{many}},
		{Name: "stack", Title: "Clocks", X: Axis{Label: "clocks", Zero: true}, Rows: []string{"ipv4/64B/hot", "ipv6/64B/hot"}, Series: []Series{
			{Name: "check", Kind: Stack, X: []float64{10, 12}, Y: []float64{0, 1}}, {Name: "lookup", Kind: Stack, X: []float64{30, 40}, Y: []float64{0, 1}, Role: 1}}},
		{Name: "boxes", Title: "Runs", X: Axis{Label: "%"}, Rows: []string{"a", "b"}, Series: []Series{
			{Kind: Box, Boxes: []Values{{0, []float64{-1, 0, 1, 2, 9}}, {1, []float64{0}}}}}},
		{Name: "empty", Title: "Nothing", X: Axis{Log: true}, Y: Axis{}},
	}
}

// TestSVG: every chart is well-formed XML, in which everything is told and no number is none.
func TestSVG(t *testing.T) {
	for _, c := range charts() {
		for _, s := range []string{c.SVG(), c.SVGFile()} {
			d := xml.NewDecoder(strings.NewReader(s))
			n := 0
			for {
				tok, err := d.Token()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("%s: %v", c.Name, err)
				}
				if _, ok := tok.(xml.StartElement); ok {
					n++
				}
			}
			if strings.Contains(s, "NaN") || strings.Contains(s, "Inf") {
				t.Errorf("%s: a number is none", c.Name)
			}
			if c.Name == "dots" && (n > 60 || len(s) > 250_000) {
				t.Errorf("10,000 dots take %d elements and %d bytes", n, len(s))
			}
			for i := range c.Series {
				if !strings.Contains(s, c.Series[i].Name) {
					t.Errorf("%s: no word of %s", c.Name, c.Series[i].Name)
				}
			}
		}
	}
}

// TestPlaces: marks stand where the axes say.
func TestPlaces(t *testing.T) {
	c := charts()[0]
	f := &frame{c: c, x0: 100, x1: 700, y0: 300, y1: 50}
	f.xmin, f.xmax = c.bounds(&c.X, (*Series).across)
	f.ymin, f.ymax = c.bounds(&c.Y, func(s *Series) []float64 { return s.Y })
	a, b := f.at(64, 0), f.at(1518, 14.88e6)
	if a.x < 100 || a.x > 130 || a.y != 300 || b.x > 700 || b.x < 670 || b.y < 50 || b.y > 80 {
		t.Errorf("%v %v", a, b)
	}
	mid := f.at(math.Sqrt(64*1518), 0)
	if math.Abs(mid.x-400) > 1 {
		t.Errorf("the middle of a logarithmic axis is at %v", mid.x)
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		a      Axis
		lo, hi float64
		want   string
	}{
		{Axis{}, 0, 10, "0 2 4 6 8 10"},
		{Axis{}, 0, 15.6e6, "0 5 M 10 M 15 M"},
		{Axis{}, -3, 3, "-3 -2 -1 0 1 2 3"},
		{Axis{Log: true}, 0, 4, "1 10 100 1 k 10 k"},
		{Axis{Log: true}, math.Log10(60), math.Log10(1600), "100 200 500 1 k"},
	} {
		var l []string
		for _, k := range c.a.ticks(c.lo, c.hi, 6) {
			l = append(l, k.Text)
		}
		if got := strings.Join(l, " "); got != c.want {
			t.Errorf("%v to %v: %s, want %s", c.lo, c.hi, got, c.want)
		}
	}
}

// TestPNG: the picture has the colours of its series where they belong.
func TestPNG(t *testing.T) {
	for _, c := range charts() {
		var b bytes.Buffer
		if err := c.PNG(&b); err != nil {
			t.Fatal(err)
		}
		if dir := os.Getenv("PLOT_DIR"); dir != "" { // to look at
			if err := os.WriteFile(dir+"/"+c.Name+".png", b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		img, err := png.Decode(&b)
		if err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		box := img.Bounds()
		for y := range box.Dy() {
			for x := range box.Dx() {
				r, g, b, _ := img.At(x, y).RGBA()
				count[fmt.Sprintf("#%02x%02x%02x", r>>8, g>>8, b>>8)]++
			}
		}
		for i := range c.Series {
			if n := count[light[role(c.Series[i].Role)]]; n < 30 {
				t.Errorf("%s: %d pixels of %s", c.Name, n, c.Series[i].Name)
			}
		}
		if count[light["paper"]] < box.Dx()*box.Dy()/2 {
			t.Errorf("%s: little paper left", c.Name)
		}
	}
}

func TestDashes(t *testing.T) {
	sum := 0.0
	d := dashes([]point{{0, 0}, {55, 0}, {55, 45}}, 6, 4)
	for _, p := range d {
		for i := 1; i < len(p); i++ {
			sum += math.Hypot(p[i].x-p[i-1].x, p[i].y-p[i-1].y)
		}
	}
	if len(d) != 10 || math.Abs(sum-60) > 1e-6 || !slices.Equal(d[0], []point{{0, 0}, {6, 0}}) {
		t.Errorf("%d dashes, %v in all: %v", len(d), sum, d)
	}
}
