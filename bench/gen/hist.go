package gen

import (
	"math/bits"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are kept in the buckets of an HDR histogram of three digits, from 1 ns to histMax, and
// become one when the trial is over: the same geometry, without what its RecordValue checks each time.
const (
	histMax    = 60_000_000_000
	subBits    = 11 // 2048 values a bucket, half of them the next finer bucket's
	histCounts = (36 - subBits + 2) << (subBits - 1)
)

type hist struct {
	counts [histCounts]int64
	mult   uint64 // nanoseconds of a tick, times 2^32
}

// add records n times of so many ticks; one beyond histMax counts as that.
func (h *hist) add(ticks uint64, n int64) {
	hi, lo := bits.Mul64(ticks, h.mult)
	ns := hi<<32 | lo>>32
	b := uint(bits.Len64(ns|(1<<subBits-1))) - subBits
	i := b<<(subBits-1) + uint(ns>>(b&63))
	h.counts[min(i, histCounts-1)] += n
}

// export makes the HDR histogram.
func (h *hist) export() *hdrhistogram.Histogram {
	return hdrhistogram.Import(&hdrhistogram.Snapshot{
		LowestTrackableValue: 1, HighestTrackableValue: histMax, SignificantFigures: 3, Counts: h.counts[:],
	})
}
