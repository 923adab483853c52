package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/undo"
)

// undoPatience bounds each step back, which runs on after the request for the
// step forth was cancelled.
const undoPatience = 10 * time.Second

// adding is an ADD on its way; each step fills in what the next ones need.
type adding struct {
	*invocation
	undo undo.List

	asked  []string // keys that addresses were asked for with
	mac    net.HardwareAddr
	prev   *types100.Result
	own    *netns.Handle // the plugin's own namespace
	target *netns.Handle // the container's

	leased  *types100.Result // the IPAM plugin's result; nil: none was run
	request control.AttachRequest
	tun     *os.File     // or TAP
	moved   func() error // waits for the end of the device's move; nil: it is not moved
	sockets []*os.File   // of request.Publications, as opened.files
	link    *control.Attachment
	joined  func() error // waits for the end of the host's joining; nil: none is wanted
	iface   netns.Interface
	made    outcome

	hostSide netns.Interface // of the host on the network, once joined
}

// add carries out ADD; see the package comment for the order and the reasons.
func (i *invocation) add(ctx context.Context) error {
	ctx, stop := i.interruptible(ctx)
	defer stop()
	a := &adding{invocation: i}
	defer a.close()
	defer a.undo.Run() // nothing after Keep
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"judge", a.judge},
		{"namespace", a.openNamespace},
		{"device", a.makeDevice},
		{"ipam", a.runIPAM},
		{"listen", a.openPorts},
		{"attach", a.attach},
		{"move", a.awaitDevice},
		{"configure", a.configure},
		{"dhcp", a.askDHCP},
		{"sysctl", a.setSysctls},
		{"verify", a.verify},
		{"host", a.awaitHost},
		{"commit", a.commit},
		{"print", a.print},
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return fail(types.ErrTryAgainLater, "ADD was interrupted before the step %q; everything was taken back", step.name)
		}
		if err := step.run(ctx); err != nil {
			return err
		}
		if err := i.done(step.name); err != nil {
			return err
		}
	}
	a.undo.Keep()
	return nil
}

// close lets go of the invocation's own descriptors; what was handed over
// lives on at the daemon.
func (a *adding) close() {
	if a.link != nil {
		a.link.Close()
	}
	closeAll(a.sockets)
	if a.tun != nil {
		a.tun.Close()
	}
	for _, h := range []*netns.Handle{a.target, a.own} {
		if h != nil {
			h.Close()
		}
	}
}

// judge turns the configuration into a request, without touching anything.
func (a *adding) judge(context.Context) error {
	args, err := parseArgs(a.params.Args)
	if err != nil {
		return err
	}
	if a.mac, err = a.conf.wantedMAC(args); err != nil {
		return err
	}
	if a.mac == nil {
		a.mac = randomMAC()
	}
	var wanted []netip.Addr
	if wanted, a.asked, err = a.conf.wantedIPs(args); err != nil {
		return err
	}
	if args.Gateway != "" && a.conf.IPAM.leasedByDaemon() {
		return unsupported("CNI_ARGS GATEWAY", args.Gateway, `the gateway comes from "ipam": set it there as "gateway" of a range`)
	}
	if a.prev, err = parseResult(a.conf.PrevResult, a.version); err != nil {
		return err
	}
	a.request = control.AttachRequest{
		Network: a.conf.Name, Container: a.params.ContainerID, IfName: a.params.IfName,
		Owner: a.caller().name, Internal: a.conf.Internal, MTU: a.conf.MTU, Device: a.conf.Device, Bandwidth: a.conf.bandwidth(),
		PolicyWishes: a.conf.Policy, NoOwnPorts: a.conf.Bridge.noOwnPorts(),
		Hostname: args.Hostname, Aliases: a.conf.Runtime.Aliases,
		DNS: dnsRequest(a.conf.dns()), BootID: bootID(),
	}
	if a.conf.tap() {
		a.request.MAC = a.mac.String()
	}
	return a.judgeIPAM(args, wanted)
}

// judgeIPAM says in the request where addresses come from.
func (a *adding) judgeIPAM(args cniArgs, wanted []netip.Addr) error {
	switch {
	case !a.conf.IPAM.leasedByDaemon():
		return nil
	case a.conf.IPAM.Type == noIPAM && len(wanted) > 0:
		return fail(types.ErrInvalidNetworkConfig, "address %s is asked for, and the configuration has no \"ipam\" to lease it from", wanted[0])
	case a.conf.IPAM.Type == noIPAM:
		a.request.Unaddressed = true
		return nil
	}
	a.request.Sets, a.request.IPs = a.conf.sets(), wanted
	if a.conf.IPAM.Sticky {
		a.request.Sticky = args.Sticky
	}
	if a.conf.IPAM.ResolvConf != "" && a.request.DNS == nil {
		dns, err := readResolvConf(a.conf.IPAM.ResolvConf)
		if err != nil {
			return badValue("ipam.resolvConf", a.conf.IPAM.ResolvConf, err.Error())
		}
		a.request.DNS = dnsRequest(dns)
	}
	return nil
}

// bootID tells this boot from others; "" where it cannot be known.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// openNamespace opens the container's namespace, once: CNI_NETNS may be a path
// by way of a process that is another one a moment later.
func (a *adding) openNamespace(context.Context) error {
	var err error
	if a.own, err = netns.Current(); err != nil {
		return fmt.Errorf("open the plugin's own network namespace: %w", err)
	}
	if a.target, err = openNetns(a.params.Netns); err != nil {
		return err
	}
	if a.target.Equal(a.own) && !a.params.NetnsOverride {
		return fail(types.ErrInvalidNetNS,
			"CNI_NETNS=%q is the namespace that the plugin itself runs in; give the container one of its own, or set CNI_NETNS_OVERRIDE=1",
			a.params.Netns)
	}
	a.request.Netns, a.request.NetnsPath = a.target.Inode(), absolute(a.params.Netns)
	if a.conf.HostAccess.Enabled {
		if a.target.Equal(a.own) {
			return unsupported("hostAccess.enabled", true, "CNI_NETNS is the host's own namespace, which has the container's addresses itself; set it to false")
		}
		a.request.HostNetns = a.own.Inode()
	}
	return nil
}

// nameTaken is the error of an interface name that the container has already.
func (a *adding) nameTaken() error {
	return fail(types.ErrInvalidEnvironmentVariables,
		"CNI_IFNAME=%q: CNI_NETNS=%q has an interface of this name already; DEL it first or choose another name",
		a.params.IfName, a.params.Netns)
}

// absolute is a path that means the same to the daemon, or "" for one that
// would not: of this very process.
func absolute(path string) string {
	if strings.HasPrefix(path, "/proc/self/") || strings.HasPrefix(path, "/proc/thread-self/") {
		return ""
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	return path
}

// openNetns opens CNI_NETNS and says what is wrong with it.
func openNetns(path string) (*netns.Handle, error) {
	h, err := netns.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(types.ErrInvalidNetNS, "CNI_NETNS=%q: no such file; is the container still there?", path)
	case errors.Is(err, netns.ErrNotNetns):
		return nil, fail(types.ErrInvalidNetNS,
			"CNI_NETNS=%q is not a network namespace; want a path like /run/netns/NAME or /proc/PID/ns/net", path)
	case err != nil:
		return nil, fail(types.ErrInvalidNetNS, "CNI_NETNS=%q: %v", path, err)
	}
	return h, nil
}

// runIPAM has an IPAM plugin allocate, when the configuration names one. DHCP
// comes later: it needs the interface.
func (a *adding) runIPAM(ctx context.Context) error {
	d, err := a.ipam()
	if d == nil || err != nil || a.conf.IPAM.dhcp() {
		return err
	}
	// On failure too: SPEC.md section 4 has the plugin's DEL clean up after it.
	a.undo.Add(func() {
		ctx, cancel := undoContext(ctx)
		defer cancel()
		if err := d.run(ctx, cmdDel); err != nil {
			fmt.Fprintf(a.Stderr, "usernet-cni: undo: %v\n", err)
		}
	})
	if a.leased, err = d.add(ctx); err != nil {
		return err
	}
	if len(a.leased.IPs) == 0 {
		return fail(types.ErrInvalidNetworkConfig,
			"ADD of the IPAM plugin %s returned no address; the switch forwards IP and cannot do without", d.path)
	}
	for _, ip := range a.leased.IPs {
		addr, err := prefix(ip.Address)
		if err != nil {
			return fail(types.ErrDecodingFailure, "ADD of the IPAM plugin %s: address: %v", d.path, err)
		}
		gw, _ := netip.AddrFromSlice(ip.Gateway) // invalid when there is none
		a.request.Addrs = append(a.request.Addrs, addr)
		if gw = gw.Unmap(); gw.IsValid() {
			a.request.Gateways = append(a.request.Gateways, gw)
		}
	}
	if a.request.DNS == nil {
		if err := checkNameservers("dns.nameservers", a.leased.DNS.Nameservers); err != nil {
			return fmt.Errorf("ADD of the IPAM plugin %s: %w", d.path, err)
		}
		a.request.DNS = dnsRequest(a.leased.DNS)
	}
	return nil
}

// undoContext outlives the request, for a while.
func undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
}

// openPorts opens the host side of the port mappings. Closing it again is
// close's, which runs in any case.
func (a *adding) openPorts(ctx context.Context) error {
	if len(a.conf.Runtime.PortMappings) == 0 || a.conf.Publish.Mode == publishNone {
		return nil
	}
	have, err := a.families(ctx)
	if err != nil {
		return err
	}
	a.request.Publications, a.sockets, err = a.openMappings(ctx, have)
	return err
}

// families returns the address families that the container is going to have.
func (a *adding) families(ctx context.Context) (families, error) {
	var have families
	for _, p := range a.request.Addrs {
		have.add(p.Addr())
	}
	for _, set := range a.request.Sets {
		have.add(set[0].Subnet.Addr())
	}
	if have != (families{}) {
		return have, nil
	}
	// No range is configured: the network is the daemon's.
	err := a.withDaemon(ctx, func(ctx context.Context) error {
		n, err := a.client.Network(ctx, a.conf.Name)
		for _, gw := range n.Gateways {
			have.add(gw.Addr())
		}
		return err
	})
	if control.CodeOf(err) == control.CodeNotFound {
		err = noNetwork(err)
	}
	return have, err
}

// noNetwork adds the configuration's remedy to the daemon's own.
func noNetwork(err error) error {
	return fmt.Errorf("%w; or give the key \"ipam\" with \"ranges\", from which the network is made as needed", err)
}

// attach hands the descriptors over and gets the addresses.
func (a *adding) attach(ctx context.Context) error {
	err := a.withDaemon(ctx, a.tryAttach)
	if control.CodeOf(err) == control.CodeUnwatched {
		if err = a.unpin(); err != nil {
			return err
		}
		err = a.withDaemon(ctx, a.tryAttach)
	}
	if err != nil {
		return a.leaseError(err, a.asked)
	}
	a.undo.Add(func() {
		// Closing the connection would do it too, a moment later: too late for a
		// runtime that tries again at once.
		// A daemon that died after its commit has the link on record, so that
		// one that is not there is left a tombstone.
		ctx, cancel := undoContext(ctx)
		defer cancel()
		if err := a.detach(ctx); err != nil {
			fmt.Fprintf(a.Stderr, "usernet-cni: undo: %v\n", err)
		}
	})
	a.startHost(ctx)
	return nil
}

func (a *adding) tryAttach(ctx context.Context) (err error) {
	a.link, err = a.client.Attach(ctx, a.request, append([]*os.File{a.tun}, a.sockets...)...)
	return err
}

// leaseError adds to the daemon's words, which name the value and who holds it,
// the key that the value comes from and what to do. asked are the keys that
// addresses were asked for with.
func (i *invocation) leaseError(err error, asked []string) error {
	switch control.CodeOf(err) {
	case control.CodeNotFound:
		return noNetwork(err)
	case control.CodeAddressInUse:
		return fmt.Errorf("%w; %s: ask for another address, or DEL its holder first", err, i.addressKey(asked))
	case control.CodeOutOfRange:
		return fmt.Errorf("%w; %s: ask for an address of the ranges that is no gateway, or for none to get a free one", err, i.addressKey(asked))
	case control.CodeExhausted:
		return fmt.Errorf("%w; DEL containers, let the runtime collect garbage (GC), or widen %s", err, i.rangesKey())
	}
	return err
}

// addressKey says where wanted addresses were asked for.
func (i *invocation) addressKey(asked []string) string {
	if len(asked) == 0 {
		return i.rangesKey()
	}
	return strings.Join(asked, " and ")
}

// rangesKey says where the ranges come from.
func (i *invocation) rangesKey() string {
	switch {
	case i.conf.IPAM.delegated():
		return fmt.Sprintf("the ranges of the IPAM plugin %q", i.conf.IPAM.Type)
	case len(i.conf.Runtime.IPRanges) > 0:
		return `"runtimeConfig.ipRanges"`
	case len(i.conf.IPAM.Sets) > 0:
		return `"ipam.ranges"`
	}
	return fmt.Sprintf("the ranges of the daemon's network %s", i.conf.Name)
}

// configure gives the device in the container what the daemon has answered.
func (a *adding) configure(ctx context.Context) error {
	reply := &a.link.Reply
	if (len(reply.Addrs) == 0) != a.request.Unaddressed || len(reply.Gateways) != len(reply.Addrs) {
		return fail(ErrDaemonProtocol, "attach %s: the daemon answered %d addresses and %d gateways",
			a.key(), len(reply.Addrs), len(reply.Gateways))
	}
	a.made = outcome{
		ifName: a.params.IfName, sandbox: a.params.Netns, mac: a.mac.String(), mtu: reply.MTU,
		addrs: reply.Addrs, gateways: reply.Gateways, dns: a.resultDNS(),
	}
	err := lockNetns(ctx, a.target) // until verify, or close
	if err != nil {
		return err
	}
	if a.conf.IPAM.dhcp() {
		a.iface, err = a.bare()
	} else {
		err = a.plan()
	}
	if err != nil {
		return err
	}
	// What the host forwards goes on to clients far away, end to end.
	a.iface.Unpaced = !a.conf.HostAccess.Forward
	if err := a.target.Do(func() error { return netns.Configure(a.iface) }); err != nil {
		return fmt.Errorf("configure %s in CNI_NETNS=%q: %w", a.params.IfName, a.params.Netns, err)
	}
	return nil
}

// verify looks at the container from inside: a result must not promise what is
// not there.
func (a *adding) verify(context.Context) error {
	err := a.target.Do(func() error {
		return errors.Join(netns.Verify(a.iface), a.conf.checkSysctls(a.params.IfName))
	})
	if err != nil {
		return fmt.Errorf("verify %s in CNI_NETNS=%q: %w", a.params.IfName, a.params.Netns, err)
	}
	return unlockNetns(a.target)
}

// commit lets the link outlive this process.
func (a *adding) commit(ctx context.Context) error {
	if err := a.link.Commit(ctx); err != nil {
		return fmt.Errorf("commit %s: %w", a.key(), err)
	}
	return nil
}

// print writes the result. A runtime that cannot read it will not have the
// container, so that even this can fail and be taken back.
func (a *adding) print(context.Context) error {
	return printResult(a.Stdout, a.made.result(a.prev), a.version)
}
