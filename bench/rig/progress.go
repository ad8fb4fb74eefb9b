package rig

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"millrace/bench/result"
	"millrace/bench/search"
)

// Bar shows how far a plan is: one line that changes on a terminal, nothing elsewhere.
type Bar struct {
	w   io.Writer
	tty bool
	on  bool // something stands on the line
}

// NewBar is a bar on standard error.
func NewBar() *Bar {
	st, err := os.Stderr.Stat()
	return &Bar{w: os.Stderr, tty: err == nil && st.Mode()&os.ModeCharDevice != 0}
}

// Write prints lines above the bar.
func (b *Bar) Write(p []byte) (int, error) {
	b.Clear()
	return b.w.Write(p)
}

// Clear takes the bar off its line.
func (b *Bar) Clear() {
	if b.on {
		fmt.Fprint(b.w, "\r\x1b[K")
		b.on = false
	}
}

// Show draws the bar.
func (b *Bar) Show(p Progress) {
	if !b.tty || p.Replayed {
		return
	}
	b.on = true
	fmt.Fprint(b.w, "\r\x1b[K", p.line())
}

const barWidth = 20

// line is the bar with what is going on now.
func (p *Progress) line() string {
	// Half way between the estimates.
	left := (p.Left.Low + p.Left.High) / 2
	part := 0.0
	if all := p.Considered + left; all > 0 {
		part = float64(p.Considered) / float64(all)
	}
	full := int(part * barWidth)
	s := fmt.Sprintf("[%s%s] %2.0f %%  %s left  %s %s %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), part*100,
		span(p.Left), p.Bed, sized(p.Size), p.Phase)
	if p.Load.Rate > 0 {
		s += " " + strings.TrimSpace(result.Number(p.Load.Rate)) + "pps"
	}
	if o := p.Outcome; o != nil {
		switch {
		case o.Invalid != "":
			s += ": invalid"
		default:
			s += fmt.Sprintf(": lost %d of %d", o.Lost, o.Sent)
		}
	}
	if p.Lower > 0 || p.Upper > 0 {
		s += fmt.Sprintf("  [%s, %s]", bound(p.Lower), bound(p.Upper))
	}
	return s
}

func bound(v float64) string {
	if v == 0 {
		return "?"
	}
	return strings.TrimSpace(result.Number(v))
}

// span is an estimate as people read it.
func span(e search.Estimate) string {
	low, high := short(e.Low), short(e.High)
	if low == high {
		return low
	}
	return low + " to " + high
}

// short is a duration in its two largest units.
func short(d time.Duration) string {
	switch {
	case d >= 24*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d/time.Hour%24)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d/time.Minute%60)
	case d >= 10*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d/time.Second%60)
	}
	return fmt.Sprintf("%ds", (d+time.Second-1)/time.Second)
}
