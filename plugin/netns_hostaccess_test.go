package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
)

// reachable is a configuration with host access; more replaces keys.
func (b *bed) reachable(more map[string]any) string {
	keys := map[string]any{"hostAccess": map[string]any{"enabled": true}}
	for k, v := range more {
		keys[k] = v
	}
	return b.config(keys)
}

// wantReached sends a ping and a line of TCP from a namespace of the host's to
// each address of a result, whose container is in ctr.
func wantReached(t *testing.T, host, ctr *netns.Handle, r *types100.Result) {
	t.Helper()
	for _, ip := range r.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if out, err := nstest.TryExec(t, host, "ping", "-n", "-c", "1", "-W", "5", addr.String()); err != nil {
			t.Errorf("ping %v: %v\n%s", addr, err, out)
		}
		ln := nstest.Listen(t, ctr, "tcp", netip.AddrPortFrom(addr, 0).String())
		go func() {
			if c, err := ln.Accept(); err == nil {
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		c, err := nstest.Dial(t, host, "tcp", ln.Addr().String())
		if err != nil {
			t.Errorf("dial %v: %v", ln.Addr(), err)
			continue
		}
		// The gateway's address, as a bridge's host has.
		if client, err := io.ReadAll(c); err != nil || string(client) != ip.Gateway.String() {
			t.Errorf("the container saw %s, %v; want the gateway %v", client, err, ip.Gateway)
		}
		c.Close()
		ln.Close()
	}
}

// interfaceIndex is 0 when the namespace has no such interface.
func interfaceIndex(ns *netns.Handle, name string) (index int) {
	_ = ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	})
	return index
}

func mustRun(t *testing.T, b *bed, verb, config string, env ...string) *types100.Result {
	t.Helper()
	r, err := b.run(verb, config, nil, env...)
	if err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	return r
}

// second is the environment of another container, and its namespace.
func second(t *testing.T) (*netns.Handle, []string) {
	ns := nstest.NewNS(t)
	return ns, []string{"CNI_CONTAINERID=c2", "CNI_NETNS=" + nstest.Path(t, ns)}
}

// TestNetnsHostReachesContainers: the first ADD makes the host's side, the second
// uses it, the last DEL takes it away, and its routes with it.
func TestNetnsHostReachesContainers(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	before := b.world("")
	config := b.reachable(nil)
	first := mustRun(t, b, cmdAdd, config)
	if diff := cmp.Diff([]*types100.Interface{
		{Name: "un-web", Mtu: first.Interfaces[1].Mtu},
		{Name: "eth0", Mac: first.Interfaces[1].Mac, Mtu: first.Interfaces[1].Mtu, Sandbox: b.ctrPath},
	}, first.Interfaces); diff != "" {
		t.Errorf("interfaces of the result (-want +got):\n%s", diff)
	}
	if len(first.IPs) != 2 || *first.IPs[0].Interface != 1 || *first.IPs[1].Interface != 1 {
		t.Errorf("addresses %v", first.IPs)
	}
	wantReached(t, b.host, b.ctr, first)
	index := interfaceIndex(b.host, "un-web")
	other, env := second(t)
	two := mustRun(t, b, cmdAdd, config, env...)
	if now := interfaceIndex(b.host, "un-web"); now != index || index == 0 {
		t.Errorf("the host's side was interface %d and is %d", index, now)
	}
	wantReached(t, b.host, other, two)
	withPrev := func(r *types100.Result) string { return b.reachable(map[string]any{"prevResult": r}) }
	mustRun(t, b, cmdCheck, withPrev(first))
	mustRun(t, b, cmdDel, config)
	wantReached(t, b.host, other, two)
	mustRun(t, b, cmdCheck, withPrev(two), env...)
	mustRun(t, b, cmdDel, config, env...)
	after := slices.DeleteFunc(b.world(""), func(line string) bool {
		return strings.HasPrefix(line, "container: tcp") // the test's own, in TIME_WAIT or near it
	})
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after the last DEL the world is not as before:\n%s", diff)
	}
}

// TestNetnsHostSideIsMended: what is left of a host's side that somebody has
// changed, or whose maker was killed half-way, is made anew.
func TestNetnsHostSideIsMended(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := b.reachable(nil)
	first := mustRun(t, b, cmdAdd, config)
	withPrev := b.reachable(map[string]any{"prevResult": first})
	_, env := second(t)
	for name, harm := range map[string]func() error{
		"down":       func() error { return onInterface("un-web", netlink.LinkSetDown) },
		"no address": func() error { return onInterface("un-web", flush) },
		"deleted":    func() error { return netns.DeleteLink("un-web") },
	} {
		nstest.In(t, b.host, harm)
		_, err := b.run(cmdCheck, withPrev, nil)
		wantError(t, err, ErrAttachment, "host")
		mustRun(t, b, cmdAdd, config, env...)
		wantReached(t, b.host, b.ctr, first)
		mustRun(t, b, cmdCheck, withPrev)
		mustRun(t, b, cmdDel, config, env...)
		if t.Failed() {
			t.Fatalf("after %q", name)
		}
	}
	moved := b.reachable(map[string]any{"hostAccess": map[string]any{"enabled": true, "ifname": "elsewhere", "forward": true}})
	mustRun(t, b, cmdAdd, moved, env...)
	wantReached(t, b.host, b.ctr, first)
	if interfaceIndex(b.host, "un-web") != 0 || interfaceIndex(b.host, "elsewhere") == 0 {
		t.Error("the host's side did not follow its new name")
	}
}

func onInterface(name string, fn func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return fn(link)
}

func flush(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL) //nolint:forbidigo // nothing else changes this namespace
	for i := range addrs {
		err = errors.Join(err, netlink.AddrDel(link, &addrs[i]))
	}
	return err
}

// TestNetnsHostSideComesBackAfterTheDaemon: killed, a daemon takes the host's
// side along; the next ADD to its successor makes another.
func TestNetnsHostSideComesBackAfterTheDaemon(t *testing.T) {
	b := newBed(t)
	kill := b.startDaemon()
	config := b.reachable(nil)
	mustRun(t, b, cmdAdd, config)
	kill()
	b.startDaemon()
	ns, env := second(t)
	wantReached(t, b.host, ns, mustRun(t, b, cmdAdd, config, env...))
}

// TestNetnsEachNamespaceOfTheHostHasItsSide: plugins run in different namespaces
// when a runtime is rootless.
func TestNetnsEachNamespaceOfTheHostHasItsSide(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	elsewhere := *b
	elsewhere.host = nstest.NewNS(t)
	config := b.reachable(nil)
	ns, env := second(t)
	first, two := mustRun(t, b, cmdAdd, config), mustRun(t, &elsewhere, cmdAdd, config, env...)
	for _, host := range []*netns.Handle{b.host, elsewhere.host} {
		wantReached(t, host, b.ctr, first)
		wantReached(t, host, ns, two)
	}
	mustRun(t, b, cmdDel, config)
	if interfaceIndex(b.host, "un-web") != 0 || interfaceIndex(elsewhere.host, "un-web") == 0 {
		t.Error("the DEL of the first namespace's last container took the wrong host's side")
	}
	wantReached(t, elsewhere.host, ns, two)
	network, err := b.client.Network(context.Background(), "web")
	if err != nil || len(network.Hosts) != 1 || network.Hosts[0].Netns != elsewhere.host.Inode() {
		t.Errorf("hosts %+v, %v", network.Hosts, err)
	}
}

// TestNetnsHostSideIsMadeOnce: by many ADDs at a time.
func TestNetnsHostSideIsMadeOnce(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	config := b.reachable(nil)
	const many = 6
	var wg sync.WaitGroup
	results, spaces := make([]*types100.Result, many), make([]*netns.Handle, many)
	for i := range many {
		spaces[i] = nstest.NewNS(t)
		path := nstest.Path(t, spaces[i])
		wg.Go(func() {
			var err error
			results[i], err = b.run(cmdAdd, config, nil, fmt.Sprintf("CNI_CONTAINERID=many%d", i), "CNI_NETNS="+path)
			if err != nil {
				t.Errorf("ADD %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, r := range results {
		wantReached(t, b.host, spaces[i], r)
	}
}

// TestNetnsHostAccessRefusesWhatIsInTheWay, in words that say what it is, and
// leaves the world as it was.
func TestNetnsHostAccessRefusesWhatIsInTheWay(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	peer := nstest.NewNS(t)
	name, _ := nstest.Veth(t, b.host, peer, "10.60.1.1/24", "10.60.1.2/24", "fd60::1/64", "fd60::2/64")
	subnets := func(name string, prefixes ...string) map[string]any {
		var ranges []any
		for _, p := range prefixes {
			ranges = append(ranges, []any{map[string]any{"subnet": p}})
		}
		return map[string]any{"name": name, "ipam": map[string]any{"type": "usernet", "ranges": ranges}}
	}
	named := func(ifname string) map[string]any {
		return map[string]any{"hostAccess": map[string]any{"enabled": true, "ifname": ifname}}
	}
	before := b.world("")
	for what, tc := range map[string]struct {
		more map[string]any
		want []string
	}{
		"a route":        {subnets("r4", "10.60.0.0/16"), []string{"route 10.60.1.0/24 dev " + name, "r4"}},
		"an IPv6 route":  {subnets("r6", "10.61.0.0/24", "fd60::/64"), []string{"route fd60::/64 dev " + name}},
		"an address":     {subnets("a4", "10.60.1.0/28"), []string{"address 10.60.1.1 dev " + name}},
		"an interface":   {named(name), []string{name, "veth", "ip link delete"}},
		"the loopback":   {named("lo"), []string{"lo"}},
		"no name at all": {named("a b"), []string{"hostAccess.ifname", "a b"}},
	} {
		_, err := b.run(cmdAdd, b.reachable(tc.more), nil)
		if err == nil {
			t.Fatalf("%s: ADD succeeded", what)
		}
		wantError(t, err, 7, tc.want...)
		if diff := cmp.Diff(before, b.world("")); diff != "" {
			t.Errorf("%s: the world is not as before:\n%s", what, diff)
		}
	}
	_, err := b.run(cmdAdd, b.reachable(map[string]any{"hostAccess": map[string]any{"enabled": true, "ifnam": "x"}}), nil)
	if err == nil || !strings.Contains(err.Error(), "ifnam") {
		t.Errorf("a misspelt key: %v", err)
	}
}

// TestNetnsHostAccessOfAnotherDaemon: two daemons do not fight over one name.
func TestNetnsHostAccessOfAnotherDaemon(t *testing.T) {
	b, other := newBed(t), newBed(t)
	b.startDaemon()
	other.host = b.host
	other.startDaemon()
	config := b.reachable(nil)
	first := mustRun(t, b, cmdAdd, config)
	start := time.Now()
	_, err := other.run(cmdAdd, other.reachable(nil), nil)
	wantError(t, err, 7, "un-web", "another daemon", other.socket)
	if time.Since(start) < hostGrace {
		t.Error("it did not wait for the end of a daemon that was killed")
	}
	wantReached(t, b.host, b.ctr, first)
}

// TestNetnsBridgeReachesByDefault: as behind the reference bridge, under the
// bridge's name.
func TestNetnsBridgeReachesByDefault(t *testing.T) {
	b := newBed(t)
	b.startDaemon()
	conf := func(more map[string]any) string {
		keys := map[string]any{"type": "bridge", "bridge": "cni-web", "isGateway": true, "ipMasq": true}
		for k, v := range more {
			keys[k] = v
		}
		return b.config(keys)
	}
	for name, tc := range map[string]struct {
		more map[string]any
		want bool
	}{
		"gateway":    {nil, true},
		"no gateway": {map[string]any{"isGateway": false}, false},
		"turned off": {map[string]any{"hostAccess": map[string]any{"enabled": false}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := b.runAs(nameBridge, cmdAdd, conf(tc.more), nil)
			if err != nil {
				t.Fatal(err)
			}
			if has := interfaceIndex(b.host, "cni-web") != 0; has != tc.want {
				t.Errorf("the host has cni-web: %v, want %v", has, tc.want)
			}
			if tc.want {
				wantReached(t, b.host, b.ctr, r)
			}
			if _, err := b.runAs(nameBridge, cmdDel, conf(tc.more), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}
