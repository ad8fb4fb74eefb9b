package result

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"millrace/internal/clock"
)

// Machine is where it ran: results of different machines do not compare. It names no host, no address and no disk.
type Machine struct {
	// ID tells machines of the same kind apart. It is derived from the machine's identity for Millrace alone, and
	// leads nowhere else; "" where the machine has none.
	ID     string  `json:"id,omitempty"`
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	TSCGHz float64 `json:"tsc_ghz"`
	Kernel string  `json:"kernel"`
	Go     string  `json:"go"`
	GOAMD  string  `json:"goamd64,omitempty"`
	Pages  string  `json:"pages,omitempty"` // of the packet buffers

	Revision string `json:"revision,omitempty"` // of the source, with "+" where files were changed
	Build    string `json:"build,omitempty"`    // cgo, build tags

	Microcode   string   `json:"microcode,omitempty"`
	SMT         string   `json:"smt,omitempty"`
	Sockets     int      `json:"sockets,omitempty"`
	NUMA        int      `json:"numa_nodes,omitempty"`
	MemoryMiB   int      `json:"memory_mib,omitempty"`
	Governor    string   `json:"governor,omitempty"` // of the CPUs' frequency; several with commas
	Turbo       string   `json:"turbo,omitempty"`
	Clocksource string   `json:"clocksource,omitempty"`
	Isolated    string   `json:"isolated,omitempty"`   // CPUs without other programs
	NoHZFull    string   `json:"nohz_full,omitempty"`  // CPUs without timer ticks
	Affinity    string   `json:"affinity,omitempty"`   // CPUs that this process may use: its cpuset
	Cmdline     []string `json:"cmdline,omitempty"`    // what bears on speed, nothing else of it
	HugePages   []string `json:"huge_pages,omitempty"` // "2048 kB: 128, 100 free"
	THP         string   `json:"thp,omitempty"`
	Virtual     bool     `json:"virtual,omitempty"` // under a hypervisor
	NICs        []NIC    `json:"nics,omitempty"`

	During During `json:"during,omitzero"`
}

// NIC is a kernel's interface that packets go by.
type NIC struct {
	Port     string `json:"port"`
	Driver   string `json:"driver,omitempty"`
	Version  string `json:"version,omitempty"`
	Firmware string `json:"firmware,omitempty"`
	Mbps     int    `json:"mbps,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	RxQueues int    `json:"rx_queues,omitempty"`
}

// ThisMachine collects the facts of this machine.
func ThisMachine(ports ...string) Machine {
	m := Machine{Cores: runtime.NumCPU(), TSCGHz: math.Round(float64(clock.Hz())/1e7) / 100, Go: runtime.Version(),
		GOAMD: buildSetting("GOAMD64"), Revision: buildSetting("vcs.revision")}
	if len(m.Revision) > 12 {
		m.Revision = m.Revision[:12]
	}
	if buildSetting("vcs.modified") == "true" {
		m.Revision += "+"
	}
	m.Build = "cgo " + map[string]string{"1": "on"}[buildSetting("CGO_ENABLED")]
	if buildSetting("CGO_ENABLED") != "1" {
		m.Build = "cgo off"
	}
	if t := buildSetting("-tags"); t != "" {
		m.Build += ", tags " + t
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.facts("/")
	for _, p := range ports {
		if n, ok := nic("/", p); ok {
			m.NICs = append(m.NICs, n)
		}
	}
	return m
}

// facts reads what stands in files under root, which tests make.
func (m *Machine) facts(root string) {
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	distinct := func(pattern string) string {
		var l []string
		files, _ := filepath.Glob(filepath.Join(root, pattern)) // patterns are constants
		for _, f := range files {
			if v := read(strings.TrimPrefix(f, root)); v != "" && !slices.Contains(l, v) {
				l = append(l, v)
			}
		}
		slices.Sort(l)
		return strings.Join(l, ",")
	}
	sockets := map[string]bool{}
	for l := range strings.Lines(read("proc/cpuinfo")) {
		k, v, _ := strings.Cut(l, ":")
		v = strings.TrimSpace(v)
		switch strings.TrimSpace(k) {
		case "model name":
			m.CPU = v
		case "microcode":
			m.Microcode = v
		case "physical id":
			sockets[v] = true
		case "flags":
			m.Virtual = slices.Contains(strings.Fields(v), "hypervisor")
		}
	}
	m.Sockets = len(sockets)
	m.SMT = read("sys/devices/system/cpu/smt/control")
	nodes, _ := filepath.Glob(filepath.Join(root, "sys/devices/system/node/node[0-9]*"))
	m.NUMA = len(nodes)
	for l := range strings.Lines(read("proc/meminfo")) {
		if v, ok := strings.CutPrefix(l, "MemTotal:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(v)[0]) // the kernel's own format
			m.MemoryMiB = kb / 1024
		}
	}
	m.Governor = distinct("sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
	switch {
	case read("sys/devices/system/cpu/intel_pstate/no_turbo") == "0", read("sys/devices/system/cpu/cpufreq/boost") == "1":
		m.Turbo = "on"
	case read("sys/devices/system/cpu/intel_pstate/no_turbo") == "1", read("sys/devices/system/cpu/cpufreq/boost") == "0":
		m.Turbo = "off"
	}
	m.Clocksource = read("sys/devices/system/clocksource/clocksource0/current_clocksource")
	m.Isolated = read("sys/devices/system/cpu/isolated")
	if n := read("sys/devices/system/cpu/nohz_full"); n != "(null)" {
		m.NoHZFull = n
	}
	for l := range strings.Lines(read("proc/self/status")) {
		if v, ok := strings.CutPrefix(l, "Cpus_allowed_list:"); ok {
			m.Affinity = strings.TrimSpace(v)
		}
	}
	m.Cmdline = cmdline(read("proc/cmdline"))
	sizes, _ := filepath.Glob(filepath.Join(root, "sys/kernel/mm/hugepages/hugepages-*"))
	for _, d := range sizes {
		rel := strings.TrimPrefix(d, root)
		if n := read(rel + "/nr_hugepages"); n != "" && n != "0" {
			kb := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB")
			m.HugePages = append(m.HugePages, fmt.Sprintf("%s kB: %s, %s free", kb, n, read(rel+"/free_hugepages")))
		}
	}
	_, thp, _ := strings.Cut(read("sys/kernel/mm/transparent_hugepage/enabled"), "[")
	m.THP, _, _ = strings.Cut(thp, "]")
	if id := read("etc/machine-id"); len(id) == 32 {
		// As sd_id128_get_machine_app_specific does: keyed by what must stay secret.
		h := hmac.New(sha256.New, []byte(id))
		h.Write([]byte("millrace bench"))
		m.ID = fmt.Sprintf("%x", h.Sum(nil)[:6])
	}
}

// speaks are the parameters of the kernel's command line that bear on speed. All others stay private: they name disks,
// hosts, addresses, keys.
var speaks = []string{"isolcpus", "nohz", "nohz_full", "rcu_nocbs", "rcu_nocb_poll", "irqaffinity", "kthread_cpus", "mitigations", "nosmt",
	"intel_pstate", "amd_pstate", "cpufreq.default_governor", "intel_idle.max_cstate", "processor.max_cstate", "idle", "cpuidle.off", "cpuidle_haltpoll.force",
	"hugepages", "hugepagesz", "default_hugepagesz", "transparent_hugepage", "iommu", "intel_iommu", "amd_iommu", "iommu.passthrough", "iommu.strict",
	"tsc", "clocksource", "skew_tick", "nosoftlockup", "nowatchdog", "nmi_watchdog", "watchdog", "mce", "audit", "preempt", "numa_balancing", "pcie_aspm",
	"pti", "nopti", "spectre_v2", "spec_store_bypass_disable", "retbleed", "l1tf", "mds", "swiotlb", "psi", "threadirqs"}

func cmdline(s string) (l []string) {
	for _, p := range strings.Fields(s) {
		k, _, _ := strings.Cut(p, "=")
		if p == "--" {
			break // the rest is for init
		}
		if slices.Contains(speaks, k) {
			l = append(l, p)
		}
	}
	return l
}

func nic(root, port string) (n NIC, ok bool) {
	dir := filepath.Join(root, "sys/class/net", port)
	if port == "" || filepath.Base(dir) != port {
		return n, false
	}
	if _, err := os.Stat(dir); err != nil {
		return n, false
	}
	n.Port = port
	number := func(name string) int {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		v, _ := strconv.Atoi(strings.TrimSpace(string(b))) // -1 and nonsense count as unknown
		return max(v, 0)
	}
	n.Mbps, n.MTU = number("speed"), number("mtu")
	q, _ := filepath.Glob(filepath.Join(dir, "queues", "rx-*"))
	n.RxQueues = len(q)
	e, err := ethtool.NewEthtool()
	if err != nil {
		return n, true
	}
	defer e.Close()
	if i, err := e.DriverInfo(port); err == nil {
		n.Driver, n.Version, n.Firmware = i.Driver, i.Version, i.FwVersion
	}
	return n, true
}

// Same reports whether two runs were made on one machine, and what of it differs where it matters.
func (m *Machine) Same(o *Machine) (same bool, changed []string) {
	if m.ID != "" && o.ID != "" && m.ID != o.ID || m.CPU != o.CPU || m.Cores != o.Cores || math.Abs(m.TSCGHz-o.TSCGHz) > 0.02*m.TSCGHz {
		return false, nil
	}
	diff := func(what, a, b string) {
		if a != b {
			changed = append(changed, fmt.Sprintf("%s: %s, was %s", what, orNone(b), orNone(a)))
		}
	}
	diff("kernel", m.Kernel, o.Kernel)
	diff("command line", strings.Join(m.Cmdline, " "), strings.Join(o.Cmdline, " "))
	diff("microcode", m.Microcode, o.Microcode)
	diff("governor", m.Governor, o.Governor)
	diff("turbo", m.Turbo, o.Turbo)
	diff("SMT", m.SMT, o.SMT)
	diff("isolated CPUs", m.Isolated, o.Isolated)
	diff("CPUs allowed", m.Affinity, o.Affinity)
	diff("pages of the buffers", m.Pages, o.Pages)
	diff("transparent huge pages", m.THP, o.THP)
	diff("Go", m.Go, o.Go)
	diff("GOAMD64", m.GOAMD, o.GOAMD)
	diff("build", m.Build, o.Build)
	return true, changed
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Facts are the machine's facts as people read them, in order: name and value.
func (m *Machine) Facts() [][2]string {
	var l [][2]string
	add := func(k, format string, a ...any) { l = append(l, [2]string{k, fmt.Sprintf(format, a...)}) }
	text := func(k, v string) {
		if v != "" {
			add(k, "%s", v)
		}
	}
	text("CPU", m.CPU)
	add("cores", "%d, of %d sockets and %d NUMA nodes; SMT %s", m.Cores, m.Sockets, m.NUMA, orNone(m.SMT))
	add("TSC", "%.2f GHz", m.TSCGHz)
	text("microcode", m.Microcode)
	if m.Virtual {
		text("virtual", "under a hypervisor")
	}
	add("frequency governor", "%s", orUnknown(m.Governor))
	text("turbo", m.Turbo)
	text("clock source", m.Clocksource)
	add("memory", "%d MiB", m.MemoryMiB)
	add("huge pages", "%s; transparent: %s", orNone(strings.Join(m.HugePages, "; ")), orUnknown(m.THP))
	text("packet buffers in", m.Pages)
	add("isolated CPUs", "%s; without ticks: %s; allowed: %s", orNone(m.Isolated), orNone(m.NoHZFull), orUnknown(m.Affinity))
	text("kernel", "Linux "+m.Kernel)
	text("kernel command line", strings.Join(m.Cmdline, " "))
	for _, n := range m.NICs {
		s := n.Driver + " " + n.Version
		if n.Firmware != "" {
			s += ", firmware " + n.Firmware
		}
		if n.Mbps > 0 {
			s += fmt.Sprintf(", %d Mbit/s", n.Mbps)
		}
		add("port "+n.Port, "%s, %d rx queues, MTU %d", strings.TrimSpace(s), n.RxQueues, n.MTU)
	}
	add("build", "%s, GOAMD64 %s, %s, revision %s", m.Go, orUnknown(m.GOAMD), m.Build, orUnknown(m.Revision))
	if d := m.During; d.Seconds > 0 {
		add("load average", "%.2f at the start, %.2f at the end", d.LoadStart, d.LoadEnd)
		add("stolen by the hypervisor", "%.2f %% of the CPUs' time", d.StealPercent)
		add("other programs", "%.1f %% of the CPUs' time", d.OthersPercent)
	}
	text("machine", m.ID)
	return l
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
