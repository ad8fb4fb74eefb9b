//go:build !amd64

package clock

import "time"

var start = time.Now()

// Ticks is a monotonic clock in nanoseconds where there is no time-stamp counter.
func Ticks() uint64 { return uint64(time.Since(start)) }
