package search

import (
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// SpreadOf sums up x, which it leaves as it is. Percentiles are the nearest ranks.
func SpreadOf(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	s := slices.Clone(x)
	slices.Sort(s)
	at := func(p float64) float64 { return s[max(int(math.Ceil(p*float64(len(s))))-1, 0)] }
	median := at(0.5)
	if n := len(s); n%2 == 0 {
		median = (s[n/2-1] + s[n/2]) / 2
	}
	return Spread{P1: at(0.01), Median: median, P99: at(0.99), Min: s[0], Max: s[len(s)-1], N: len(s)}
}

// runs fills in the latency of repeated trials. RFC 2544 (26.2) wants the average of the repetitions; RFC 8219 (7.2
// and 7.3.1) their typical latency (median), worst-case latency (99.9th percentile) and Packet Delay Variation
// (D99.9 - Dmin, RFC 5481), each as a median with the 1st and 99th percentiles over the repetitions.
//
// Inter-Packet Delay Variation (7.3.2) needs the order of packets, which a histogram does not have.
func (p *LatencyPoint) runs(hs []*hdrhistogram.Histogram) {
	var all *hdrhistogram.Histogram
	var tl, wcl, pdv []float64
	for _, h := range hs {
		l := LatencyOf(h)
		if l == nil {
			continue
		}
		all = merge(all, h)
		p.Means = append(p.Means, l.Mean)
		tl, wcl, pdv = append(tl, float64(l.P50)), append(wcl, float64(l.P999)), append(pdv, float64(l.PDV))
	}
	if all == nil {
		return
	}
	p.Mean, p.Latency = mean(p.Means), LatencyOf(all)
	a, b, c := SpreadOf(tl), SpreadOf(wcl), SpreadOf(pdv)
	p.TL, p.WCL, p.PDV = &a, &b, &c
}
