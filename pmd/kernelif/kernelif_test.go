package kernelif

import (
	"errors"
	"slices"
	"strings"
	"testing"

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
