package kernelif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
)

func TestOpen(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "lan0", b, "b0")
	pool, err := packet.NewPool(t.Name(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	open := func(c pmd.Config) (p pmd.Port, err error) {
		c.Pool = pool
		a.Do(func() { p, err = Open(c) })
		return p, err
	}
	t.Run("missing", func(t *testing.T) {
		_, err := open(pmd.Config{Name: "lan1"})
		if err == nil || !strings.Contains(err.Error(), `"lan1"`) || !strings.Contains(err.Error(), "nearest are lan0") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("driver", func(t *testing.T) {
		if _, err := open(pmd.Config{Name: "lan0", Driver: "none"}); err == nil {
			t.Error("opened with a driver that does not exist")
		}
	})
	t.Run("automatic", func(t *testing.T) {
		p, err := open(pmd.Config{Name: "lan0"})
		if errors.Is(err, pmd.ErrNotSupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Driver() != "afxdp" || p.Caps().Mode != "native copy" {
			t.Errorf("driver %s, %+v; want afxdp in native copy mode", p.Driver(), p.Caps())
		}
		if why := strings.Join(p.Why(), "\n"); !strings.Contains(why, "zero-copy: ") {
			t.Errorf("Why does not say what became of zero-copy:\n%s", why)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("next driver", func(t *testing.T) {
		pmd.Register(pmd.Driver{Name: "fake", Open: func(pmd.Config) (pmd.Port, error) { return fakePort{}, nil }})
		defer func(o []string) { order = o }(order)
		order = []string{"absent", "fake"}
		p, err := open(pmd.Config{Name: "lan0"})
		if err != nil {
			t.Fatal(err)
		}
		if why := p.Why(); len(why) != 2 || !strings.Contains(why[0], `"absent"`) || why[1] != "fake works" {
			t.Errorf("Why is %q", why)
		}
		if _, err := open(pmd.Config{Name: "lan0", Mode: "native"}); err == nil {
			t.Error("a driver without modes opened with one")
		}
	})
	if pool.Free() != pool.Size() {
		t.Errorf("%d of %d buffers free", pool.Free(), pool.Size())
	}
}

// TestBusy: where another's XDP program keeps afxdp out, afpacket runs and says why.
func TestBusy(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "lan0", b, "b0")
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 2), asm.Return(),
	}})
	if err != nil {
		t.Skip(err)
	}
	defer prog.Close()
	pool, err := packet.NewPool(t.Name(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var p pmd.Port
	a.Do(func() {
		i, err := net.InterfaceByName("lan0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: i.Index})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if p, err = Open(pmd.Config{Name: "lan0", Pool: pool}); err != nil {
			t.Fatal(err)
		}
	})
	defer p.Close()
	if p.Driver() != "afpacket" {
		t.Errorf("driver %s", p.Driver())
	}
	if why := p.Why(); !strings.Contains(why[0], "another XDP program") {
		t.Errorf("Why is %q", why)
	}
	if f, ok := p.(pmd.LocalFilter); !ok {
		t.Error("the driver's filter cannot be reached")
	} else if err := f.SetLocal([]netip.Addr{netip.MustParseAddr("10.0.0.1")}); err != nil {
		t.Error(err)
	}
}

// TestUnprivileged: without capabilities the error names them. The test runs itself so.
func TestUnprivileged(t *testing.T) {
	if os.Getenv("KERNELIF_UNPRIVILEGED") != "" {
		pool, err := packet.NewPool(t.Name(), 1024)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(pmd.Config{Name: "lan0", Pool: pool})
		fmt.Printf("supported %t: %v\n", !errors.Is(err, pmd.ErrNotSupported), err)
		return
	}
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "lan0", b, "b0")
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(setpriv, "--bounding-set=-all", "--inh-caps=-all", os.Args[0], "-test.run=^TestUnprivileged$")
	cmd.Env = append(os.Environ(), "KERNELIF_UNPRIVILEGED=1")
	var out []byte
	a.Do(func() { out, err = cmd.CombinedOutput() }) // a child is in its parent thread's namespace
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"supported false", "afxdp: lan0", "afpacket", "CAP_NET_ADMIN", "CAP_BPF", "CAP_NET_RAW"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

type fakePort struct{ pmd.Port }

func (fakePort) Why() []string { return []string{"fake works"} }

func TestNearest(t *testing.T) {
	names := []string{"lo", "eth0", "eth1", "wlan0", "enp3s0f0"}
	for _, c := range []struct {
		name string
		want string
	}{
		{"eht1", "eth1"},
		{"enp3s0f1", "enp3s0f0"},
		{"wlan1", "wlan0"},
	} {
		if got := Nearest(c.name, names, 2); len(got) != 2 || got[0] != c.want {
			t.Errorf("%s: got %v, want 2 with %s first", c.name, got, c.want)
		}
	}
	if got := Nearest("x", nil, 3); !slices.Equal(got, nil) {
		t.Errorf("got %v of nothing", got)
	}
}

func TestLoopback(t *testing.T) {
	if _, err := Open(pmd.Config{Name: "lo"}); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("lo: %v", err)
	}
}
