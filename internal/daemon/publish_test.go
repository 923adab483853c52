package daemon

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

func TestNetnsDescriptorsAreChecked(t *testing.T) {
	r := start(t, testConfig(t))
	tun, _ := tunFile(t)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, err = r.Attach(t.Context(), request("a"), file)
	wantCode(t, err, control.CodeDescriptor)

	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	uf, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer uf.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tf, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tf.Close()
	port := uint16(tcp.Addr().(*net.TCPAddr).Port)
	before := r.world(t)
	for _, tt := range []struct {
		spec control.PublicationSpec
		file *os.File
		says string
	}{
		{control.PublicationSpec{Proto: "tcp", Port: 80, FD: true}, file, "no socket"},
		{control.PublicationSpec{Proto: "tcp", Port: 80, FD: true}, uf, "not a TCP"},
		{control.PublicationSpec{Proto: "udp", Port: 80, FD: true}, tf, "not a UDP"},
		{control.PublicationSpec{Proto: "tcp", Port: 80, HostPort: port + 1, FD: true}, tf, fmt.Sprint("bound to port ", port)},
		{control.PublicationSpec{Proto: "tcp", Port: 80, HostIP: netip.MustParseAddr("127.0.0.2"), FD: true}, tf, "bound to 127.0.0.1"},
		{control.PublicationSpec{Proto: "tcp", Port: 80, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, FD: true, Redirect: true}, tf, "want one of nf_tables"},
	} {
		req := request("a")
		req.Publications = []control.PublicationSpec{tt.spec}
		files := []*os.File{tun, tt.file}
		if tt.spec.Redirect {
			files = append(files, uf)
		}
		_, err := r.Attach(t.Context(), req, files...)
		wantCode(t, err, control.CodeDescriptor)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("error %v does not say %q", err, tt.says)
		}
	}
	after := r.world(t)
	before.Networks, after.Networks = nil, nil // made by the first attach, kept
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("refused requests changed the world:\n%s", d)
	}
}

func TestNetnsPublications(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	go greet(nstest.Listen(t, box.ns, "tcp", netip.AddrPortFrom(box.reply.Addrs[0].Addr(), 80).String()))
	p, err := r.Publish(t.Context(), control.PublishRequest{Link: "box", PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 80}})
	if err != nil {
		t.Fatal(err)
	}
	host := netip.AddrPortFrom(p.HostIP, p.HostPort).String()
	if p.HostIP != netip.MustParseAddr("127.0.0.1") || p.HostPort == 0 {
		t.Errorf("published on %s, want a port of 127.0.0.1", host)
	}
	if got, err := readFrom(host); err != nil || got != "hello" {
		flows, ferr := r.Flows(t.Context(), control.FlowQuery{})
		stats, serr := r.Stats(t.Context(), "")
		t.Errorf("published port: %q, %v; flows %+v, %v; stats %+v, %v", got, err, flows, ferr, stats, serr)
	}
	_, err = r.Publish(t.Context(), control.PublishRequest{Link: "box", PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 81, HostPort: p.HostPort}})
	wantCode(t, err, control.CodePortInUse)
	if list, err := r.Publications(t.Context()); err != nil || len(list) != 1 || list[0] != p {
		t.Errorf("list %+v, %v", list, err)
	}
	if l, err := r.Link(t.Context(), box.key); err != nil || len(l.Publications) != 1 {
		t.Errorf("link %+v, %v", l, err)
	}
	if err := r.Unpublish(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
	wantCode(t, r.Unpublish(t.Context(), p.ID), control.CodeNotFound)
	if _, err := readFrom(host); err == nil {
		t.Error("the port still answers")
	}
	for _, ref := range []string{"", "nothing", "net/x/eth0"} {
		_, err := r.Publish(t.Context(), control.PublishRequest{Link: ref, PublicationSpec: control.PublicationSpec{Proto: "tcp", Port: 80}})
		if code := control.CodeOf(err); code != control.CodeNotFound && code != control.CodeInvalid {
			t.Errorf("publish to %q: %v", ref, err)
		}
	}
}

func readFrom(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}
