package daemon

import (
	"cmp"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

func (d *Daemon) describeLink(l *link) control.Link {
	r := l.rec
	d.mu.Lock()
	defer d.mu.Unlock()
	out := control.Link{
		ID: r.key().String(), Network: r.Network, Container: r.Container, IfName: r.IfName, State: l.state,
		Owner: r.Owner, Netns: r.Netns, Hostname: l.now.Hostname, Aliases: l.now.Aliases, Names: l.now.Names,
		Addrs: r.Addrs, Gateways: r.Gateways, HostNetns: r.HostNetns, MTU: r.MTU, Ephemeral: r.Ephemeral, Created: r.Created,
		Device: cmp.Or(r.Device, control.DeviceTUN), MAC: r.MAC, Bandwidth: l.now.Bandwidth,
		Publications: l.publishedLocked(),
	}
	if h := l.net.hosts[r.HostNetns]; h != nil {
		out.HostIfName = h.api.IfName
	}
	if l.state == control.LinkLost {
		out.Names = nil // nobody answers them
	}
	return out
}

// Links implements server.Handler.
func (d *Daemon) Links(_ context.Context, ref string) ([]control.Link, error) {
	links, err := d.find(ref)
	var out []control.Link
	for _, l := range links {
		out = append(out, d.describeLink(l))
	}
	return out, err
}

// Link implements server.Handler.
func (d *Daemon) Link(_ context.Context, key control.LinkKey) (*control.Link, error) {
	l := d.link(key)
	if l == nil {
		return nil, noLink(key)
	}
	out := d.describeLink(l)
	return &out, nil
}

// minPrefix is how much of a container id must be given: less would be a
// guess.
const minPrefix = 4

// find returns the links that a reference means: an id, a container id, a
// name, or else a prefix of one container's id. Empty means all.
func (d *Daemon) find(ref string) ([]*link, error) {
	all := d.linkList()
	if ref == "" {
		return all, nil
	}
	d.mu.Lock()
	exact := slices.DeleteFunc(slices.Clone(all), func(l *link) bool {
		return l.key().String() != ref && l.rec.Container != ref && !slices.Contains(l.now.Names, strings.ToLower(ref))
	})
	d.mu.Unlock()
	if len(exact) > 0 {
		return exact, nil
	}
	var found []*link
	if len(ref) >= minPrefix {
		for _, l := range all {
			if strings.HasPrefix(l.rec.Container, ref) {
				found = append(found, l)
			}
		}
	}
	for _, l := range found {
		if l.rec.Container != found[0].rec.Container {
			return nil, control.Errorf(control.CodeInvalid, "%q is the beginning of several container ids, such as %s and %s; give more of it", ref, found[0].rec.Container, l.rec.Container)
		}
	}
	if len(found) == 0 {
		return nil, control.Errorf(control.CodeNotFound, "no link %q: want an id as \"usernet ps\" prints it, a container id or its first characters, or a name", ref)
	}
	return found, nil
}

// oneLink is find for operations that need a single, living link.
func (d *Daemon) oneLink(ref string) (*link, error) {
	if ref == "" {
		return nil, control.Errorf(control.CodeInvalid, "link is empty")
	}
	links, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	if len(links) > 1 {
		return nil, control.Errorf(control.CodeInvalid, "%q means %d links, such as %s and %s; name one by its id", ref, len(links), links[0].key(), links[1].key())
	}
	if links[0].sl == nil {
		return nil, lostLink(links[0].key())
	}
	return links[0], nil
}

func lostLink(key control.LinkKey) error {
	return control.Errorf(control.CodeNotFound, "link %s is lost: its descriptor went with an earlier daemon; attach it anew", key)
}

// linkIDs maps the switch's names of a network's links to their ids.
func (d *Daemon) linkIDs(n *network) map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := map[string]string{}
	for key, l := range n.links {
		if l.sl != nil {
			ids[l.sl.Name()] = key.String()
		}
	}
	return ids
}

// Flows implements server.Handler.
func (d *Daemon) Flows(_ context.Context, q control.FlowQuery) ([]control.Flow, error) {
	var only map[string]bool
	if q.Link != "" {
		links, err := d.find(q.Link)
		if err != nil {
			return nil, err
		}
		only = map[string]bool{}
		for _, l := range links {
			only[l.key().String()] = true
		}
	}
	networks, err := d.selectNetworks(q.Network)
	if err != nil {
		return nil, err
	}
	ids := map[string]map[string]string{}
	for _, n := range d.networkList() { // a flow may lead to another network
		ids[n.rec.Name] = d.linkIDs(n)
	}
	var out []control.Flow
	for _, n := range networks {
		for _, f := range n.sw.Flows() {
			flow := controlFlow(f, ids)
			if only == nil || only[flow.Link] || only[flow.Peer] {
				out = append(out, flow)
			}
		}
	}
	return out, nil
}

// controlFlow is a flow in the API's words; ids are those of the links, by
// network and name. The link of an ended flow may be gone; its name then stands
// for it.
func controlFlow(f netstack.Flow, ids map[string]map[string]string) control.Flow {
	id := func(network, name string) string {
		return cmp.Or(ids[network][name], name)
	}
	out := FlowOf(f)
	out.Link, out.Peer = id(f.Network, f.Link), id(cmp.Or(f.PeerNetwork, f.Network), f.Peer)
	return out
}

// FlowOf is a switch's flow in the API's words, its links by their names.
func FlowOf(f netstack.Flow) control.Flow {
	out := control.Flow{
		ID: f.ID, Network: f.Network, Link: f.Link, Peer: f.Peer, Direction: string(f.Direction), Proto: f.Proto,
		Source: f.Source, Destination: f.Destination, Verdict: string(f.Verdict), Reason: f.Reason, Start: f.Start,
		Counters: counters(f.FromContainer, f.ToContainer),
	}
	if f.Target != nil {
		out.Target = *f.Target
	}
	if f.End != nil {
		out.End = *f.End
	}
	return out
}

func counters(from, to netstack.Traffic) control.Counters {
	return control.Counters{
		FromContainerPackets: from.Packets, FromContainerBytes: from.Bytes,
		ToContainerPackets: to.Packets, ToContainerBytes: to.Bytes,
	}
}

// selectNetworks returns the named network, or all.
func (d *Daemon) selectNetworks(name string) ([]*network, error) {
	if name == "" {
		return d.networkList(), nil
	}
	if n := d.network(name); n != nil {
		return []*network{n}, nil
	}
	return nil, noNetwork(name)
}

// Stats implements server.Handler.
func (d *Daemon) Stats(_ context.Context, network string) (*control.StatsReply, error) {
	networks, err := d.selectNetworks(network)
	if err != nil {
		return nil, err
	}
	reply := &control.StatsReply{Networks: []control.NetworkStats{}}
	for _, n := range networks {
		st := n.sw.Stats()
		ns := control.NetworkStats{
			Network: n.rec.Name, Flows: st.Flows, Drops: st.Drops, Links: []control.LinkStats{},
			Counters: counters(st.FromContainer, st.ToContainer),
		}
		ids := d.linkIDs(n)
		for _, l := range n.sw.Links() {
			if ids[l.Name()] == "" {
				continue // leaving
			}
			ls := l.Stats()
			ns.Links = append(ns.Links, control.LinkStats{
				ID: ids[l.Name()], Drops: ls.Drops, Counters: counters(ls.FromContainer, ls.ToContainer),
			})
		}
		reply.Networks = append(reply.Networks, ns)
	}
	return reply, nil
}

// Version implements server.Handler.
func (d *Daemon) Version(context.Context) (*control.VersionReply, error) {
	v := &control.VersionReply{Version: d.cfg.Version, API: control.APIVersion, GoVersion: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v, nil
}

// Status implements server.Handler. Without problems that block, an attach
// (to the named network) can be expected to succeed.
func (d *Daemon) Status(_ context.Context, network string) (*control.StatusReply, error) {
	s := &control.StatusReply{
		Ready: true, Version: d.cfg.Version, PID: os.Getpid(), UID: os.Geteuid(), Started: d.started,
		StateDir: d.cfg.StateDir, Socket: d.cfg.Socket,
	}
	add := func(p control.Problem) {
		s.Problems = append(s.Problems, p)
		s.Ready = s.Ready && !p.Blocks
	}
	var err error
	if s.OpenFiles, s.FileLimit, err = fileUsage(); err != nil {
		add(control.Problem{Code: control.CodeInternal, Message: err.Error()})
	} else if err := roomError(s.OpenFiles, s.FileLimit); err != nil {
		add(control.Problem{Code: control.CodeUnavailable, Message: err.Error(), Blocks: true})
	}
	for _, l := range d.linkList() {
		if l.sl == nil {
			s.Lost = append(s.Lost, l.key().String())
		} else {
			s.Links++
		}
	}
	if len(s.Lost) > 0 {
		add(control.Problem{Code: control.CodeUnavailable, Object: s.Lost[0], Message: "links were lost with an earlier daemon: their containers have no network until they are attached anew"})
	}
	s.Networks = len(d.networkList())
	for _, p := range d.poolList() {
		if usage, ranges := p.usage(); usage.Exhausted && (network == "" || network == p.name) {
			add(control.Problem{
				Code: control.CodeExhausted, Object: p.name, Blocks: network == p.name,
				Message: "network " + p.name + " has no address left in " + ranges,
			})
		}
	}
	return s, nil
}

// checkRoom refuses a new link when the process is about to run out of
// descriptors: the links that are there need some for their flows.
func (d *Daemon) checkRoom() error {
	if d.stopping() {
		return control.Errorf(control.CodeUnavailable, "the daemon is stopping")
	}
	open, limit, err := fileUsage()
	if err != nil {
		return err
	}
	return roomError(open, limit)
}

func roomError(open, limit int) error {
	if open > limit-limit/10 {
		return control.Errorf(control.CodeUnavailable, "%d of %d descriptors are in use; raise the daemon's limit of open files (ulimit -n, LimitNOFILE)", open, limit)
	}
	return nil
}

// fileUsage counts this process's descriptors.
func fileUsage() (open, limit int, err error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, 0, os.NewSyscallError("getrlimit", err)
	}
	// stat of this directory gives the number of descriptors since Linux 6.2
	// without reading it; older kernels give 0.
	if st, err := os.Stat("/proc/self/fd"); err == nil && st.Size() > 0 {
		return int(st.Size()), int(min(r.Cur, 1<<31-1)), nil
	}
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return len(names), int(min(r.Cur, 1<<31-1)), err
}
