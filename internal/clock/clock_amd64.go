package clock

// Ticks is the time-stamp counter: constant rate, the same on all cores.
func Ticks() uint64
