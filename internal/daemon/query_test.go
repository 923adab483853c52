package daemon

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsNames(t *testing.T) {
	r := start(t, testConfig(t))
	long := strings.Repeat("0123456789abcdef", 4)
	ask := func(container, ifname, hostname string, aliases ...string) []string {
		req := request(container)
		req.IfName, req.Hostname, req.Aliases = ifname, hostname, aliases
		l, err := r.Link(t.Context(), attach(t, r.Client, req).key)
		if err != nil {
			t.Fatal(err)
		}
		return l.Names
	}
	for _, tt := range []struct {
		got  []string
		want string
	}{
		{ask("one", "eth0", "Web", "www"), "[web www one]"},
		{ask("two", "eth0", "web", "www"), "[www two]"},     // the hostname is taken, the alias is shared
		{ask("three", "eth0", "", "one", "web"), "[three]"}, // aliases do not answer for others' own names
		{ask(long, "eth0", ""), "[0123456789ab]"},
		{ask("one", "eth1", ""), "[one-eth1]"},
		{ask("gateway", "eth0", "gateway"), "[gateway-eth0]"},
		{ask("odd_.name.", "eth0", "h"), "[h " + hashName(control.LinkKey{Network: "net", Container: "odd_.name.", IfName: "eth0"}) + "]"},
	} {
		if got := fmt.Sprint(tt.got); got != tt.want {
			t.Errorf("names %s, want %s", got, tt.want)
		}
	}
	links, err := r.Links(t.Context(), "01234567")
	if err != nil || len(links) != 1 {
		t.Errorf("by prefix: %v, %v", links, err)
	}
	if _, err := r.Links(t.Context(), "012"); control.CodeOf(err) != control.CodeNotFound {
		t.Errorf("a prefix of three characters: %v", err)
	}
}

func TestNetnsGCIsScoped(t *testing.T) {
	r := start(t, testConfig(t))
	a := attach(t, r.Client, request("a"))
	attach(t, r.Client, request("b"))
	foreign := request("foreign")
	foreign.Owner = "other"
	attach(t, r.Client, foreign)
	elsewhere := request("elsewhere")
	elsewhere.Network, elsewhere.Sets = "net2", sets("10.10.0.0/24")
	attach(t, r.Client, elsewhere)
	got, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test", Valid: []control.LinkName{{Container: "a", IfName: "eth0"}}})
	if err != nil || !slices.Equal(got.Removed, []string{"net/b/eth0"}) {
		t.Errorf("removed %v, %v; want b only", got.Removed, err)
	}
	if got, err = r.GC(t.Context(), "net", control.GCRequest{Owner: "test"}); err != nil || !slices.Equal(got.Removed, []string{a.key.String()}) {
		t.Errorf("nothing valid: removed %v, %v", got.Removed, err)
	}
	if got, err = r.GC(t.Context(), "unknown", control.GCRequest{}); err != nil || len(got.Removed) != 0 {
		t.Errorf("unknown network: removed %v, %v", got.Removed, err)
	}
	if w := r.world(t); !slices.Equal(w.Links, []string{"net/foreign/eth0", "net2/elsewhere/eth0"}) {
		t.Errorf("left: %v", w.Links)
	}
}

func TestNetnsCaptureIsPcapng(t *testing.T) {
	r := start(t, testConfig(t))
	a, b := attach(t, r.Client, request("a")), attach(t, r.Client, request("b"))
	l := nstest.Listen(t, b.ns, "tcp", netip.AddrPortFrom(b.reply.Addrs[0].Addr(), 80).String())
	go greet(l)
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := r.Capture(ctx, control.CaptureQuery{Network: "net"}, pw)
		pw.CloseWithError(io.EOF)
		done <- err
	}()
	file, err := pcapgo.NewNgReader(pr, pcapgo.NgReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := nstest.Dial(t, a.ns, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seen := map[int]bool{}
	for range 20 { // the links' packets come in any order between them
		if seen[0] && seen[1] {
			break
		}
		data, info, err := file.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		seen[info.InterfaceIndex] = true
		if info.Length < 40 || data[0]>>4 != 4 {
			t.Errorf("packet of %d bytes begins with %#x", info.Length, data[0])
		}
	}
	if file.LinkType() != layers.LinkTypeRaw || !seen[0] || !seen[1] {
		t.Errorf("link type %v, interfaces %v; want raw IP and both links", file.LinkType(), seen)
	}
	intf, err := file.Interface(0)
	if err != nil || intf.Name != a.key.String() {
		t.Errorf("interface %+v, %v", intf, err)
	}
	cancel()
	go io.Copy(io.Discard, pr)
	if err := <-done; err != nil {
		t.Errorf("Capture: %v", err)
	}
	wantCode(t, r.Capture(t.Context(), control.CaptureQuery{Link: "nobody"}, io.Discard), control.CodeNotFound)
}
