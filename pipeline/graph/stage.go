package graph

import "sync/atomic"

// Lane says for which packets a stage is called: it is skipped where its lane is empty.
type Lane uint8

const (
	Any     Lane = iota // every vector
	IPv4                // vectors with packets in Lane4
	IPv6                // vectors with packets in Lane6
	Options             // vectors with IPv4 options to be filled in (Vector.Opts)
	Exits               // no vector: a stage beside the road
)

func (l Lane) String() string { return [...]string{"any", "ipv4", "ipv6", "options", "exits"}[l] }

// Stage is one step of the road, or one of the exits beside it. It is a description: each
// worker makes its own instance by New, which holds the per-core state.
//
// Adding a stage is: write New and its Run, list its reasons, put it into the
// list in pipeline/path.go. Counters, show, trace, capture and the
// printed path follow from this description.
type Stage struct {
	Name    string // one word: also its counter, its line in a trace, its heading in the docs
	Doc     string // one line
	Lane    Lane
	Reasons []Reason // why packets leave here
	// Resume names the stage at which packets that this stage held go on; "" is
	// the stage behind it. Only for Sources.
	Resume string
	New    func(w *Worker) Runner
	// On, where set, switches the stage: while it is false workers leave the stage out of their road, so that it
	// costs nothing. They look once a round.
	On *atomic.Bool
	// Prices are ways of asking for the stage whose costs are measured (`millrace bench overhead`).
	Prices []Price
	// Trace tells what the stage did to a packet that stayed on the road, in words; ""
	// where there is nothing to tell.
	Trace func(t *Look) string
}

// Price is a way of asking for what a stage does, of the router and of the Linux kernel, so that its cost can be measured in
// both. In it, packets go to 198.19.0.0/16 and 2001:2:0:8000::/49 by neighbours of the port r0, and come in again by r1;
// they come from 198.18.0.0/16 and 2001:2::/49, which are routed to r1.
type Price struct {
	Name string // feature/variant, "rpf/strict"
	Doc  string // one line
	// Config is YAML that is laid over the router's configuration: members of lists are the same where their name, to or address is.
	Config string
	// Kernel are commands in the network namespace of a kernel that forwards the same packets from r0 to r1; none
	// where it has no such thing.
	Kernel []string
	// Kernel6 are those for IPv6, where they differ.
	Kernel6 []string
}

// Runner is a worker's instance of a stage. Run is called once for each vector with
// packets in the stage's lane. It may not allocate, lock, block or keep v.
//
// An exit stage has no place on the road: its Run is never called.
type Runner interface {
	Run(v *Vector)
}

// Taker is a Runner that receives packets which left the road for a Reason whose To
// names its stage. Take owns the packets at pos from then on: it parks, frees or sends them.
type Taker interface {
	Take(v *Vector, pos []uint8, why Reason)
}

// Source is a Runner that holds packets and puts them back on the road: a stage
// that waits, that finishes asynchronously, or that makes packets of its own.
type Source interface {
	// Refill appends packets that may go on to the empty vector and returns
	// their number. It is called at the end of a round, again and again while Worker.Wake is
	// set (32 times at most), and on every tick.
	Refill(v *Vector) int
	// Held is the number of packets held.
	Held() int
	// Flush drops everything held: the road is closing.
	Flush()
}

// Ticker is a Runner that needs time. Tick is called about every millisecond of
// running and after each sleep, with Worker.Now set.
type Ticker interface {
	Tick()
}

// Hook watches vectors go down the road: trace and capture. Hooks are called on the
// worker's thread and only while somebody watches.
type Hook interface {
	// Begin sees a vector before its first stage; from is the name of what it comes
	// from: a port, or a Source.
	Begin(w *Worker, v *Vector, from string)
	// After sees it behind each stage.
	After(w *Worker, v *Vector, st *Stage)
	// End sees it behind the last stage, with exits marked and not yet settled. Packets that were
	// sent are gone.
	End(w *Worker, v *Vector)
}

// Look is what a trace sees of one packet right behind a stage.
type Look struct {
	Worker *Worker
	Vector *Vector
	Pos    uint8
}
