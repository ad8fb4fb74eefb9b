// Package clock reads the processor's time-stamp counter and relates it to seconds.
package clock

import (
	"sync"
	"time"
)

var hz = sync.OnceValue(measure)

// Hz is the rate of Ticks, measured once (it takes 20 ms the first time).
func Hz() uint64 { return hz() }

func measure() uint64 {
	best := uint64(0)
	span := time.Hour
	for range 4 {
		t0, c0 := time.Now(), Ticks()
		time.Sleep(5 * time.Millisecond)
		c1 := Ticks()
		d := time.Since(t0)
		if d < span { // the reading least disturbed between clock and counter
			span, best = d, uint64(float64(c1-c0)/d.Seconds())
		}
	}
	return best
}

// Duration converts a number of ticks.
func Duration(ticks uint64) time.Duration {
	return time.Duration(float64(ticks) / float64(Hz()) * 1e9)
}

// FromDuration is the number of ticks in d.
func FromDuration(d time.Duration) uint64 { return uint64(d.Seconds() * float64(Hz())) }
