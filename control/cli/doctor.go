package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/spf13/cobra"
	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// Results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn" // works, but slower or less safely than it could
	checkFail = "fail" // will not work
)

// check is one thing that doctor looked at.
type check struct {
	Name   string `json:"name"`
	Result string `json:"result"`
	Found  string `json:"found"`
	Fix    string `json:"fix"` // command or setting that makes it ok; "" where there is nothing to do
}

// machine is what doctor looks at; tests put a tree of files in its place.
type machine struct {
	root    string // holds proc and sys
	release string
	caps    uint64 // effective capabilities
	memlock uint64 // bytes; ^0 is unlimited
	v3      bool   // the CPU has what GOAMD64=v3 builds use
	xdp     error  // loading an XDP program is possible
	xsk     error  // AF_XDP sockets are possible
	ethtool func(iface string) string
}

func thisMachine() *machine {
	m := &machine{root: "/", ethtool: ethtoolDriver}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.release = unix.ByteSliceToString(u.Release[:])
	}
	for l := range strings.Lines(m.read("proc/self/status")) {
		if v, ok := strings.CutPrefix(l, "CapEff:"); ok {
			m.caps, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64) // the kernel's own format
		}
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil {
		m.memlock = lim.Cur
	}
	x := cpu.X86
	m.v3 = x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA && x.HasOSXSAVE && x.HasPOPCNT
	m.xdp = features.HaveProgramType(ebpf.XDP)
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	if m.xsk = err; err == nil {
		unix.Close(fd)
	}
	return m
}

// read is a file's content without blanks around it, "" where there is none.
func (m *machine) read(path string) string {
	b, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (m *machine) glob(pattern string) []string {
	g, _ := filepath.Glob(filepath.Join(m.root, pattern)) // patterns are constants
	return g
}

func (a *app) doctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "doctor [INTERFACE...]", Short: "Is this machine ready? What to change, command by command", GroupID: groupRun,
		Long: `Checks what a fast router needs from this machine: rights, kernel, CPU, memory, and each
interface. Each line says ok, warn (works, but slower or less safely) or fail (does not
work), what was found, and the command that mends it. Run it as the user who will run
the router. The exit code is 1 if anything fails.`,
		Example: "  sudo millrace doctor eth0 eth1",
		RunE: func(c *cobra.Command, names []string) error {
			checks := thisMachine().examine(names)
			w := c.OutOrStdout()
			if asJSON {
				b, err := json.MarshalIndent(map[string]any{"checks": checks}, "", "  ")
				if err != nil {
					return err
				}
				fmt.Fprintln(w, string(b))
			} else {
				width := 0
				for _, k := range checks {
					width = max(width, len(k.Name))
				}
				for _, k := range checks {
					fmt.Fprintf(w, "%-4s  %-*s  %s\n", k.Result, width, k.Name, k.Found)
					if k.Fix != "" {
						fmt.Fprintf(w, "      %-*s  -> %s\n", width, "", k.Fix)
					}
				}
			}
			var failed []string
			for _, k := range checks {
				if k.Result == checkFail {
					failed = append(failed, k.Name)
				}
			}
			if len(failed) > 0 {
				return no("not ready: %s", strings.Join(failed, ", "))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return interfaceNames(), cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func (m *machine) examine(names []string) []check {
	cs := []check{m.kernel(), m.rights(), m.programs(), m.sockets(), m.lockable(), m.processor(), m.clock(), m.governor(), m.hugePages(), m.iommu(), m.numa(), m.isolated(), m.forward()}
	if len(names) == 0 {
		for _, d := range m.glob("sys/class/net/*/device") {
			names = append(names, filepath.Base(filepath.Dir(d)))
		}
		if len(names) == 0 {
			cs = append(cs, check{"interfaces", checkWarn, "no network card; name interfaces to check others, such as veth", "millrace doctor NAME"})
		}
	}
	for _, n := range names {
		cs = append(cs, m.nic(n)...)
	}
	return cs
}

func (m *machine) kernel() check {
	var major, minor int
	if _, err := fmt.Sscanf(m.release, "%d.%d", &major, &minor); err != nil {
		return check{"kernel", checkWarn, "version " + dash(m.release) + " not understood", ""}
	}
	v := major*100 + minor
	switch {
	case v < 504:
		return check{"kernel", checkFail, m.release + ": AF_XDP needs 5.4 or newer", "install a newer kernel, or set `driver: afpacket`"}
	case v < 606:
		return check{"kernel", checkWarn, m.release + ": no AF_XDP for packets larger than a buffer before 6.6", "install kernel 6.6 or newer for jumbo frames"}
	}
	return check{"kernel", checkOK, m.release, ""}
}

var neededCaps = []struct {
	bit  int
	name string
	why  string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "interfaces and routes"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "packet sockets"},
	{unix.CAP_BPF, "CAP_BPF", "XDP programs"},
}

func (m *machine) rights() check {
	var lacks []string
	for _, c := range neededCaps {
		if m.caps&(1<<c.bit) == 0 {
			lacks = append(lacks, c.name+" ("+c.why+")")
		}
	}
	if len(lacks) > 0 {
		return check{"rights", checkFail, "without " + strings.Join(lacks, ", "), "sudo millrace ..., or: sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock,cap_sys_nice+ep $(command -v millrace)"}
	}
	return check{"rights", checkOK, "all that are needed", ""}
}

func (m *machine) programs() check {
	if m.xdp != nil {
		return check{"xdp programs", checkFail, "the kernel refuses them: " + m.xdp.Error(), "see rights above; in a container allow bpf(2); or set `driver: afpacket`"}
	}
	if m.read("proc/sys/net/core/bpf_jit_enable") == "0" {
		return check{"xdp programs", checkWarn, "interpreted: the JIT compiler is off", "sudo sysctl -w net.core.bpf_jit_enable=1"}
	}
	return check{"xdp programs", checkOK, "accepted, compiled", ""}
}

func (m *machine) sockets() check {
	if m.xsk != nil {
		return check{"xdp sockets", checkFail, "the kernel has none: " + m.xsk.Error(), "use a kernel with CONFIG_XDP_SOCKETS, or set `driver: afpacket`"}
	}
	return check{"xdp sockets", checkOK, "available", ""}
}

func (m *machine) lockable() check {
	const want = 512 << 20
	switch {
	case m.memlock == ^uint64(0):
		return check{"locked memory", checkOK, "unlimited", ""}
	case m.caps&(1<<unix.CAP_IPC_LOCK) != 0:
		return check{"locked memory", checkOK, "limit does not hold with CAP_IPC_LOCK", ""}
	case m.memlock >= want:
		return check{"locked memory", checkOK, fmt.Sprintf("%d MiB", m.memlock>>20), ""}
	}
	return check{"locked memory", checkFail, fmt.Sprintf("limit %d KiB is too little for packet buffers", m.memlock>>10), "ulimit -l unlimited; for a service LimitMEMLOCK=infinity; or the capability CAP_IPC_LOCK"}
}

func (m *machine) processor() check {
	if !m.v3 {
		return check{"cpu", checkWarn, "older than x86-64-v3 (no AVX2, BMI2, FMA): release builds do not run", "build with GOAMD64=v1"}
	}
	return check{"cpu", checkOK, fmt.Sprintf("x86-64-v3, %d online", len(parseList(m.read("sys/devices/system/cpu/online")))), ""}
}

func (m *machine) clock() check {
	info := m.read("proc/cpuinfo")
	if !strings.Contains(info, "constant_tsc") || !strings.Contains(info, "nonstop_tsc") {
		return check{"clock", checkWarn, "the time stamp counter stops or changes speed: measured clocks are estimates", "choose a CPU model with invariant TSC for the virtual machine"}
	}
	return check{"clock", checkOK, "constant time stamp counter", ""}
}

func (m *machine) governor() check {
	seen := map[string]int{}
	for _, g := range m.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor") {
		b, err := os.ReadFile(g)
		if err == nil {
			seen[strings.TrimSpace(string(b))]++
		}
	}
	switch {
	case len(seen) == 0:
		return check{"frequency", checkOK, "not scaled by this kernel", ""}
	case len(seen) == 1 && seen["performance"] > 0:
		return check{"frequency", checkOK, "governor performance", ""}
	}
	var names []string
	for n := range seen {
		names = append(names, n)
	}
	slices.Sort(names)
	return check{"frequency", checkWarn, "governor " + strings.Join(names, ", ") + ": CPUs slow down between packets", "sudo cpupower frequency-set -g performance"}
}

func (m *machine) hugePages() check {
	free, size := 0, 2048
	for l := range strings.Lines(m.read("proc/meminfo")) {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1]) // the kernel's own format
		switch f[0] {
		case "HugePages_Free:":
			free = n
		case "Hugepagesize:":
			size = n
		}
	}
	thp := m.read("sys/kernel/mm/transparent_hugepage/enabled")
	fix := fmt.Sprintf("sudo sysctl -w vm.nr_hugepages=%d", (256<<10)/max(size, 1))
	switch {
	case free*size >= 128<<10:
		return check{"huge pages", checkOK, fmt.Sprintf("%d free of %d MiB", free, size>>10), ""}
	case strings.Contains(thp, "[always]"), strings.Contains(thp, "[madvise]"):
		return check{"huge pages", checkWarn, fmt.Sprintf("%d free; transparent ones are used instead, as far as the kernel finds them", free), fix}
	}
	return check{"huge pages", checkWarn, fmt.Sprintf("%d free, transparent ones off: each packet costs more memory accesses", free), fix}
}

func (m *machine) iommu() check {
	if n := len(m.glob("sys/class/iommu/*")); n > 0 {
		if strings.Contains(m.read("proc/cmdline"), "iommu=pt") || strings.Contains(m.read("proc/cmdline"), "iommu.passthrough=1") {
			return check{"iommu", checkOK, "on, pass-through", ""}
		}
		return check{"iommu", checkWarn, "on, and translates every buffer of kernel drivers", "add iommu=pt to the kernel's command line"}
	}
	return check{"iommu", checkOK, "off", ""}
}

func (m *machine) numa() check {
	n := len(m.glob("sys/devices/system/node/node[0-9]*"))
	if n > 1 {
		return check{"numa", checkOK, fmt.Sprintf("%d nodes: workers belong on the node of their card, see the interfaces below", n), ""}
	}
	return check{"numa", checkOK, "one node", ""}
}

func (m *machine) isolated() check {
	online := parseList(m.read("sys/devices/system/cpu/online"))
	iso := m.read("sys/devices/system/cpu/isolated")
	switch {
	case iso != "":
		return check{"isolated cpus", checkOK, iso + "; name them in `workers: {cores: \"" + iso + "\"}`", ""}
	case len(online) <= 2:
		return check{"isolated cpus", checkWarn, fmt.Sprintf("none, and with %d CPUs there is none to spare", len(online)), ""}
	}
	last := online[len(online)-1]
	return check{"isolated cpus", checkWarn, "none: the kernel may interrupt workers", fmt.Sprintf("add isolcpus=2-%d nohz_full=2-%d rcu_nocbs=2-%d to the kernel's command line", last, last, last)}
}

func (m *machine) forward() check {
	v4, v6 := m.read("proc/sys/net/ipv4/ip_forward"), m.read("proc/sys/net/ipv6/conf/all/forwarding")
	if v4 == "1" || v6 == "1" {
		return check{"ip_forward", checkOK, "on: the kernel also forwards what reaches it; Millrace does not need it", ""}
	}
	return check{"ip_forward", checkOK, "off, and may stay so: Millrace does not need it", ""}
}

// parseList reads the kernel's "0-3,8".
func parseList(s string) []int {
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		z := a
		if err == nil && isRange {
			z, err = strconv.Atoi(to)
		}
		if err != nil {
			return out
		}
		for ; a <= z; a++ {
			out = append(out, a)
		}
	}
	return out
}
