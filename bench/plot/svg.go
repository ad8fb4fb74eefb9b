package plot

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Colours of the roles: light and dark. They differ in lightness too, for those who tell hues badly and for paper.
var (
	light = map[string]string{"s0": "#1f63b5", "s1": "#d9720a", "s2": "#2b8a57", "s3": "#a83279", "s4": "#6d5bc0", "s5": "#8a6d12", "s6": "#118a99", "s7": "#7a7f87",
		"ink": "#1d2126", "muted": "#626a73", "grid": "#e6e8eb", "paper": "#ffffff"}
	dark = map[string]string{"s0": "#6aa9f0", "s1": "#f0a04b", "s2": "#5cc08c", "s3": "#e07fb8", "s4": "#a898f0", "s5": "#cdb052", "s6": "#4fc3d0", "s7": "#9aa1aa",
		"ink": "#e4e7ea", "muted": "#98a1ab", "grid": "#2a2f36", "paper": "#15181c"}
)

var roles = []string{"ink", "muted", "grid", "paper", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"}

// Colours are CSS custom properties of the roles, such as --s0.
func Colours(night bool) string {
	from := light
	if night {
		from = dark
	}
	var b strings.Builder
	for _, r := range roles {
		fmt.Fprintf(&b, "--%s:%s;", r, from[r])
	}
	return b.String()
}

// Style is the style sheet that charts need, besides Colours.
func Style() string {
	var b strings.Builder
	b.WriteString(".plot{font-family:system-ui,sans-serif;display:block;width:100%;height:auto}.plot .l{fill:none;stroke-linejoin:round}.plot .d{fill:none;stroke-linecap:round}.plot .fade{fill-opacity:.25}")
	for _, r := range roles {
		fmt.Fprintf(&b, ".plot .%s{fill:var(--%s)}.plot .l.%s,.plot .d.%s{fill:none;stroke:var(--%s)}", r, r, r, r, r)
	}
	return b.String()
}

// SVG is the chart as an svg element for a page that has Style and Colours.
func (c *Chart) SVG() string { return c.svg("") }

// SVGFile is the chart as a file that stands alone, light or dark as the reader's screen.
func (c *Chart) SVGFile() string {
	return c.svg("<style>svg{"+Colours(false)+"}@media(prefers-color-scheme:dark){svg{"+Colours(true)+"}}"+Style()+"</style>"+
		`<rect class="paper" width="100%" height="100%"/>`) + "\n"
}

func (c *Chart) svg(head string) string {
	s := &svg{}
	h := c.height()
	fmt.Fprintf(&s.b, `<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 %d %s" role="img" aria-label="%s">%s`,
		Width, num(h), html.EscapeString(c.Title), head)
	c.draw(s)
	s.b.WriteString("</svg>")
	return s.b.String()
}

type svg struct{ b strings.Builder }

func num(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

func (s *svg) line(st style, p []point) {
	if len(p) == 0 {
		return
	}
	fmt.Fprintf(&s.b, `<path class="l %s" stroke-width="%s"`, st.role, num(st.width))
	if st.dash {
		s.b.WriteString(` stroke-dasharray="6 4"`)
	}
	s.b.WriteString(` d="`)
	for i, q := range p {
		s.b.WriteByte("LM"[b2i(i == 0)])
		s.b.WriteString(num(q.x) + " " + num(q.y))
	}
	s.b.WriteString(`"/>`)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// dots are one path of lines without length whose round caps show: the browser lays out one element, however many there are.
func (s *svg) dots(st style, p []point, radius float64) {
	fmt.Fprintf(&s.b, `<path class="d %s" stroke-width="%s" d="`, st.role, num(2*radius))
	seen := make(map[point]bool, len(p))
	for _, q := range p {
		q = point{math.Round(q.x*2) / 2, math.Round(q.y*2) / 2}
		if !seen[q] {
			seen[q] = true
			s.b.WriteString("M" + num(q.x) + " " + num(q.y) + "h0")
		}
	}
	s.b.WriteString(`"/>`)
}

func (s *svg) tip(element, t string) {
	if t == "" {
		s.b.WriteString("/>")
		return
	}
	fmt.Fprintf(&s.b, `><title>%s</title></%s>`, html.EscapeString(t), element)
}

func (s *svg) disc(st style, p point, radius float64, tip string) {
	fmt.Fprintf(&s.b, `<circle class="%s" cx="%s" cy="%s" r="%s"`, st.role, num(p.x), num(p.y), num(radius))
	s.tip("circle", tip)
}

func (s *svg) rect(st style, x, y, w, h float64, tip string) {
	class := st.role
	if st.fade {
		class += " fade"
	}
	fmt.Fprintf(&s.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"`, class, num(x), num(y), num(w), num(h))
	s.tip("rect", tip)
}

func (s *svg) text(st style, x, y, size float64, a anchor, t string) {
	fmt.Fprintf(&s.b, `<text class="%s" x="%s" y="%s" font-size="%s"`, st.role, num(x), num(y), num(size))
	if a != start {
		s.b.WriteString(` text-anchor="` + []string{"", "middle", "end"}[a] + `"`)
	}
	s.b.WriteString(">" + html.EscapeString(t) + "</text>")
}
