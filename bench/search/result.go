package search

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/trial"
)

// Schema is the version of the JSON of Result and of Entry.
const Schema = 1

// Result is what one search of one bed found. Exactly one of the parts is set, as Search says.
type Result struct {
	Schema int    `json:"schema"`
	Search string `json:"search"` // "mlrsearch", "rfc2544", "soak", "self-test"
	Bed    string `json:"bed"`    // the bed's name
	// Partial says why the search did not end ("interrupted", the bed's error); "" where it did. What stands in
	// a partial result was measured, but bounds may be wider than asked for.
	Partial string        `json:"partial,omitempty"`
	Trials  int           `json:"trials"`   // made or replayed, with invalid ones
	Invalid int           `json:"invalid"`  // of these
	Spent   time.Duration `json:"spent_ns"` // the trials' durations, summed
	// Warnings must be shown wherever the result is.
	Warnings []string `json:"warnings,omitempty"`

	MLR      []MLRResult     `json:"mlrsearch,omitempty"` // one per frame size
	RFC2544  []RFC2544Result `json:"rfc2544,omitempty"`   // one per frame size
	Soak     *SoakResult     `json:"soak,omitempty"`
	SelfTest *SelfTestResult `json:"self_test,omitempty"`
}

// Rate is a rate in the units that reports print.
type Rate struct {
	FPS float64 `json:"fps"`
	// L2 counts the bits of frames with FCS; L1 also preamble, start of frame and inter-frame gap (trial.Overhead).
	// Both are 0 where the mean frame size is unknown.
	L2 float64 `json:"l2_bps,omitempty"`
	L1 float64 `json:"l1_bps,omitempty"`
}

// RateOf is fps frames a second of size bytes (the mean, where sizes are mixed).
func RateOf(fps, size float64) Rate {
	if size <= 0 {
		return Rate{FPS: fps}
	}
	return Rate{FPS: fps, L2: fps * size * 8, L1: fps * (size + trial.Overhead) * 8}
}

func rateAt(fps, size float64) *Rate {
	r := RateOf(fps, size)
	return &r
}

// Limited is why a search could not go higher; LimitedByDUT is the usual case.
type Limited string

const (
	LimitedByDUT       Limited = "dut"
	LimitedByLine      Limited = "line"      // the port's line rate, or the highest rate that was allowed, was met
	LimitedByGenerator Limited = "generator" // the next higher load could not be offered: the result says at least, not at most
	LimitedByMin       Limited = "min"       // even the lowest load that was allowed did not pass
)

// Ceiling is what the generator can do against itself at one frame size.
type Ceiling struct {
	Size int  `json:"size,omitempty"`
	Rate Rate `json:"rate"` // the highest rate at which it lost nothing of its own
	// Line is the port's line rate, 0 where there is none; the ceiling is Line itself where Full is true.
	Line float64 `json:"line_fps,omitempty"`
	Full bool    `json:"full,omitempty"`
	// Floor is the latency of the generator alone, at half its ceiling; nil where it was not measured.
	Floor *Latency `json:"latency_floor,omitempty"`
}

// NearCeiling is the part of the generator's ceiling above which a result says as much about the generator as
// about the thing under test.
const NearCeiling = 0.95

// SelfTestResult has the generator's ceilings.
type SelfTestResult struct {
	Bed      string    `json:"bed"`
	Ceilings []Ceiling `json:"ceilings"`
}

// At is the ceiling for frames of size bytes; nil where it was not measured.
func (s *SelfTestResult) At(size int) *Ceiling {
	if s == nil {
		return nil
	}
	for i := range s.Ceilings {
		if s.Ceilings[i].Size == size {
			return &s.Ceilings[i]
		}
	}
	return nil
}

// MLRResult is the Search Result of RFC 9971 for one frame size: a Goal Result for each goal.
type MLRResult struct {
	Size  int          `json:"size,omitempty"`
	Max   float64      `json:"max_fps"` // Max Load
	Min   float64      `json:"min_fps"` // Min Load
	Goals []GoalResult `json:"goals"`
	Loads []LoadPoint  `json:"loads"` // every load that was tried, by rate
	// Parts has latency and loss at parts of the first goal's lower bound, where MLR.Parts asked for them.
	Parts    []LatencyPoint `json:"parts,omitempty"`
	Ceiling  *Ceiling       `json:"ceiling,omitempty"`
	Trials   int            `json:"trials"`
	Warnings []string       `json:"warnings,omitempty"`
}

// Goal by name; nil where there is none.
func (r *MLRResult) Goal(name string) *GoalResult {
	for i := range r.Goals {
		if r.Goals[i].Goal.Name == name {
			return &r.Goals[i]
		}
	}
	return nil
}

// GoalResult is RFC 9971's: regular where both relevant bounds stand no further apart than the goal's width.
type GoalResult struct {
	Goal Goal `json:"goal"`
	// Lower and Upper are the Relevant Bounds: no load that was measured below Lower is an Upper Bound. Upper is nil where
	// no load was one, and then Lower is the largest Lower Bound; Lower is nil where no load below Upper passed.
	Lower *Rate `json:"lower,omitempty"`
	Upper *Rate `json:"upper,omitempty"`
	// Conditional is the Conditional Throughput, the typical forwarding rate at Lower. It is what to compare.
	Conditional *Rate   `json:"conditional_throughput,omitempty"`
	Regular     bool    `json:"regular"`
	Limited     Limited `json:"limited_by"`
	// Irregular says why a result is not regular; it must be shown with it.
	Irregular string   `json:"irregular,omitempty"`
	Trials    int      `json:"trials"` // at Lower
	LossRatio float64  `json:"loss_ratio"`
	Latency   *Latency `json:"latency,omitempty"` // over the trials at Lower
	Warnings  []string `json:"warnings,omitempty"`
}

// LoadPoint is all that was measured at one load.
type LoadPoint struct {
	Rate     float64   `json:"rate_fps"`
	Trials   int       `json:"trials"`
	Invalid  int       `json:"invalid,omitempty"`
	Loss     []float64 `json:"loss_ratios"` // of each valid trial, in the order of trials
	Received float64   `json:"received_fps"`
	// Class is the load's classification for each goal, in the goals' order: "lower", "upper", "undecided",
	// or "untestable" where the generator could not offer it.
	Class []string `json:"class"`
}

// RFC2544Result is one frame size's. Parts that were not asked for are nil.
type RFC2544Result struct {
	Size       int             `json:"size,omitempty"`
	Max        float64         `json:"max_fps"` // the highest rate that ports (or the caller) allow
	Throughput *Throughput     `json:"throughput,omitempty"`
	Latency    []LatencyPoint  `json:"latency,omitempty"`
	LossRate   []LossPoint     `json:"frame_loss_rate,omitempty"`
	BackToBack *BackToBack     `json:"back_to_back,omitempty"`
	Recovery   *RecoveryResult `json:"system_recovery,omitempty"`
	Ceiling    *Ceiling        `json:"ceiling,omitempty"`
	Trials     int             `json:"trials"`
	Warnings   []string        `json:"warnings,omitempty"`
}

// Throughput is RFC 2544's (26.1): the highest rate at which the loss was acceptable.
type Throughput struct {
	Rate       *Rate   `json:"rate,omitempty"`  // nil where no rate passed
	Upper      *Rate   `json:"upper,omitempty"` // the lowest rate above Rate that failed; nil where the highest passed
	Resolution float64 `json:"resolution_fps"`
	Loss       float64 `json:"acceptable_loss_ratio"`
	Limited    Limited `json:"limited_by"`
}

// LatencyPoint is the latency (26.2) at a part of the throughput (RFC 2544) or of the NDR (MLRsearch).
type LatencyPoint struct {
	Part    float64   `json:"part_of_throughput"`
	Rate    Rate      `json:"rate"`
	Means   []float64 `json:"means_ns"` // of each repetition
	Mean    float64   `json:"mean_ns"`  // their average, RFC 2544's result
	Latency *Latency  `json:"latency,omitempty"`
	Loss    float64   `json:"loss_ratio"` // over all repetitions
	Invalid string    `json:"invalid,omitempty"`
	// TL and WCL are RFC 8219's (7.2): the median over the repetitions of their medians and 99.9th percentiles, with
	// the 1st and 99th percentiles of these.
	TL  *Spread `json:"typical_latency_ns,omitempty"`
	WCL *Spread `json:"worst_case_latency_ns,omitempty"`
	PDV *Spread `json:"pdv_ns,omitempty"` // RFC 8219 (7.3.1), over the repetitions
}

// LossPoint is one point of the frame loss rate (26.3).
type LossPoint struct {
	Part    float64 `json:"part_of_max"`
	Rate    Rate    `json:"rate"`
	Loss    float64 `json:"loss_ratio"`
	Invalid string  `json:"invalid,omitempty"` // the generator could not offer this load
}

// BackToBack is RFC 2544's (26.4) with RFC 9004's calculations.
type BackToBack struct {
	Rate Rate `json:"rate"` // of frames in a burst
	// Frames in the longest burst without loss, over the repetitions.
	Mean   float64  `json:"mean_frames"`
	Min    uint64   `json:"min_frames"`
	Max    uint64   `json:"max_frames"`
	StdDev float64  `json:"stddev_frames"`
	Runs   []uint64 `json:"runs"`
	// AtLeast: the longest burst that was tried passed, so that buffers are not the limit.
	AtLeast bool `json:"at_least,omitempty"`
	// Implied is Mean over the rate; Corrected takes off what was forwarded during the burst (RFC 9004, section 6.4).
	Implied   time.Duration `json:"implied_buffer_ns"`
	Corrected time.Duration `json:"corrected_buffer_ns"`
	Invalid   string        `json:"invalid,omitempty"`
}

// RecoveryResult is the system recovery (26.5).
type RecoveryResult struct {
	Over    Rate            `json:"overload"`
	Under   Rate            `json:"reduced"`
	Runs    []time.Duration `json:"runs_ns"`
	Mean    time.Duration   `json:"mean_ns"`
	Worst   time.Duration   `json:"worst_ns"`
	Invalid string          `json:"invalid,omitempty"`
}

// SoakResult is a fixed load over a long time.
type SoakResult struct {
	Size      int            `json:"size,omitempty"`
	Rate      Rate           `json:"rate"`
	Intervals []SoakInterval `json:"intervals"`
	Sent      uint64         `json:"sent"`
	Lost      uint64         `json:"lost"`
	LossRatio float64        `json:"loss_ratio"`
	Lossy     int            `json:"lossy_intervals"`
	Invalid   int            `json:"invalid_intervals"`
	// First and Last are the intervals with the first and the last loss, -1 where nothing was lost.
	First int `json:"first_loss"`
	Last  int `json:"last_loss"`
	// Loss has percentiles over the intervals' loss ratios.
	Loss    Spread   `json:"loss_ratios"`
	Latency *Latency `json:"latency,omitempty"`
	// Drift is the median latency of the last quarter less that of the first, in nanoseconds.
	Drift    float64  `json:"latency_drift_ns"`
	Stopped  bool     `json:"stopped_at_loss,omitempty"`
	Ceiling  *Ceiling `json:"ceiling,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// SoakInterval is one trial of a soak.
type SoakInterval struct {
	At      time.Duration `json:"at_ns"` // sending time before it
	Start   time.Time     `json:"start"`
	Sent    uint64        `json:"sent"`
	Lost    uint64        `json:"lost"`
	Loss    float64       `json:"loss_ratio"`
	Latency *Latency      `json:"latency,omitempty"`
	Invalid string        `json:"invalid,omitempty"`
}

// Spread is how repeated figures lie.
type Spread struct {
	P1     float64 `json:"p1"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// Latency sums up a histogram, in nanoseconds.
type Latency struct {
	N      int64   `json:"n"`
	Min    int64   `json:"min_ns"`
	Mean   float64 `json:"mean_ns"`
	StdDev float64 `json:"stddev_ns"`
	P50    int64   `json:"p50_ns"`
	P90    int64   `json:"p90_ns"`
	P99    int64   `json:"p99_ns"`
	P999   int64   `json:"p999_ns"`
	P9999  int64   `json:"p9999_ns"`
	Max    int64   `json:"max_ns"`
	// PDV is the Packet Delay Variation of RFC 8219 (7.3.1) and RFC 5481: P999 less Min.
	PDV int64 `json:"pdv_ns"`
}

// LatencyOf sums up h; nil where h is nil or empty.
func LatencyOf(h *hdrhistogram.Histogram) *Latency {
	if h == nil || h.TotalCount() == 0 {
		return nil
	}
	q := h.ValueAtPercentile
	l := &Latency{N: h.TotalCount(), Min: h.Min(), Mean: h.Mean(), StdDev: h.StdDev(), P50: q(50), P90: q(90),
		P99: q(99), P999: q(99.9), P9999: q(99.99), Max: h.Max()}
	l.PDV = max(l.P999-l.Min, 0)
	return l
}
