package result

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// During is what else the machine did during a run. Percentages are of the time of all CPUs together.
type During struct {
	Seconds       float64 `json:"seconds"`
	LoadStart     float64 `json:"load_start"` // average of the last minute before the run
	LoadEnd       float64 `json:"load_end"`
	StealPercent  float64 `json:"steal_percent"`  // taken by the hypervisor for other guests
	OthersPercent float64 `json:"others_percent"` // user time of programs that are not this one nor its children
}

// cpuTimes are those of /proc/stat, in seconds over all CPUs.
type cpuTimes struct{ user, steal, all float64 }

func readCPUTimes(stat string) (t cpuTimes) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return t
	}
	for i, s := range f[1:9] { // what follows, guests' time, is contained in the first two
		v, _ := strconv.ParseFloat(s, 64) // the kernel's own format
		v /= 100                          // USER_HZ
		t.all += v
		switch i {
		case 0, 1:
			t.user += v
		case 7:
			t.steal += v
		}
	}
	return t
}

func procStat() cpuTimes {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTimes{}
	}
	return readCPUTimes(string(b))
}

func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	s, _, _ := strings.Cut(string(b), " ")
	v, _ := strconv.ParseFloat(s, 64) // the kernel's own format
	return v
}

// ownUser is the user time of this process and of its children that have ended, in seconds.
func ownUser() (s float64) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			s += float64(u.Utime.Nano()) / 1e9
		}
	}
	return s
}

// watch looks at the machine when a run begins and when it ends, never between.
type watch struct {
	at   time.Time
	load float64
	cpu  cpuTimes
	own  float64
}

func startWatch() *watch {
	return &watch{time.Now(), loadAverage(), procStat(), ownUser()}
}

func (w *watch) end() During {
	now, own := procStat(), ownUser()
	d := During{Seconds: time.Since(w.at).Seconds(), LoadStart: w.load, LoadEnd: loadAverage()}
	if all := now.all - w.cpu.all; all > 0 {
		d.StealPercent = 100 * (now.steal - w.cpu.steal) / all
		d.OthersPercent = max(0, 100*(now.user-w.cpu.user-(own-w.own))/all)
	}
	return d
}

// From these on, a disturbance is worth a warning.
const (
	muchSteal  = 1   // percent
	muchOthers = 5   // percent
	muchLoad   = 0.5 // per CPU, before the run
	longEnough = 0.5 // seconds: below it, percentages of ticks of 10 ms say nothing
)

// Warnings are what of the machine may have disturbed a run.
func (m *Machine) Warnings() (l []string) {
	add := func(format string, a ...any) { l = append(l, fmt.Sprintf(format, a...)) }
	d := m.During
	if d.LoadStart > muchLoad*float64(m.Cores) {
		add("the machine was busy before the run: load average %.2f on %d cores", d.LoadStart, m.Cores)
	}
	if d.Seconds >= longEnough && d.OthersPercent >= muchOthers {
		add("other programs took %.0f %% of the CPUs' time during the run", d.OthersPercent)
	}
	if d.Seconds >= longEnough && d.StealPercent >= muchSteal {
		add("the hypervisor took %.1f %% of the CPUs' time during the run", d.StealPercent)
	}
	if m.Governor != "" && m.Governor != "performance" {
		add("the CPUs' frequency is not fixed: governor %s", m.Governor)
	}
	if m.Clocksource != "" && !strings.Contains(m.Clocksource, "tsc") && m.Clocksource != "kvm-clock" {
		add("the kernel's clock is %s, not the TSC", m.Clocksource)
	}
	return l
}
