package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
)

// bridge is the kernel: bridge, veth, masquerading and DNAT. Its devices have
// usernet's MTU, so that containers can be compared that speak with each other;
// towards the outside the routes have Ethernet's.
type bridge struct{}

func (*bridge) Name() string    { return "bridge" }
func (*bridge) Missing() string { return missing("nft", "nftables") }

func (*bridge) Traits() Traits {
	return Traits{MTU: largeMTU, Egress: true, V6: true, Publish: true, Peers: []string{"10.66.0.2", "10.66.0.3"}}
}

func (*bridge) Version() string {
	out, err := exec.Command("nft", "--version").Output()
	if err != nil {
		return unknown
	}
	return firstLine(string(out))
}

func (b *bridge) Up(ctx context.Context, t *Topology) error {
	rules := fmt.Sprintf(`add table inet bench
add chain inet bench post { type nat hook postrouting priority 100; }
add rule inet bench post oifname up0 masquerade
add chain inet bench pre { type nat hook prerouting priority -100; }
add rule inet bench pre ip daddr %s tcp dport %d dnat ip to 10.66.0.2:%d`, hostV4, publishedPort, publishedPort)
	steps := [][]string{
		{"ip", "-n", t.Host, "link", "add", "br0", "type", "bridge"},
		{"ip", "-n", t.Host, "addr", "add", "10.66.0.1/24", "dev", "br0"},
		{"ip", "-n", t.Host, "addr", "add", "fd66::1/64", "dev", "br0", "nodad"},
		{"ip", "-n", t.Host, "link", "set", "br0", "up"},
		in(t.Host, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"),
		in(t.Host, "nft", rules),
	}
	large, ethernet := strconv.Itoa(largeMTU), strconv.Itoa(ethernetMTU)
	for i, c := range t.Containers {
		port := fmt.Sprintf("port%d", i)
		steps = append(steps, [][]string{
			{"ip", "-n", t.Host, "link", "add", port, "mtu", large, "type", "veth", "peer", "name", "eth0", "mtu", large, "netns", c},
			{"ip", "-n", t.Host, "link", "set", port, "master", "br0", "up"},
			{"ip", "-n", c, "addr", "add", fmt.Sprintf("10.66.0.%d/24", i+2), "dev", "eth0"},
			{"ip", "-n", c, "addr", "add", fmt.Sprintf("fd66::%d/64", i+2), "dev", "eth0", "nodad"},
			{"ip", "-n", c, "link", "set", "eth0", "up"},
			{"ip", "-n", c, "route", "add", "default", "via", "10.66.0.1", "mtu", ethernet},
			{"ip", "-n", c, "route", "add", "default", "via", "fd66::1", "mtu", ethernet},
		}...)
	}
	return runAll(ctx, steps)
}

func (*bridge) Down(t *Topology) error {
	return errors.Join(
		cleanup([]string{"ip", "-n", t.Host, "link", "del", "br0"}),
		cleanup(in(t.Host, "nft", "delete table inet bench")),
	)
}
