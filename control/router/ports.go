package router

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"millrace/control/config"
	"millrace/fib"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/kernelif"
)

// port is a port of the configuration, open or not.
type port struct {
	cfg  config.Port
	host string // "kernel", "tap" or "builtin"
	main *iface
	subs []*iface // VLANs

	dev    pmd.Port // nil while it is not open
	idx    uint16   // in the pipeline
	tap    pmd.Port // shows it to the kernel; nil for none
	tapIdx uint16
	link   pmd.Link // as last seen

	groups   []pmd.Group // multicast that the filter of groupsOf takes
	groupsOf pmd.Port

	err  error     // why it is not open
	next time.Time // when to try again
}

// iface is a port or a VLAN of one.
type iface struct {
	id           uint16
	name         string
	port         *port
	outer, inner uint16
	index        int            // the kernel's interface with its addresses; 0 for none
	conf         []netip.Prefix // addresses from the configuration
	given        []netip.Prefix // of these: added to the kernel's interface
	made         bool           // the kernel's VLAN was made for it
	vrf, check   string         // of the configuration: VRF and reverse-path check; "" for the kernel's
	wanted       bool           // the configuration names it; else it follows from the kernel's
}

// retryPort is the time between two attempts to open a port.
const retryPort = time.Second

func (r *Router) newIface(name string, p *port) *iface {
	id, ok := r.ids[name]
	if !ok && len(r.ids)+1 < graph.MaxIfaces {
		id, ok = uint16(len(r.ids)+1), true
	} else if !ok { // one whose interface is gone
		for old, n := range r.ids {
			if r.ifaces[n] == nil {
				delete(r.ids, old)
				id, ok = n, true
				break
			}
		}
	}
	if !ok {
		return nil
	}
	r.ids[name] = id
	i := &iface{id: id, name: name, port: p}
	r.ifaces[id] = i
	r.publishNames()
	return i
}

func (r *Router) publishNames() {
	m := map[uint16]string{}
	for id, i := range r.ifaces {
		m[id] = i.name
	}
	r.tables.Names.Store(&m)
}

func (r *Router) newPort(c config.Port) *port {
	p := &port{cfg: c, host: hostOf(&c, c.Driver)}
	p.main = r.newIface(c.Name, p)
	p.main.conf = c.Addresses
	return p
}

// hostOf says who has the port's addresses. A TAP as a port is a wire to the kernel, not
// its view of the port.
func hostOf(c *config.Port, driver string) string {
	if driver == "" && c.Host == "" {
		return "kernel"
	}
	if driver == "tap" && c.Host == "" {
		return "builtin"
	}
	return c.HostFor(driver)
}

// openAll opens the ports for the first time. It is an error where none can be.
func (r *Router) openAll() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, p := range r.ports {
		if err := r.openPort(p); err != nil {
			errs = append(errs, err)
			if len(r.ports) > 1 {
				r.log.Error("port", zap.String("port", p.cfg.Name), zap.Error(err))
			}
		}
	}
	if len(errs) == len(r.ports) {
		return fmt.Errorf("no port could be opened: %w", errors.Join(errs...))
	}
	r.syncStatic()
	return nil
}

func (r *Router) openPort(p *port) (err error) {
	defer func() {
		p.err = err
		if err != nil {
			p.next = time.Now().Add(retryPort)
		}
	}()
	c := &p.cfg
	pc := pmd.Config{
		Name: c.Name, Driver: c.Driver, Queues: c.Queues, Ring: c.Ring, MTU: c.MTU, MAC: pmd.MAC(c.MAC), Pool: r.pool,
		Socket: c.Socket, Role: c.Role, ID: c.ID, Secret: c.Secret, Read: c.Read, Write: c.Write, Loop: int(c.Loop), Rate: float64(c.Rate),
		Mode: c.Mode,
	}
	if c.Driver == "" || c.Driver == "afxdp" || c.Driver == "afpacket" {
		pc.Whole = c.Host == "builtin"
	}
	if c.Driver == "memif" && c.Role == "" {
		pc.Role = "server"
	}
	var dev pmd.Port
	if c.Driver == "" {
		dev, err = kernelif.Open(pc)
	} else {
		var d pmd.Driver
		if d, err = pmd.Lookup(c.Driver); err == nil {
			dev, err = d.Open(pc)
		}
	}
	if err != nil {
		return err
	}
	p.dev, p.host = dev, hostOf(c, dev.Driver())
	if p.host == "kernel" {
		r.bind(p.main, dev.Caps().Kernel)
	}
	r.setLocal(dev)
	p.link = dev.Link()
	r.fill(p.main, false)
	if p.idx, err = r.pipe.AddPort(dev, p.main.id); err != nil {
		p.dev = nil
		return errors.Join(err, dev.Close())
	}
	if p.host == "tap" {
		err = r.openTap(p)
	}
	if err == nil {
		err = r.syncVlans(p)
	}
	if err == nil {
		err = r.syncAddrs(p.main)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("port %s: %w", c.Name, err), r.closePort(p, true))
	}
	r.refresh(p)
	r.multicast.changed = true
	r.log.Info("port open", zap.String("port", c.Name), zap.String("driver", dev.Driver()), zap.String("mode", dev.Caps().Mode),
		zap.Int("queues", dev.Caps().Queues), zap.String("host", p.host), zap.Strings("why", dev.Why()))
	return nil
}

// openTap shows the port to the kernel.
func (r *Router) openTap(p *port) error {
	d, err := pmd.Lookup("tap")
	if err != nil {
		return fmt.Errorf("host: tap: %w", err)
	}
	mtu := p.link.MTU
	if p.tap, err = d.Open(pmd.Config{Name: p.cfg.Name, Driver: "tap", Queues: 1, MTU: mtu, MAC: p.link.MAC, Pool: r.pool}); err != nil {
		return err
	}
	if p.tapIdx, err = r.pipe.AddTap(p.tap, p.idx); err != nil {
		return err
	}
	l, err := r.links.LinkByName(p.cfg.Name)
	if err != nil {
		return fmt.Errorf("TAP: %w", err)
	}
	if err := r.links.LinkSetUp(l); err != nil {
		return fmt.Errorf("TAP: %w", err)
	}
	r.bind(p.main, l.Attrs().Index)
	return nil
}

// bind says which interface of the kernel has the addresses of ours.
func (r *Router) bind(i *iface, index int) {
	if i.index == index {
		return
	}
	if r.byIndex[i.index] == i {
		delete(r.byIndex, i.index)
	}
	for k := range r.neighs {
		if k.iface == i.id {
			delete(r.neighs, k)
			if _, fixed := r.pinned[k]; !fixed {
				r.note(r.fib.DelNeighbour(k.iface, k.addr))
			}
		}
	}
	i.index = index
	i.given = nil
	clear(r.ways)
	if index != 0 {
		r.byIndex[index] = i
		if r.follower != nil {
			r.follower.Neighbours()
		}
	}
	r.recheckSources()
}

// closePort takes a port off the pipeline. With undo, what the configuration added to the kernel goes too.
func (r *Router) closePort(p *port, undo bool) error {
	var errs []error
	for _, i := range append(slices.Clone(p.subs), p.main) {
		if undo && i.index != 0 {
			for _, a := range i.given {
				if err := r.links.AddrDel(linkOf(i.index), addrOf(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
					errs = append(errs, fmt.Errorf("port %s: address %s: %w", i.name, a, err))
				}
			}
			i.given = nil
		}
		if p.dev != nil {
			r.tables.Ifaces[i.id].Flags &^= graph.IfUp
			r.note(r.fib.SetIface(i.id, r.ifaceOptions()))
		}
		if i != p.main {
			errs = append(errs, r.dropVlan(i, undo))
		}
	}
	p.subs = nil
	if p.host != "kernel" || undo {
		r.bind(p.main, 0)
	}
	if p.tap != nil {
		if p.tapIdx != 0 {
			r.pipe.RemovePort(p.tapIdx)
		}
		errs = append(errs, p.tap.Close())
		p.tap, p.tapIdx = nil, 0
	}
	if p.dev != nil {
		if p.idx != 0 {
			r.pipe.RemovePort(p.idx)
		}
		if err := p.dev.Close(); err != nil && !p.link.Gone {
			errs = append(errs, err)
		}
		p.dev, p.idx = nil, 0
	}
	r.publishAddrs()
	return errors.Join(errs...)
}

// tend looks at a port: is its device there, has its link changed?
func (r *Router) tend(p *port, now time.Time) {
	if p.dev != nil {
		l := p.dev.Link()
		k := p.dev.Caps().Kernel
		if l.Gone || k != 0 && p.host == "kernel" && p.main.index != k {
			r.log.Warn("the device is gone", zap.String("port", p.cfg.Name))
			p.link.Gone = true
			if err := r.closePort(p, false); err != nil {
				r.log.Error("closing", zap.String("port", p.cfg.Name), zap.Error(err))
			}
			p.err, p.next = errors.New("the device was removed; it is opened again when it comes back"), now
		} else if l != p.link {
			p.link = l
			r.refresh(p)
		}
	}
	if p.dev != nil || now.Before(p.next) {
		return
	}
	if p.host == "kernel" && p.cfg.Driver == "" || p.link.Gone {
		// Ask the kernel before a driver does: it is cheaper and says less in the log.
		if _, err := r.links.LinkByName(p.cfg.Name); err != nil && p.host == "kernel" {
			p.next = now.Add(retryPort)
			return
		}
	}
	before := p.err
	if err := r.openPort(p); err != nil {
		if before == nil || before.Error() != err.Error() {
			r.log.Error("port", zap.String("port", p.cfg.Name), zap.Error(err))
		}
		return
	}
	r.syncStatic()
	if r.follower != nil {
		r.follower.Replay()
	}
}

// refresh brings what the data plane knows of the port's interfaces up to date.
func (r *Router) refresh(p *port) {
	for _, i := range append([]*iface{p.main}, p.subs...) {
		r.fill(i, true)
		r.note(r.fib.SetIface(i.id, r.ifaceOptions()))
	}
	r.freeTables()
}

func (r *Router) ifaceOptions() fib.IfaceOptions {
	return fib.IfaceOptions{Redirect: r.cfg.ICMP.Redirects}
}

// fill writes an interface's entry in the tables; up says whether it may be up.
func (r *Router) fill(i *iface, up bool) {
	p := i.port
	i.configure(&p.cfg)
	e := r.tables.Ifaces[i.id]
	e.MAC, e.MTU = pipeline.MACWord(p.link.MAC), uint16(min(p.link.MTU, 65535))
	e.Outer, e.Inner, e.Flags = i.outer, i.inner, r.checkFlags(i)
	table, room := r.hotTable(i)
	e.Table = table
	if i != p.main {
		e.Port = p.idx
	}
	k, follows := r.known[i.index]
	if i.index != 0 && follows {
		if i != p.main {
			e.MAC = pipeline.MACWord(k.MAC)
		}
		if p.host == "kernel" || i != p.main {
			e.MTU = uint16(min(k.MTU, 65535))
		}
	}
	if up && room && p.dev != nil && p.link.Up && !p.link.Gone && (i.index == 0 || !follows || k.Up) {
		e.Flags |= graph.IfUp
	}
	if len(p.subs) != 0 {
		e.Flags |= graph.IfVlans
	}
	if p.host == "kernel" {
		e.Flags |= graph.IfKernel
		if p.dev != nil && !p.dev.Caps().Filtered {
			e.Flags |= graph.IfSeesAll
		}
	}
	r.tables.Ifaces[i.id] = e
}

// linkOf and addrOf are what the netlink library wants.
func linkOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func addrOf(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // it would be without an address at first, and the built-in host does none either
	}
	return a
}

// syncAddrs gives the interface's addresses of the configuration to the kernel, or to the
// built-in host, and takes those away that it no longer has.
func (r *Router) syncAddrs(i *iface) error {
	if i.port.host == "builtin" {
		r.publishAddrs()
		return r.syncConnected()
	}
	if i.index == 0 {
		return nil
	}
	var errs []error
	i.given = slices.DeleteFunc(i.given, func(a netip.Prefix) bool {
		if slices.Contains(i.conf, a) {
			return false
		}
		if err := r.links.AddrDel(linkOf(i.index), addrOf(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
		}
		return true
	})
	for _, a := range i.conf {
		if slices.Contains(i.given, a) {
			continue
		}
		err := r.links.AddrAdd(linkOf(i.index), addrOf(a))
		if errors.Is(err, unix.EEXIST) {
			continue // it has it already, and keeps it
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("address %s on %s: %w", a, i.name, err))
			continue
		}
		i.given = append(i.given, a)
	}
	return errors.Join(errs...)
}

// syncVlans makes the VLANs that the configuration names, and drops those it names no more.
func (r *Router) syncVlans(p *port) error {
	for _, i := range slices.Clone(p.subs) {
		if i.wanted && !slices.ContainsFunc(p.cfg.Vlans, func(v config.Vlan) bool {
			return v.Name == i.name && v.ID == i.outer && v.Inner == i.inner
		}) {
			if err := r.dropVlan(i, true); err != nil {
				return err
			}
		}
	}
	for _, v := range p.cfg.Vlans {
		at := slices.IndexFunc(p.subs, func(i *iface) bool { return i.outer == v.ID && i.inner == v.Inner })
		var i *iface
		if at >= 0 {
			i = p.subs[at]
		} else if i = r.addVlan(p, v.Name, v.ID, v.Inner); i == nil {
			return fmt.Errorf("VLAN %s: more than %d interfaces", v.Name, graph.MaxIfaces-1)
		}
		i.wanted, i.conf = true, v.Addresses
		if p.host != "builtin" && i.index == 0 {
			index, made, err := r.makeVlan(p, v)
			if err != nil {
				return fmt.Errorf("VLAN %s: %w", v.Name, err)
			}
			i.made = made
			r.bind(i, index)
		}
		if err := r.syncAddrs(i); err != nil {
			return err
		}
	}
	return nil
}

// addVlan makes a sub-interface of a port.
func (r *Router) addVlan(p *port, name string, outer, inner uint16) *iface {
	i := r.newIface(name, p)
	if i == nil {
		return nil
	}
	i.outer, i.inner = outer, inner
	p.subs = append(p.subs, i)
	r.publishVlans()
	return i
}

func (r *Router) dropVlan(i *iface, undo bool) error {
	p := i.port
	p.subs = slices.DeleteFunc(p.subs, func(o *iface) bool { return o == i })
	r.tables.Ifaces[i.id].Flags &^= graph.IfUp
	r.note(r.fib.DelIface(i.id))
	r.publishVlans()
	index := i.index
	r.bind(i, 0)
	delete(r.ifaces, i.id)
	r.publishNames()
	if undo && i.made && index != 0 {
		if err := r.links.LinkDel(linkOf(index)); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("VLAN %s: %w", i.name, err)
		}
	}
	return nil
}

// makeVlan finds or makes the kernel's interface of a VLAN.
func (r *Router) makeVlan(p *port, v config.Vlan) (index int, made bool, err error) {
	if l, err := r.links.LinkByName(v.Name); err == nil {
		if l.Type() != "vlan" {
			return 0, false, fmt.Errorf("there is an interface %s already, of type %s", v.Name, l.Type())
		}
		return l.Attrs().Index, false, nil
	}
	parent, proto := p.main.index, netlink.VLAN_PROTOCOL_8021Q
	add := func(name string, id uint16, proto netlink.VlanProtocol) (int, error) {
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = name, parent
		if err := r.links.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: int(id), VlanProtocol: proto}); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || strings.Contains(err.Error(), "not supported") {
				err = fmt.Errorf("this kernel has no VLAN interfaces (module 8021q): %w", err)
			}
			return 0, err
		}
		l, err := r.links.LinkByName(name)
		if err != nil {
			return 0, err
		}
		return l.Attrs().Index, r.links.LinkSetUp(l)
	}
	id := v.ID
	if v.Inner != 0 {
		outer := fmt.Sprintf("%.8s.s%d", p.cfg.Name, v.ID)
		if l, err := r.links.LinkByName(outer); err == nil {
			parent = l.Attrs().Index
		} else if parent, err = add(outer, v.ID, netlink.VLAN_PROTOCOL_8021AD); err != nil {
			return 0, false, err
		}
		id = v.Inner
	}
	index, err = add(v.Name, id, proto)
	return index, err == nil, err
}

func (r *Router) publishVlans() {
	m := map[uint64]uint16{}
	for _, p := range r.ports {
		if p.idx == 0 {
			continue
		}
		for _, i := range p.subs {
			m[pipeline.VlanKey(p.idx, i.outer, i.inner)] = i.id
		}
	}
	r.tables.Vlans.Store(&m)
}
