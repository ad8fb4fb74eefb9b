package search

import (
	"fmt"
	"time"
)

// Goal is a Search Goal of RFC 9971, with FD.io CSIT's names and defaults for what the RFC leaves open.
type Goal struct {
	Name string `json:"name"` // "NDR", "PDR"
	// LossRatio that a low-loss trial does not exceed.
	LossRatio float64 `json:"loss_ratio"`
	// ExceedRatio is the part of DurationSum that may be high-loss at a Lower Bound.
	ExceedRatio float64 `json:"exceed_ratio"`
	// Width is the largest distance of the relevant bounds, as a part of the upper one.
	Width float64 `json:"width"`
	// InitialDuration is of the shortest trials, FinalDuration of full-length ones, DurationSum of all trials that
	// decide about a load (fewer, where the rest could not change it).
	InitialDuration time.Duration `json:"initial_trial_duration_ns"`
	FinalDuration   time.Duration `json:"final_trial_duration_ns"`
	DurationSum     time.Duration `json:"duration_sum_ns"`
	// Preceding is the number of coarser targets that are met first, each twice as wide as the next.
	Preceding int `json:"preceding_targets"`
	// Expansion multiplies the step of the external search, which looks for a missing bound.
	Expansion int `json:"expansion_coefficient"`
}

// NDR and PDR are CSIT's two goals: the non-drop rate, and the partial drop rate at 0.5 % loss.
func NDR() Goal { return csit("NDR", 0) }
func PDR() Goal { return csit("PDR", 0.005) }

func csit(name string, loss float64) Goal {
	return Goal{Name: name, LossRatio: loss, ExceedRatio: 0.5, Width: 0.005, InitialDuration: time.Second,
		FinalDuration: time.Second, DurationSum: 21 * time.Second, Preceding: 2, Expansion: 4}
}

// RFC2544Goal makes MLRsearch comply with RFC 2544 without condition (RFC 9971, section 4.10): one lossy trial of any
// length fails a load.
func RFC2544Goal() Goal {
	g := csit("RFC2544", 0)
	g.ExceedRatio, g.FinalDuration, g.DurationSum = 0, 60*time.Second, 60*time.Second
	return g
}

// Check says what is wrong with a goal.
func (g *Goal) Check() error {
	bad := func(what string, v any, want string) error {
		return fmt.Errorf("search: goal %q: %s is %v, must be %s", g.Name, what, v, want)
	}
	switch {
	case !(g.LossRatio >= 0 && g.LossRatio < 1):
		return bad("loss ratio", g.LossRatio, "from 0 up, less than 1")
	case !(g.ExceedRatio >= 0 && g.ExceedRatio < 1):
		return bad("exceed ratio", g.ExceedRatio, "from 0 up, less than 1")
	case !(g.Width > 0 && g.Width < 1):
		return bad("width", g.Width, "more than 0, less than 1")
	case g.InitialDuration <= 0:
		return bad("initial trial duration", g.InitialDuration, "positive")
	case g.FinalDuration < g.InitialDuration:
		return bad("final trial duration", g.FinalDuration, fmt.Sprint("at least the initial ", g.InitialDuration))
	case g.DurationSum < g.FinalDuration:
		return bad("duration sum", g.DurationSum, fmt.Sprint("at least the final trial duration ", g.FinalDuration))
	case g.Preceding < 0 || g.Preceding > 16:
		return bad("preceding targets", g.Preceding, "0 to 16")
	case g.Expansion < 2:
		return bad("expansion coefficient", g.Expansion, "2 or more")
	}
	return nil
}
