package plugin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
)

// hostLocalConf is what the drop-in name host-local alone takes from a
// configuration, which is that of the plugin that runs it.
type hostLocalConf struct {
	mainType      string // the running plugin's
	mainSocket    string // that plugin's own keys, of a meaning that only
	mainAutostart bool   // usernet's names share
	autostart     *bool  // the keys of "ipam", which go first
	socket        string
}

// hostLocalProgram stands for the reference IPAM plugin: the daemon leases the
// addresses of interfaces that any other plugin makes.
func hostLocalProgram() *program {
	return &program{
		name: nameHostLocal,
		schema: &schema{
			fields: map[string]field{
				"cniVersion":                fields["cniVersion"],
				"name":                      fields["name"],
				"type":                      ofHostLocal(func(h *hostLocalConf) any { return &h.mainType }),
				"socket":                    ofHostLocal(func(h *hostLocalConf) any { return &h.mainSocket }),
				"autostart":                 ofHostLocal(func(h *hostLocalConf) any { return &h.mainAutostart }),
				"ipam":                      decodeHostLocalIPAM,
				"runtimeConfig":             decodeHostLocalRuntime,
				"args":                      fields["args"],
				"prevResult":                fields["prevResult"],
				"cni.dev/valid-attachments": fields["cni.dev/valid-attachments"],
				"cni.dev/attachments":       fields["cni.dev/attachments"],
			},
			tolerant: true, // the rest is the running plugin's
			defaults: func() config {
				return config{Autostart: true, HostLocal: &hostLocalConf{mainAutostart: true}}
			},
			settle: func(c *config) { c.HostLocal.settle(c) },
		},
		verbs: map[string]verb{
			cmdAdd: (*invocation).lease, cmdDel: (*invocation).release, cmdCheck: (*invocation).checkLease,
			cmdGC: (*invocation).gc, cmdStatus: (*invocation).daemonStatus,
		},
	}
}

// ofHostLocal decodes one key of the running plugin. Where that is another's, the
// key may be anything.
func ofHostLocal(of func(*hostLocalConf) any) field {
	return func(c *config, raw json.RawMessage) error {
		_ = json.Unmarshal(raw, of(c.HostLocal)) // what is of another form is not ours
		return nil
	}
}

// decodeHostLocalIPAM takes the daemon's place besides host-local's keys.
func decodeHostLocalIPAM(c *config, raw json.RawMessage) error {
	var own struct {
		Socket    json.RawMessage `json:"socket"`
		Autostart *bool           `json:"autostart"`
	}
	if err := json.Unmarshal(raw, &own); err != nil {
		return err
	}
	if len(own.Socket) > 0 {
		if err := decodeSocket(c, own.Socket); err != nil {
			return badValue("ipam.socket", own.Socket, err.Error())
		}
	}
	c.HostLocal.socket, c.HostLocal.autostart = c.Socket, own.Autostart
	return decodeHostLocal(c, raw)
}

// decodeHostLocalRuntime takes the two capability arguments that are about
// addresses; the others are judged by whom they are for.
func decodeHostLocalRuntime(c *config, raw json.RawMessage) error {
	var args map[string]json.RawMessage
	if err := json.Unmarshal(raw, &args); err != nil {
		return err
	}
	for _, name := range []string{"ips", "ipRanges"} {
		if value := args[name]; len(value) > 0 && !isEmptyJSON(value) {
			if err := capabilities[name](c, value); err != nil {
				return fieldError("runtimeConfig."+name, value, err)
			}
		}
	}
	return nil
}

// settle finds the daemon: where "ipam" says, or where the running plugin's
// configuration does, if that plugin is one of usernet's.
func (h *hostLocalConf) settle(c *config) {
	c.IPAM.Type = nativeIPAM // there is no other to run
	ours := h.mainType == nameNative || slices.Contains(DropInNames, h.mainType)
	if c.Socket = h.socket; c.Socket == "" && ours {
		c.Socket = h.mainSocket
	}
	c.Autostart = !ours || h.mainAutostart
	if h.autostart != nil {
		c.Autostart = *h.autostart
	}
}

// lease carries out ADD of host-local.
func (i *invocation) lease(ctx context.Context) error {
	ctx, stop := i.interruptible(ctx)
	defer stop()
	args, err := parseArgs(i.params.Args)
	if err != nil {
		return err
	}
	wanted, asked, err := i.conf.wantedIPs(args)
	if err != nil {
		return err
	}
	if len(i.conf.sets()) == 0 {
		return fail(types.ErrInvalidNetworkConfig, `"ipam" has no IP ranges to lease from: give it "ranges", or "subnet"`)
	}
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: i.conf.IPAM.Routes}
	if path := i.conf.IPAM.ResolvConf; path != "" {
		if result.DNS, err = readResolvConf(path); err != nil {
			return badValue("ipam.resolvConf", path, err.Error())
		}
	}
	request := control.LeaseRequest{
		Network: i.conf.Name, Container: i.params.ContainerID, IfName: i.params.IfName,
		BootID: bootID(), Owner: i.caller().name, Sets: i.conf.sets(), IPs: wanted,
		Nonce: rand.Text(), // asked again with, when a daemon goes before it answers
	}
	request.Netns, request.NetnsPath = i.place()
	if i.conf.IPAM.Sticky {
		request.Sticky = args.Sticky
	}
	var l control.Lease
	err = i.withDaemon(ctx, func(ctx context.Context) error {
		var err error
		l, err = i.client.Acquire(ctx, request)
		return err
	})
	if err != nil {
		return i.leaseError(err, asked)
	}
	if len(l.Addrs) == 0 || len(l.Gateways) != len(l.Addrs) {
		return fail(ErrDaemonProtocol, "lease %s: the daemon answered %d addresses and %d gateways", i.key(), len(l.Addrs), len(l.Gateways))
	}
	for n, a := range l.Addrs {
		result.IPs = append(result.IPs, &types100.IPConfig{Address: ipNet(a), Gateway: l.Gateways[n].AsSlice()})
	}
	if err = i.done("lease"); err == nil {
		err = printResult(i.Stdout, result, i.version)
	}
	if err != nil {
		i.undoing(ctx, "lease", func(ctx context.Context) error { return i.leave(ctx, i.client.Release) })
	}
	return err
}

// place says where the container is, as far as it can be seen: an IPAM plugin
// touches nothing there, so that a namespace it cannot open is no fault of its.
func (i *invocation) place() (inode uint64, path string) {
	h, err := netns.Open(i.params.Netns)
	if err != nil {
		return 0, ""
	}
	defer h.Close()
	return h.Inode(), absolute(i.params.Netns)
}

// release carries out DEL of host-local.
func (i *invocation) release(ctx context.Context) error { return i.leave(ctx, i.client.Release) }

// checkLease carries out CHECK of host-local: the lease is there, is of this
// namespace, and is what the result says.
func (i *invocation) checkLease(ctx context.Context) error {
	var l control.Lease
	err := i.withDaemon(ctx, func(ctx context.Context) error {
		var err error
		l, err = i.client.Lease(ctx, i.key())
		return err
	})
	if control.CodeOf(err) == control.CodeNotFound {
		return fail(ErrAttachment, "no address is leased to %s; DEL and ADD make a new one", i.key())
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", i.key(), err)
	}
	if inode, _ := i.place(); l.Netns != 0 && inode != 0 && l.Netns != inode {
		return fail(ErrAttachment, "%v is leased to %s in the namespace net:[%d]; CNI_NETNS=%q is net:[%d]", l.Addrs, i.key(), l.Netns, i.params.Netns, inode)
	}
	prev, err := parseResult(i.conf.PrevResult, i.version)
	if err != nil || prev == nil {
		return err
	}
	for _, a := range l.Addrs {
		if !slices.ContainsFunc(prev.IPs, func(ip *types100.IPConfig) bool {
			has, ok := netip.AddrFromSlice(ip.Address.IP)
			return ok && has.Unmap() == a.Addr()
		}) {
			return fail(ErrAttachment, "%s is leased to %s, which \"prevResult\" does not have", a.Addr(), i.key())
		}
	}
	return nil
}
