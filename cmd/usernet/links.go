package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/control"
)

// refHelp says how links are named on the command line.
const refHelp = `LINK is a container's name in its network, its id or the first letters of it, or
the link's id, network/container/interface.`

func (a *app) psCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:               "ps [LINK]",
		Short:             "List the containers on the daemon's networks",
		Long:              "Lists the links of containers to the daemon's networks.\n\n" + refHelp,
		Args:              args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: a.completeLink,
		RunE: func(cmd *cobra.Command, argv []string) error {
			ref := ""
			if len(argv) == 1 {
				ref = argv[0]
			}
			links, err := a.client().Links(cmd.Context(), ref)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(links)
			}
			t := table{head: []string{"NETWORK", "NAME", "CONTAINER", "INTERFACE", "DEVICE", "ADDRESSES", "PORTS", "HOST", "STATE", "AGE"}, colour: stateColour}
			for _, l := range links {
				t.add(l.Network, l.Hostname, shortID(l.Container), l.IfName, l.Device, addrs(l.Addrs), ports(l.Publications), hostAccess(&l), string(l.State), age(l.Created))
			}
			t.print(a.stdout, a.painter(a.stdout))
			return nil
		},
	})
}

// hostAccess is the interface by which the host reaches a container at its
// addresses.
func hostAccess(l *control.Link) string {
	switch {
	case l.HostNetns == 0:
		return ""
	case l.HostIfName == "":
		return "missing" // until the next ADD
	}
	return l.HostIfName
}

// hostAccessAt is hostAccess with the namespace that the interface is in.
func hostAccessAt(l *control.Link) string {
	if l.HostNetns == 0 {
		return ""
	}
	return hostAccess(l) + " in " + namespace(l.HostNetns)
}

func stateColour(_ int, text string) string {
	switch text {
	case string(control.LinkLost):
		return red
	case string(control.LinkAttaching):
		return yellow
	}
	return ""
}

// shortID cuts a container id as runtimes do; names stay whole.
func shortID(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

func addrs(prefixes []netip.Prefix) string {
	var all []netip.Addr
	for _, p := range prefixes {
		all = append(all, p.Addr())
	}
	return list(all)
}

func ports(publications []control.Publication) string {
	var all []string
	for _, p := range publications {
		all = append(all, fmt.Sprintf("%s->%d/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Port, p.Proto))
	}
	return strings.Join(all, ",")
}

func (a *app) inspectCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:               "inspect LINK",
		Short:             "Tell all about a container's link",
		Long:              "Tells all about a link.\n\n" + refHelp,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeLink,
		RunE: func(cmd *cobra.Command, argv []string) error {
			links, err := a.client().Links(cmd.Context(), argv[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(links)
			}
			stats, err := a.client().Stats(cmd.Context(), "")
			if err != nil {
				return err
			}
			for i := range links {
				if i > 0 {
					fmt.Fprintln(a.stdout)
				}
				a.printLink(&links[i], stats)
			}
			return nil
		},
	})
}

func (a *app) printLink(l *control.Link, stats control.StatsReply) {
	fields := [][2]string{
		{"Link", l.ID},
		{"State", string(l.State)},
		{"Made", l.Created.Local().Format("2006-01-02 15:04:05")},
		{"By", l.Owner},
		{"Addresses", list(l.Addrs)},
		{"Gateways", list(l.Gateways)},
		{"Device", device(l)},
		{"MTU", strconv.Itoa(l.MTU)},
		{"Limits", bandwidth(l.Bandwidth)},
		{"Names", strings.Join(l.Names, ", ")},
		{"Ports", strings.ReplaceAll(ports(l.Publications), ",", "\n")},
		{"Namespace", namespace(l.Netns)},
		{"Host access", hostAccessAt(l)},
	}
	for _, n := range stats.Networks {
		for _, s := range n.Links {
			if s.ID == l.ID {
				fields = append(fields, [2]string{"Sent", traffic(s.FromContainerPackets, s.FromContainerBytes)},
					[2]string{"Received", traffic(s.ToContainerPackets, s.ToContainerBytes)},
					[2]string{"Drops", drops(s.Drops)})
			}
		}
	}
	a.printFields(fields)
}

// namespace writes an inode as /proc/PID/ns/net does; empty for none.
func namespace(inode uint64) string {
	if inode == 0 {
		return ""
	}
	return "net:[" + strconv.FormatUint(inode, 10) + "]"
}

// bandwidth tells a link's limits, empty for none.
func bandwidth(b *control.Bandwidth) string {
	if b == nil {
		return ""
	}
	var all []string
	for _, way := range []struct {
		name string
		rate control.Rate
	}{{"sends", b.FromContainer}, {"receives", b.ToContainer}} {
		if way.rate.BitsPerSecond > 0 {
			all = append(all, fmt.Sprintf("%s %g Mbit/s", way.name, float64(way.rate.BitsPerSecond)/1e6))
		}
	}
	return strings.Join(all, ", ")
}

// device is the kind of a link's device, with the MAC address of a TAP.
func device(l *control.Link) string { return strings.TrimSpace(l.Device + " " + l.MAC) }

func traffic(packets, bytes uint64) string {
	return fmt.Sprintf("%s in %d packets", size(bytes), packets)
}
