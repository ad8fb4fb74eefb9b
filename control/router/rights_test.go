package router

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/control/config"
)

func TestRights(t *testing.T) {
	const admin, raw = 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_NET_RAW
	for _, tc := range []struct {
		has  uint32
		want string
	}{
		{admin | raw, ""},
		{raw, "not allowed to use r0, r1: this process lacks CAP_NET_ADMIN; "},
		{admin, "lacks CAP_NET_RAW; "},
		{0, "lacks CAP_NET_ADMIN and CAP_NET_RAW; "},
	} {
		err := lacking(tc.has, []string{"r0", "r1"})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("capabilities %#x: %v, want %q", tc.has, err, tc.want)
		}
	}
	// Ports that are no kernel interfaces need none of it, whoever this is.
	c := &config.Config{Ports: []config.Port{{Name: "m", Driver: "memif"}, {Name: "p", Driver: "pcap"}}}
	if err := checkRights(c); err != nil {
		t.Error(err)
	}
}
