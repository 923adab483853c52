package daemon

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/netns"
	"github.com/usernet/usernet/internal/nstest"
	"github.com/usernet/usernet/tunnel"
)

// hostTUN is a TUN as the plugin makes it in a namespace of the host's.
func hostTUN(t *testing.T, ns *netns.Handle, name string) *os.File {
	t.Helper()
	var f *os.File
	nstest.In(t, ns, func() (err error) {
		f, err = tunnel.Create(tunnel.Options{Name: name})
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// hosts are the inodes of the network's host links.
func hosts(t *testing.T, c *control.Client) []uint64 {
	t.Helper()
	n, err := c.Network(t.Context(), "net")
	if err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for _, h := range n.Hosts {
		all = append(all, h.Netns)
	}
	return all
}

func wantHosts(t *testing.T, c *control.Client, want ...uint64) {
	t.Helper()
	got := hosts(t, c)
	if len(got) != len(want) {
		t.Fatalf("host links of %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("host links of %v, want %v", got, want)
		}
	}
}

// has reports whether the namespace has an interface.
func has(ns *netns.Handle, name string) bool {
	return ns.Do(func() error { _, err := netlink.LinkByName(name); return err }) == nil
}

// TestNetnsHostLinkLivesWithItsLinks: it comes when a link asks for it, stays
// with the second, and is gone, device and all, when the last has gone.
func TestNetnsHostLinkLivesWithItsLinks(t *testing.T) {
	r := start(t, testConfig(t))
	host := nstest.NewNS(t)
	req := control.AttachHostRequest{Netns: host.Inode(), IfName: "un-net"}
	join := func(name string) error {
		f := hostTUN(t, host, name)
		defer f.Close()
		_, err := r.AttachHost(context.Background(), "net", req, f)
		return err
	}
	wantCode(t, join("un-net"), control.CodeNotFound)
	attach(t, r.Client, request("plain")) // makes the network
	wantCode(t, join("un-net"), control.CodeConflict)
	if has(host, "un-net") {
		t.Fatal("a refused host link has left its device")
	}
	var links []*container
	for _, name := range []string{"a", "b"} {
		want := request(name)
		want.HostNetns = host.Inode()
		links = append(links, attach(t, r.Client, want))
	}
	if err := join("un-net"); err != nil {
		t.Fatal(err)
	}
	wantHosts(t, r.Client, host.Inode())
	wantHostAccess(t, r, links, "un-net", 1)
	nstest.In(t, host, func() error { return netns.DeleteLink("un-net") })
	nstest.WaitFor(t, 10*time.Second, func() bool { return len(hosts(t, r.Client)) == 0 })
	wantHostAccess(t, r, links, "", 0)
	for _, name := range []string{"un-net", "un-new"} {
		if err := join(name); err != nil {
			t.Fatal(err)
		}
		wantHosts(t, r.Client, host.Inode())
	}
	if has(host, "un-net") {
		t.Error("the replaced host link's device is still there")
	}
	for i, l := range links {
		if !has(host, "un-new") {
			t.Fatalf("the device is gone before link %d", i)
		}
		if _, err := r.Detach(t.Context(), l.key); err != nil {
			t.Fatal(err)
		}
	}
	wantHosts(t, r.Client)
	if has(host, "un-new") {
		t.Error("the device outlives the last link")
	}
}

// wantHostAccess: links tell by which interface the host reaches them, and the
// metrics how many there are.
func wantHostAccess(t *testing.T, r *running, links []*container, ifname string, n int) {
	t.Helper()
	for _, l := range links {
		if got, err := r.Link(t.Context(), l.key); err != nil || got.HostIfName != ifname {
			t.Errorf("%s is reached by %q, %v, want %q", l.key, got.HostIfName, err, ifname)
		}
	}
	response := httptest.NewRecorder()
	newMetrics(r.d).handler().ServeHTTP(response, httptest.NewRequest("GET", "/metrics", nil))
	text := response.Body.String()
	for _, want := range []string{
		fmt.Sprintf(`usernet_host_links{network="net"} %d`, n),
		`usernet_host_packets_total{direction="fromHost",network="net"} `, `usernet_host_bytes_total{direction="toHost",network="net"} `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

// TestNetnsUncommittedLinkTakesItsHostLink: a plugin that is killed leaves none.
func TestNetnsUncommittedLinkTakesItsHostLink(t *testing.T) {
	r := start(t, testConfig(t))
	host := nstest.NewNS(t)
	f, _ := tunFile(t)
	want := request("a")
	want.HostNetns = host.Inode()
	a, err := r.Client.Attach(t.Context(), want, f)
	if err != nil {
		t.Fatal(err)
	}
	tun := hostTUN(t, host, "un-net")
	if _, err := r.AttachHost(t.Context(), "net", control.AttachHostRequest{Netns: host.Inode(), IfName: "un-net"}, tun); err != nil {
		t.Fatal(err)
	}
	tun.Close()
	wantHosts(t, r.Client, host.Inode())
	a.Close()
	nstest.WaitFor(t, 10*time.Second, func() bool { return len(hosts(t, r.Client)) == 0 && !has(host, "un-net") })
}

func TestNetnsHostLinkIsJudged(t *testing.T) {
	r := start(t, testConfig(t))
	f, _ := tunFile(t)
	_, err := r.AttachHost(t.Context(), "net", control.AttachHostRequest{IfName: "un-net"}, f)
	wantCode(t, err, control.CodeInvalid)
	_, err = r.AttachHost(t.Context(), "net", control.AttachHostRequest{Netns: 1, IfName: "a/b"}, f)
	wantCode(t, err, control.CodeInvalid)
	want := request("a")
	want.HostNetns = 1
	attach(t, r.Client, want)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, err = r.AttachHost(t.Context(), "net", control.AttachHostRequest{Netns: 1, IfName: "un-net"}, null)
	wantCode(t, err, control.CodeDescriptor)
}
