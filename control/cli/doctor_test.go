package cli

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

func zapTo(w io.Writer) zapcore.Core {
	return zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(w), zapcore.DebugLevel)
}

// tree writes files below a fresh root; a value of "-> x" makes a link to x.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(text+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

var goodFiles = map[string]string{
	"proc/cpuinfo":                                         "flags : fpu constant_tsc nonstop_tsc",
	"proc/meminfo":                                         "HugePages_Total: 512\nHugePages_Free: 512\nHugepagesize: 2048 kB",
	"proc/cmdline":                                         "ro iommu=pt",
	"proc/sys/net/core/bpf_jit_enable":                     "1",
	"proc/sys/net/ipv4/ip_forward":                         "0",
	"sys/class/iommu/dmar0":                                "",
	"sys/devices/system/cpu/online":                        "0-7",
	"sys/devices/system/cpu/isolated":                      "2-7",
	"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
	"sys/devices/system/node/node0/cpulist":                "0-3",
	"sys/devices/system/node/node1/cpulist":                "4-7",
	"sys/kernel/mm/transparent_hugepage/enabled":           "always [madvise] never",
	"sys/class/net/eth0/ifindex":                           "2",
	"sys/class/net/eth0/type":                              "1",
	"sys/class/net/eth0/operstate":                         "up",
	"sys/class/net/eth0/mtu":                               "1500",
	"sys/class/net/eth0/queues/rx-0/rps_cpus":              "0",
	"sys/class/net/eth0/queues/rx-1/rps_cpus":              "0",
	"sys/class/net/eth0/device/numa_node":                  "1",
	"sys/class/net/eth0/device/driver":                     "-> ../../../bus/pci/drivers/ice",
}

func goodMachine(t *testing.T, change map[string]string) *machine {
	files := map[string]string{}
	for k, v := range goodFiles {
		files[k] = v
	}
	for k, v := range change {
		files[k] = v
	}
	return &machine{root: tree(t, files), release: "6.12.1-amd64", caps: ^uint64(0), memlock: ^uint64(0), v3: true}
}

func TestDoctor(t *testing.T) {
	for _, tc := range []struct {
		name   string
		files  map[string]string
		change func(*machine)
		nics   []string
		check  string // the name of the check that is not ok
		result string
		found  string
		fix    string
	}{
		{name: "a good machine"},
		{name: "old kernel", change: func(m *machine) { m.release = "4.19.0" }, check: "kernel", result: checkFail, found: "AF_XDP needs 5.4", fix: "driver: afpacket"},
		{name: "no large packets", change: func(m *machine) { m.release = "5.15.0-91-generic" }, check: "kernel", result: checkWarn, found: "before 6.6", fix: "6.6"},
		{name: "odd kernel", change: func(m *machine) { m.release = "rolling" }, check: "kernel", result: checkWarn, found: "not understood"},
		{name: "no rights", change: func(m *machine) { m.caps = 1 << unix.CAP_NET_ADMIN }, check: "rights", result: checkFail, found: "without CAP_NET_RAW (packet sockets), CAP_BPF", fix: "setcap cap_net_admin"},
		{name: "no XDP", change: func(m *machine) { m.xdp = errors.New("operation not permitted") }, check: "xdp programs", result: checkFail, found: "operation not permitted", fix: "bpf(2)"},
		{name: "no JIT", files: map[string]string{"proc/sys/net/core/bpf_jit_enable": "0"}, check: "xdp programs", result: checkWarn, found: "interpreted", fix: "net.core.bpf_jit_enable=1"},
		{name: "no AF_XDP", change: func(m *machine) { m.xsk = unix.EAFNOSUPPORT }, check: "xdp sockets", result: checkFail, found: "not supported", fix: "CONFIG_XDP_SOCKETS"},
		{name: "little memory to lock", change: func(m *machine) { m.memlock, m.caps = 65536, m.caps&^(1<<unix.CAP_IPC_LOCK) }, check: "locked memory", result: checkFail, found: "64 KiB", fix: "LimitMEMLOCK=infinity"},
		{name: "old CPU", change: func(m *machine) { m.v3 = false }, check: "cpu", result: checkWarn, found: "older than x86-64-v3", fix: "GOAMD64=v1"},
		{name: "bad clock", files: map[string]string{"proc/cpuinfo": "flags : constant_tsc"}, check: "clock", result: checkWarn, found: "time stamp counter", fix: "invariant TSC"},
		{name: "slow CPUs", files: map[string]string{"sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave"}, check: "frequency", result: checkWarn, found: "performance, powersave", fix: "cpupower frequency-set -g performance"},
		{name: "no huge pages", files: map[string]string{"proc/meminfo": "HugePages_Free: 0\nHugepagesize: 2048 kB"}, check: "huge pages", result: checkWarn, found: "transparent", fix: "vm.nr_hugepages=128"},
		{name: "no huge pages at all", files: map[string]string{"proc/meminfo": "HugePages_Free: 0", "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"}, check: "huge pages", result: checkWarn, found: "transparent ones off", fix: "vm.nr_hugepages=128"},
		{name: "strict IOMMU", files: map[string]string{"proc/cmdline": "ro quiet"}, check: "iommu", result: checkWarn, found: "translates every buffer", fix: "iommu=pt"},
		{name: "shared CPUs", files: map[string]string{"sys/devices/system/cpu/isolated": ""}, check: "isolated cpus", result: checkWarn, found: "may interrupt workers", fix: "isolcpus=2-7"},
		{name: "two CPUs", files: map[string]string{"sys/devices/system/cpu/isolated": "", "sys/devices/system/cpu/online": "0-1"}, check: "isolated cpus", result: checkWarn, found: "none to spare"},
		{name: "no such interface", nics: []string{"eth9"}, check: "eth9", result: checkFail, found: "no such interface", fix: "ip -br link"},
		{name: "a path", nics: []string{"../net/eth0"}, check: "../net/eth0", result: checkFail, found: "no such interface", fix: "ip -br link"},
		{name: "link down", files: map[string]string{"sys/class/net/eth0/operstate": "down"}, check: "eth0", result: checkWarn, found: "link down", fix: "sudo ip link set eth0 up"},
		{name: "in a bridge", files: map[string]string{"sys/class/net/eth0/master": "-> ../br0"}, check: "eth0", result: checkWarn, found: "bypass", fix: "sudo ip link set eth0 nomaster"},
		{name: "slow driver", files: map[string]string{"sys/class/net/eth0/device/driver": "-> x/e1000e"}, check: "eth0", result: checkWarn, found: "generic mode", fix: "XDP in its driver"},
		{name: "large MTU", files: map[string]string{"sys/class/net/eth0/device/driver": "-> x/virtio_net", "sys/class/net/eth0/mtu": "9000"}, check: "eth0", result: checkWarn, found: "MTU too large", fix: "mtu 1500"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := goodMachine(t, tc.files)
			if tc.change != nil {
				tc.change(m)
			}
			found := tc.check == ""
			for _, c := range m.examine(tc.nics) {
				if c.Result == checkOK {
					continue
				}
				if c.Name != tc.check || c.Result != tc.result || !strings.Contains(c.Found, tc.found) || !strings.Contains(c.Fix, tc.fix) || (c.Fix == "") != (tc.fix == "") {
					t.Errorf("unexpected: %+v", c)
				}
				found = true
			}
			if !found {
				t.Error("nothing was found")
			}
		})
	}
}

func TestDoctorVirtual(t *testing.T) {
	m := goodMachine(t, map[string]string{
		"sys/class/net/v0/ifindex": "5", "sys/class/net/v0/type": "1", "sys/class/net/v0/operstate": "up", "sys/class/net/v0/mtu": "1500",
		"sys/class/net/lo/ifindex": "1", "sys/class/net/lo/type": "772", "sys/class/net/lo/operstate": "up", "sys/class/net/lo/mtu": "65536",
	})
	m.ethtool = func(name string) string { return map[string]string{"v0": "veth"}[name] }
	cs := m.nic("v0")
	if cs[0].Result != checkOK || !strings.Contains(cs[0].Found, "native mode") || !strings.Contains(cs[len(cs)-1].Fix, "tx off") {
		t.Errorf("veth: %+v", cs)
	}
	if cs := m.nic("lo"); cs[0].Result != checkFail || !strings.Contains(cs[0].Found, "not an Ethernet") {
		t.Errorf("lo: %+v", cs)
	}
}

// On this machine whatever it is: every check has a result, text and JSON agree, and
// the exit code follows.
func TestDoctorCommand(t *testing.T) {
	text, _, code := millrace(Options{}, "doctor")
	out, _, jcode := millrace(Options{}, "doctor", "--json")
	var v struct{ Checks []check }
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	want := ExitOK
	for _, c := range v.Checks {
		if c.Result == checkFail {
			want = ExitNo
		}
		if !strings.Contains(text, c.Found) {
			t.Errorf("text lacks %q", c.Found)
		}
	}
	if code != want || jcode != want || len(v.Checks) < 13 {
		t.Errorf("exit %d and %d, want %d; %d checks", code, jcode, want, len(v.Checks))
	}
	if _, errs, code := millrace(Options{}, "doctor", "no-such-if"); code != ExitNo || !strings.Contains(errs, "no-such-if") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

func TestParseList(t *testing.T) {
	for s, want := range map[string]int{"": 0, "0": 1, "0-3": 4, "0-1,4,6-7": 5, "x": 0} {
		if got := parseList(s); len(got) != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
