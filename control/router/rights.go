package router

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"millrace/control/config"
)

// checkRights is an error where ports of kernel interfaces are wanted and the process
// lacks what no driver can do without. Some of it would show only later: without CAP_NET_ADMIN
// AF_PACKET works, and no neighbour is ever resolved.
func checkRights(c *config.Config) error {
	var ports []string
	for i := range c.Ports {
		if d := c.Ports[i].Driver; d == "" || d == "afxdp" || d == "afpacket" {
			ports = append(ports, c.Ports[i].Name)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if len(ports) == 0 || unix.Capget(&hdr, &data[0]) != nil {
		return nil
	}
	return lacking(data[0].Effective, ports)
}

func lacking(effective uint32, ports []string) error {
	var lacks []string
	for _, n := range []struct {
		bit  int
		name string
	}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
		if effective&(1<<n.bit) == 0 {
			lacks = append(lacks, n.name)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("not allowed to use %s: this process lacks %s; run it as root (sudo), or see `millrace doctor`",
		strings.Join(ports, ", "), strings.Join(lacks, " and "))
}
