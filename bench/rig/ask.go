package rig

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"millrace/bench/dut"
	"millrace/bench/pin"
	"millrace/bench/report"
	"millrace/bench/search"
	"millrace/bench/traffic"
	"millrace/pmd"
)

// Ask is what a run was asked for: config.yaml of its folder, from which it is resumed.
type Ask struct {
	Bench    string   `yaml:"bench"` // "rfc2544", "mlrsearch", "soak"
	Under    []string `yaml:"under_test"`
	Profile  string   `yaml:"profile"`
	Sizes    []int    `yaml:"sizes,omitempty"` // bytes with FCS; none for the profile's own
	Runs     int      `yaml:"runs"`
	SelfTest bool     `yaml:"self_test"`
	CPUs     []int    `yaml:"cpus,omitempty"` // the generator's, then the one of the thing under test; none for all
	Max      string   `yaml:"max,omitempty"`  // highest rate
	Limit    string   `yaml:"limit,omitempty"`

	Quick bool     `yaml:"quick,omitempty"` // mlrsearch
	Goals []string `yaml:"goals,omitempty"`

	Full  bool     `yaml:"full,omitempty"` // rfc2544
	Tests []string `yaml:"tests,omitempty"`

	Rate       string `yaml:"rate,omitempty"` // soak
	Time       string `yaml:"time,omitempty"`
	Interval   string `yaml:"interval,omitempty"`
	StopAtLoss bool   `yaml:"stop_at_loss,omitempty"`

	Left      string   `yaml:"left,omitempty"` // ports to what others have set up
	Right     string   `yaml:"right,omitempty"`
	LeftPeer  string   `yaml:"left_peer,omitempty"`
	RightPeer string   `yaml:"right_peer,omitempty"`
	Config    string   `yaml:"config,omitempty"` // YAML that is added to Millrace's configuration
	Setup     []string `yaml:"setup,omitempty"`  // commands in the namespace of a thing of the kernel's
}

// usual are the frame sizes of a run that names none.
var usual = []int{64, 512, 1518}

const usualProfile = "udp"

// plan is what to do, checked.
func (a *Ask) plan() (*Plan, error) {
	p := &Plan{Runs: a.Runs, SelfTest: a.SelfTest, Trial: time.Second}
	s, err := a.setup()
	if err != nil {
		return nil, err
	}
	p.Setup = *s
	if p.Kinds, err = a.kinds(); err != nil {
		return nil, err
	}
	if p.Max, err = a.fps("--max", a.Max); err != nil {
		return nil, err
	}
	if p.Limit, err = span0("--limit", a.Limit); err != nil {
		return nil, err
	}
	if a.Runs < 1 {
		return nil, fmt.Errorf("--runs %d: at least one", a.Runs)
	}
	switch a.Bench {
	case "mlrsearch":
		goals, err := a.goals()
		if err != nil {
			return nil, err
		}
		p.Trial = goals[0].InitialDuration
		p.Search = func(sizes []int) search.Search {
			return &search.MLR{Sizes: sizes, Goals: goals, Parts: []float64{0.1, 0.5, 0.9}}
		}
	case "rfc2544":
		if _, err := a.rfc2544(nil); err != nil {
			return nil, err
		}
		p.Search = func(sizes []int) search.Search {
			t, _ := a.rfc2544(sizes) // checked above
			return t
		}
	case "soak":
		k := search.Soak{StopAtLoss: a.StopAtLoss}
		if k.Rate, err = a.fps("--rate", a.Rate); err != nil {
			return nil, err
		}
		if k.Total, err = span0("--time", a.Time); err != nil {
			return nil, err
		}
		if k.Interval, err = span0("--interval", a.Interval); err != nil {
			return nil, err
		}
		p.Search = func(sizes []int) search.Search {
			k := k
			if len(sizes) > 0 {
				k.Size = sizes[0]
			}
			return &k
		}
	default:
		return nil, fmt.Errorf("there is no bench %q of the rig", a.Bench)
	}
	return p, nil
}

// setup is what all beds are made of.
func (a *Ask) setup() (*Setup, error) {
	s := &Setup{Profile: a.Profile, Sizes: a.Sizes, Options: dut.Options{Config: a.Config, Setup: a.Setup}}
	cpus := a.CPUs
	if len(cpus) == 0 {
		cpus = pin.CPUs()
	}
	var err error
	if s.Place, err = PlaceOn(cpus); err != nil {
		return nil, err
	}
	if a.Left == "" && a.Right == "" {
		return s, nil
	}
	if a.Left == "" || a.Right == "" {
		return nil, fmt.Errorf("--left and --right go together: frames enter one and leave by the other")
	}
	s.Outside = &dut.Outside{Ports: [2]string{a.Left, a.Right}}
	for i, t := range []string{a.LeftPeer, a.RightPeer} {
		if t == "" {
			continue
		}
		m, err := net.ParseMAC(t)
		if err != nil || len(m) != len(pmd.MAC{}) {
			return nil, fmt.Errorf("%q is not a MAC address such as 02:00:00:00:00:01", t)
		}
		s.Outside.Peers[i] = pmd.MAC(m)
	}
	return s, nil
}

// kinds are the things under test, by their whole names.
func (a *Ask) kinds() (l []string, err error) {
	if a.Left != "" {
		if len(a.Under) != 1 {
			return nil, fmt.Errorf("between --left and --right stands one thing: give it one name")
		}
		if strings.ContainsAny(a.Under[0], "@,|") {
			return nil, fmt.Errorf("the name %q has a sign that names in results cannot have", a.Under[0])
		}
		return a.Under, nil
	}
	for _, name := range a.Under {
		k, err := dut.Resolve(name, os.Geteuid() == 0)
		if err != nil {
			return nil, err
		}
		if slices.Contains(l, k) {
			return nil, fmt.Errorf("%s is named twice; --runs repeats searches", k)
		}
		l = append(l, k)
	}
	return l, nil
}

// fps is a rate of all streams together; 0 for none.
func (a *Ask) fps(flag, text string) (float64, error) {
	if text == "" || text == "max" {
		return 0, nil
	}
	r, ok := traffic.ParseRate(text)
	if !ok || r.Unit == traffic.Percent {
		return 0, fmt.Errorf("%s %s: write it as 1.5Mpps or 10Gbit", flag, text)
	}
	if r.Unit == traffic.BPS && len(a.Sizes) != 1 {
		return 0, fmt.Errorf("%s %s: bits a second go with one frame size (--sizes)", flag, text)
	}
	size := 0.0
	if len(a.Sizes) > 0 {
		size = float64(a.Sizes[0])
	}
	return r.FPS(size, 0), nil
}

func span0(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s %s: write it as 10s, 5m or 12h", flag, text)
	}
	return d, nil
}

var goalNames = []string{"ndr", "pdr", "rfc2544"}

func (a *Ask) goals() (l []search.Goal, err error) {
	for _, n := range a.Goals {
		switch strings.ToLower(n) {
		case "ndr":
			l = append(l, search.NDR())
		case "pdr":
			l = append(l, search.PDR())
		case "rfc2544":
			l = append(l, search.RFC2544Goal())
		default:
			return nil, fmt.Errorf("--goals %s: there are %s", n, strings.Join(goalNames, ", "))
		}
	}
	if len(l) == 0 {
		l = []search.Goal{search.NDR(), search.PDR()}
	}
	if a.Quick {
		for i := range l {
			g := &l[i]
			g.InitialDuration, g.FinalDuration, g.DurationSum, g.Width = 200*time.Millisecond, 200*time.Millisecond, 2*time.Second, 0.02
		}
	}
	return l, nil
}

var testNames = []string{"throughput", "latency", "loss", "back-to-back", "recovery"}

func (a *Ask) rfc2544(sizes []int) (*search.RFC2544, error) {
	t := search.QuickRFC2544(sizes)
	if a.Full {
		t = search.FullRFC2544(sizes)
	}
	if len(a.Tests) == 0 {
		return t, nil
	}
	for _, n := range a.Tests {
		if !slices.Contains(testNames, n) {
			return nil, fmt.Errorf("--tests %s: there are %s", n, strings.Join(testNames, ", "))
		}
	}
	drop := func(name string) bool { return !slices.Contains(a.Tests, name) }
	if drop("latency") {
		t.Latency = nil
	}
	if drop("loss") {
		t.LossRate = nil
	}
	if drop("back-to-back") {
		t.BackToBack = nil
	}
	if drop("recovery") {
		t.Recovery = nil
	}
	return t, nil
}

// folder opens the run's folder, new or to be resumed.
func (a *Ask) folder(dir string, resume bool) (*report.Run, error) {
	text, err := yaml.Marshal(a)
	if err != nil {
		return nil, err
	}
	profile, err := profileText(a.Profile)
	if err != nil {
		return nil, err
	}
	var ports []string
	for _, p := range []string{a.Left, a.Right} {
		if p != "" && !strings.ContainsAny(p, ":/") {
			ports = append(ports, p)
		}
	}
	return report.Create(dir, report.Options{Bench: a.Bench, Ports: ports, Config: text, Profile: profile, Resume: resume})
}

func profileText(name string) ([]byte, error) {
	if strings.ContainsAny(name, "./") {
		return os.ReadFile(name)
	}
	return traffic.Text(name)
}

// asked reads what a run was asked for from its folder.
func asked(file string) (*Ask, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	a := &Ask{}
	if err := yaml.UnmarshalWithOptions(b, a, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return a, nil
}
