package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// Kernel drivers by what XDP can do with them: those with an XSK pool (ndo_xsk_wakeup),
// and those with ndo_bpf only.
var (
	zeroCopyDrivers = []string{"dpaa2-eth", "gve", "i40e", "ice", "idpf", "igb", "igc", "ixgbe", "mlx5_core", "nfp", "st_gmac", "stmmac", "tsnep", "virtio_net"}
	nativeDrivers   = []string{
		"atlantic", "bnxt_en", "bonding", "cpsw", "ena", "fec", "fsl_enetc", "funeth", "hv_netvsc", "ixgbevf", "lan966x", "mana", "mlx4_en", "mtk_soc_eth",
		"mvneta", "mvpp2", "netsec", "qede", "rvu_nicpf", "sfc", "thunder-nicvf", "tun", "veth", "vif",
	}
)

func (m *machine) nic(name string) []check {
	dir := filepath.Join("sys/class/net", name)
	if strings.ContainsAny(name, "/*") || m.read(dir+"/ifindex") == "" {
		return []check{{name, checkFail, "there is no such interface", "ip -br link"}}
	}
	driver := m.driver(dir)
	var cs []check
	add := func(result, found, fix string) { cs = append(cs, check{name, result, found, fix}) }
	switch {
	case slices.Contains(zeroCopyDrivers, driver):
		add(checkOK, "driver "+driver+": XDP in zero-copy mode, in newer kernels at least", "")
	case slices.Contains(nativeDrivers, driver):
		add(checkOK, "driver "+driver+": XDP in native mode, with a copy", "")
	case m.read(dir+"/type") != "1":
		add(checkFail, "not an Ethernet interface", "")
	default:
		add(checkWarn, "driver "+dash(driver)+": XDP in generic mode only, which is slow", "use a network card with XDP in its driver")
	}
	switch state := m.read(dir + "/operstate"); state {
	case "up":
		add(checkOK, "link up, MTU "+m.read(dir+"/mtu"), "")
	default:
		add(checkWarn, "link "+dash(state), "sudo ip link set "+name+" up")
	}
	if m.read(dir+"/mtu") != "" {
		var mtu int
		if _, err := fmt.Sscan(m.read(dir+"/mtu"), &mtu); err == nil && mtu > 3498 && driver == "virtio_net" {
			add(checkWarn, "MTU too large for native XDP of virtio_net", "sudo ip link set "+name+" mtu 1500")
		}
	}
	if n := len(m.glob(dir + "/queues/rx-*")); n > 0 {
		add(checkOK, plural(uint64(n), "receive queue", "receive queues"), "")
	}
	if m.exists(dir + "/master") {
		add(checkWarn, "belongs to a bridge or bond: packets taken by XDP bypass it", "sudo ip link set "+name+" nomaster")
	}
	if node := m.read(dir + "/device/numa_node"); node != "" && node != "-1" && len(m.glob("sys/devices/system/node/node[0-9]*")) > 1 {
		add(checkOK, "on NUMA node "+node+", CPUs "+m.read("sys/devices/system/node/node"+node+"/cpulist"), "")
	}
	if driver == "veth" {
		add(checkWarn, "packets of a local veth peer carry unfinished checksums", "on the other end: sudo ethtool -K PEER tx off")
	}
	return cs
}

func (m *machine) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(m.root, path))
	return err == nil
}

// driver is the kernel driver of an interface, as `ethtool -i` names it.
func (m *machine) driver(dir string) string {
	if l, err := os.Readlink(filepath.Join(m.root, dir, "device/driver")); err == nil {
		return filepath.Base(l)
	}
	if m.ethtool == nil {
		return ""
	}
	return m.ethtool(filepath.Base(dir))
}

// ethtoolDriver asks the kernel; "" where it does not say.
func ethtoolDriver(name string) string {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return ""
	}
	defer e.Close()
	d, err := e.DriverName(name)
	if err != nil {
		return ""
	}
	return d
}
