package testnet

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestVeth(t *testing.T) {
	a, b := New(t), New(t)
	Veth(t, a, "a0", b, "b0", "mtu", "9000", "numrxqueues", "2", "numtxqueues", "2")
	a.Do(func() {
		i, err := net.InterfaceByName("a0")
		if err != nil {
			t.Fatal(err)
		}
		if i.MTU != 9000 || i.Flags&net.FlagUp == 0 {
			t.Errorf("a0: mtu %d flags %v, want 9000 and up", i.MTU, i.Flags)
		}
		if _, err := net.InterfaceByName("b0"); err == nil {
			t.Error("b0 is in the namespace of a0")
		}
		if v, err := os.ReadFile("/proc/sys/net/ipv6/conf/a0/accept_dad"); err == nil && strings.TrimSpace(string(v)) != "0" {
			t.Errorf("accept_dad is %q", v)
		}
	})
	if _, err := net.InterfaceByName("a0"); err == nil {
		t.Error("Do did not come home")
	}
	ra, rb := a.Raw(t, "a0"), b.Raw(t, "b0")
	f := append(append(append([]byte{}, rb.MAC...), ra.MAC...), 0x88, 0xb5)
	f = append(f, bytes.Repeat([]byte("x"), 5000)...)
	if err := ra.Send(f); err != nil {
		t.Fatal(err)
	}
	if g := rb.RecvMatch(2*time.Second, func(b []byte) bool { return b[12] == 0x88 }); !bytes.Equal(f, g) {
		t.Errorf("sent %d bytes, got %d", len(f), len(g))
	}
	if g := ra.RecvMatch(0, func(b []byte) bool { return b[12] == 0x88 }); g != nil {
		t.Error("saw its own frame")
	}
}

func TestCleanup(t *testing.T) {
	var name string
	t.Run("inner", func(t *testing.T) { name = New(t).Name })
	if name == "" {
		t.Skip("no namespace was made")
	}
	if _, err := os.Stat("/run/netns/" + name); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", name, err)
	}
}
