package result

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Median of values, which stay in their order; NaN of none.
func Median(v []float64) float64 { return Quantile(v, 0.5) }

// Quantile q, 0 to 1, between the two nearest values in proportion (Hyndman and Fan's type 7).
func Quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return sortedQuantile(s, q)
}

func sortedQuantile(s []float64, q float64) float64 {
	x := q * float64(len(s)-1)
	i := int(x)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	if s[i] == s[i+1] {
		return s[i]
	}
	return s[i] + (x-float64(i))*(s[i+1]-s[i])
}

// Interval is an estimate with the bounds between which the true value is with some confidence.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Sample is one run's values of what is compared. Peer, where there is one, has those of the peer in the same
// rounds: the sample then stands for their ratio.
type Sample struct{ Own, Peer []float64 }

// resamples of a bootstrap: ten of them lie beyond the 0.5 % quantile.
const resamples = 2000

// RatioOfMedians is how many times base's median that of now is. A side is one sample for each run of the program
// that was made of it.
//
// The interval is that of a percentile bootstrap on logarithms. Since a bootstrap of n values is too narrow by about
// sqrt((n-1)/n), and as far as the normal distribution is narrower than Student's, its quantiles are taken further out
// (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, "expanded percentile interval"). Rounds are resampled
// as a whole, own and peer together, so that what disturbed both cancels out. Where a side has several runs, runs are
// resampled too, and count as the number of values. It is the same for the same values. NaN where a value is not positive.
func RatioOfMedians(base, now []Sample, confidence float64) Interval {
	b, ok1 := newSide(base)
	n, ok2 := newSide(now)
	if !ok1 || !ok2 {
		return Interval{math.NaN(), math.NaN(), math.NaN()}
	}
	r := rand.New(rand.NewPCG(1, 2))
	d := make([]float64, resamples)
	for i := range d {
		d[i] = n.draw(r) - b.draw(r)
	}
	slices.Sort(d)
	alpha := expanded((1-confidence)/2, b.n, n.n)
	return Interval{math.Exp(n.median - b.median), math.Exp(sortedQuantile(d, alpha)), math.Exp(sortedQuantile(d, 1-alpha))}
}

// side is one side's samples as logarithms.
type side struct {
	runs   []sideRun
	n      int // of what is resampled: runs where there are several, values otherwise
	median float64
}

type sideRun struct {
	own, peer      []float64
	scratch, other []float64
}

func newSide(samples []Sample) (s side, ok bool) {
	for _, x := range samples {
		var r sideRun
		if r.own, ok = logs(x.Own); !ok {
			return s, false
		}
		if x.Peer != nil {
			if r.peer, ok = logs(x.Peer); !ok {
				return s, false
			}
		}
		r.scratch, r.other = make([]float64, len(r.own)), make([]float64, len(r.peer))
		s.runs = append(s.runs, r)
		s.median += Median(r.own)
		if r.peer != nil {
			s.median -= Median(r.peer)
		}
	}
	if len(s.runs) == 0 {
		return s, false
	}
	s.median /= float64(len(s.runs))
	s.n = len(s.runs)
	if s.n == 1 {
		s.n = len(s.runs[0].own)
		if p := len(s.runs[0].peer); p > 0 {
			s.n = min(s.n, p)
		}
	}
	return s, true
}

func logs(v []float64) ([]float64, bool) {
	l := make([]float64, len(v))
	for i, x := range v {
		if !(x > 0) {
			return nil, false
		}
		l[i] = math.Log(x)
	}
	return l, len(l) > 0
}

// draw is the side's value in one resample.
func (s *side) draw(r *rand.Rand) float64 {
	sum := 0.0
	for k := range s.runs {
		if len(s.runs) > 1 {
			k = r.IntN(len(s.runs))
		}
		sum += s.runs[k].draw(r)
	}
	return sum / float64(len(s.runs))
}

func (x *sideRun) draw(r *rand.Rand) float64 {
	paired := len(x.own) == len(x.peer)
	for i := range x.scratch {
		k := r.IntN(len(x.own))
		x.scratch[i] = x.own[k]
		if paired {
			x.other[i] = x.peer[k]
		}
	}
	v := median(x.scratch)
	if x.peer == nil {
		return v
	}
	if !paired {
		for i := range x.other {
			x.other[i] = x.peer[r.IntN(len(x.peer))]
		}
	}
	return v - median(x.other)
}

// median sorts v.
func median(v []float64) float64 {
	slices.Sort(v)
	return sortedQuantile(v, 0.5)
}

// expanded is the tail of a bootstrap's distribution that stands for a tail of Student's.
func expanded(tail float64, a, b int) float64 {
	n := float64(min(a, b))
	if n < 2 {
		return tail
	}
	t := student(tail, float64(a+b-2))
	return normal(-t * math.Sqrt(n/(n-1)))
}

func normal(z float64) float64 { return math.Erfc(-z/math.Sqrt2) / 2 }

// student is the upper quantile of Student's distribution, by the expansion of Cornish and Fisher (Abramowitz and
// Stegun, 26.7.5): 1.5 % off at 99.5 % and 4 degrees of freedom, less with more.
func student(tail, nu float64) float64 {
	z := math.Sqrt2 * math.Erfinv(1-2*tail)
	z2 := z * z
	return z * (1 + (z2+1)/(4*nu) + ((5*z2+16)*z2+3)/(96*nu*nu) + (((3*z2+19)*z2+17)*z2-15)/(384*nu*nu*nu))
}

// Outliers are the places of values further than 3.5 times the (normally scaled) median deviation from the
// median (Iglewicz and Hoaglin).
func Outliers(v []float64) (places []int) {
	if len(v) < 5 {
		return nil
	}
	m := Median(v)
	d := make([]float64, len(v))
	for i, x := range v {
		d[i] = math.Abs(x - m)
	}
	mad := 1.4826 * Median(d)
	for i := range v {
		if d[i] > 3.5*mad && d[i] > 0.01*math.Abs(m) { // a hundredth is noise, whatever the others do
			places = append(places, i)
		}
	}
	return places
}
