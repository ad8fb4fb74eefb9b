package plot

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"strconv"
	"sync"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// dense is how many pixels of a PNG a unit has.
const dense = 2

// PNG writes the chart as a picture, on light paper.
func (c *Chart) PNG(w io.Writer) error {
	r := &raster{img: image.NewRGBA(image.Rect(0, 0, Width*dense, int(math.Ceil(c.height()))*dense)), faces: map[float64]font.Face{}}
	draw.Draw(r.img, r.img.Bounds(), image.NewUniform(colour("paper", 255)), image.Point{}, draw.Src)
	var err error
	if r.font, err = parsed(); err != nil {
		return err
	}
	c.draw(r)
	if r.err != nil {
		return r.err
	}
	return png.Encode(w, r.img)
}

var parsed = sync.OnceValues(func() (*opentype.Font, error) { return opentype.Parse(goregular.TTF) })

func colour(role string, alpha uint8) color.NRGBA {
	v, _ := strconv.ParseUint(light[role][1:], 16, 32) // the constants above
	return color.NRGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), alpha}
}

type raster struct {
	img   *image.RGBA
	font  *opentype.Font
	faces map[float64]font.Face
	err   error
}

// fill fills a polygon.
func (r *raster) fill(c color.Color, p []point) {
	box := image.Rectangle{image.Pt(math.MaxInt32, math.MaxInt32), image.Pt(math.MinInt32, math.MinInt32)}
	for _, q := range p {
		box.Min.X, box.Min.Y = min(box.Min.X, int(q.x*dense)-1), min(box.Min.Y, int(q.y*dense)-1)
		box.Max.X, box.Max.Y = max(box.Max.X, int(q.x*dense)+2), max(box.Max.Y, int(q.y*dense)+2)
	}
	if box = box.Intersect(r.img.Bounds()); box.Empty() {
		return
	}
	z := vector.NewRasterizer(box.Dx(), box.Dy())
	for i, q := range p {
		x, y := float32(q.x*dense)-float32(box.Min.X), float32(q.y*dense)-float32(box.Min.Y)
		if i == 0 {
			z.MoveTo(x, y)
		} else {
			z.LineTo(x, y)
		}
	}
	z.ClosePath()
	z.Draw(r.img, box, image.NewUniform(c), image.Point{})
}

func circle(c point, radius float64) []point {
	p := make([]point, 20)
	for i := range p {
		a := 2 * math.Pi * float64(i) / float64(len(p))
		p[i] = point{c.x + radius*math.Cos(a), c.y + radius*math.Sin(a)}
	}
	return p
}

func (r *raster) line(s style, p []point) {
	if s.dash {
		for _, d := range dashes(p, 6, 4) {
			r.solid(s, d)
		}
		return
	}
	r.solid(s, p)
}

func (r *raster) solid(s style, p []point) {
	c := colour(s.role, 255)
	for i := 1; i < len(p); i++ {
		a, b := p[i-1], p[i]
		d := math.Hypot(b.x-a.x, b.y-a.y)
		if d == 0 {
			continue
		}
		nx, ny := -(b.y-a.y)/d*s.width/2, (b.x-a.x)/d*s.width/2
		r.fill(c, []point{{a.x + nx, a.y + ny}, {b.x + nx, b.y + ny}, {b.x - nx, b.y - ny}, {a.x - nx, a.y - ny}})
		if i > 1 && s.width > 1 {
			r.fill(c, circle(a, s.width/2))
		}
	}
}

// dashes cuts a line into pieces of on units with gaps of off.
func dashes(p []point, on, off float64) (l [][]point) {
	at := 0.0 // along the pattern
	var now []point
	for i := 1; i < len(p); i++ {
		a, b := p[i-1], p[i]
		d := math.Hypot(b.x-a.x, b.y-a.y)
		for done := 0.0; done < d; {
			left := on - at
			if at >= on {
				left = on + off - at
			}
			step := min(left, d-done)
			along := func(t float64) point { return point{a.x + (b.x-a.x)*t/d, a.y + (b.y-a.y)*t/d} }
			if at < on {
				if now == nil {
					now = append(now, along(done))
				}
				now = append(now, along(done+step))
			}
			done, at = done+step, at+step
			if at >= on && now != nil {
				l, now = append(l, now), nil
			}
			if at >= on+off-1e-9 {
				at = 0
			}
		}
	}
	if now != nil {
		l = append(l, now)
	}
	return l
}

func (r *raster) dots(s style, p []point, radius float64) {
	c := colour(s.role, 255)
	seen := make(map[point]bool, len(p))
	for _, q := range p {
		q = point{math.Round(q.x*2) / 2, math.Round(q.y*2) / 2}
		if !seen[q] {
			seen[q] = true
			r.fill(c, circle(q, radius))
		}
	}
}

func (r *raster) disc(s style, p point, radius float64, _ string) {
	r.fill(colour(s.role, 255), circle(p, radius))
}

func (r *raster) rect(s style, x, y, w, h float64, _ string) {
	alpha := uint8(255)
	if s.fade {
		alpha = 64
	}
	r.fill(colour(s.role, alpha), []point{{x, y}, {x + w, y}, {x + w, y + h}, {x, y + h}})
}

func (r *raster) text(s style, x, y, size float64, a anchor, t string) {
	f := r.faces[size]
	if f == nil {
		var err error
		if f, err = opentype.NewFace(r.font, &opentype.FaceOptions{Size: size * dense, DPI: 72, Hinting: font.HintingNone}); err != nil {
			r.err = err
			return
		}
		r.faces[size] = f
	}
	d := font.Drawer{Dst: r.img, Src: image.NewUniform(colour(s.role, 255)), Face: f}
	w := float64(d.MeasureString(t)) / 64
	d.Dot = fixed.Point26_6{X: fixed.Int26_6((x*dense - w*float64(a)/2) * 64), Y: fixed.Int26_6(y * dense * 64)}
	d.DrawString(t)
}
