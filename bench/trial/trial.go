// Package trial has the words that the rig's parts share: what a trial offers (Load), what
// came of it (Outcome), and what a trial is made on (Bed). Searches ask a Bed; reports keep
// Outcomes; neither knows what stands behind the ports.
package trial

import (
	"context"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Overhead is what a frame takes on an Ethernet wire beside its own bytes with FCS: preamble, start of frame
// and inter-frame gap.
const Overhead = 20

// FCS is the frame check sequence: frame sizes count it, buffers do not have it.
const FCS = 4

// Load is what a trial offers.
type Load struct {
	// Rate is in frames a second over all streams and directions; 0 is as fast as the generator can.
	Rate float64 `json:"rate"`
	// Size is the size of all frames in bytes with FCS; 0 leaves the profile's sizes.
	Size int `json:"size,omitempty"`
	// Duration of the sending. Packets still on their way are waited for afterwards.
	Duration time.Duration `json:"duration_ns"`
	// Frames ends the sending after so many frames (back-to-back bursts); 0 for Duration alone.
	Frames uint64 `json:"frames,omitempty"`
}

// Outcome is what came of a trial. Counts are of frames; every one that was sent is received once, or lost.
type Outcome struct {
	Load
	Start   time.Time     `json:"start"`
	Elapsed time.Duration `json:"elapsed_ns"` // from the first frame sent to the last, and the time of one more
	Sent    uint64        `json:"sent"`
	// Received counts each sent frame once. Lost is Sent less Received; it may be counted only
	// after the bed has waited for the last frames.
	Received uint64 `json:"received"`
	Lost     uint64 `json:"lost"`
	// Duplicated frames arrived before, Reordered ones after a later one of their stream (RFC 4737), Corrupted
	// ones have a wrong checksum and are not Received, Foreign ones are nobody's of this trial.
	Duplicated uint64 `json:"duplicated,omitempty"`
	Reordered  uint64 `json:"reordered,omitempty"`
	Corrupted  uint64 `json:"corrupted,omitempty"`
	Foreign    uint64 `json:"foreign,omitempty"`
	// Invalid says why this trial says nothing about the thing under test, such as a generator that could not
	// keep its rate; "" where it is valid.
	Invalid string `json:"invalid,omitempty"`
	// Notes are what a reader should know: outliers, drops by the port, a busy machine.
	Notes []string `json:"notes,omitempty"`
	// Drops are the counters of the thing under test that rose, by name, where it has any.
	Drops map[string]uint64 `json:"drops,omitempty"`
	// Latency is one way, in nanoseconds, of all frames; nil where it was not measured.
	Latency *hdrhistogram.Histogram `json:"-"`
}

// Achieved is the rate of sending in frames a second.
func (o *Outcome) Achieved() float64 {
	if o.Elapsed <= 0 {
		return 0
	}
	return float64(o.Sent) / o.Elapsed.Seconds()
}

// LossRatio is the part of the sent frames that was lost, 0 to 1.
func (o *Outcome) LossRatio() float64 {
	if o.Sent == 0 {
		return 0
	}
	return float64(o.Lost) / float64(o.Sent)
}

// Bed is what trials are made on: a generator and a thing under test between its ports.
type Bed interface {
	// Name of the thing under test, as it stands in reports: "millrace/afxdp", "kernel".
	Name() string
	// Line is the highest rate in frames a second, over all directions, that ports allow for frames of size
	// bytes with FCS; 0 where there is no such limit (memory).
	Line(size int) float64
	// Try makes one trial. It returns an error when no trial could be made (the thing under test died, ctx
	// ended); a generator that fell short is an Outcome that is Invalid.
	Try(ctx context.Context, l Load) (*Outcome, error)
	Close() error
}
