package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/nstest"
)

// TestNetnsPublishLink: all ports of a request are published or none, whatever
// fails, and those that a description names are removed again.
func TestNetnsPublishLink(t *testing.T) {
	cfg := testConfig(t)
	var failing atomic.Value // the step, and how often it passes before it fails
	failing.Store("")
	var passes atomic.Int32
	cfg.fault = func(step string) error {
		if step == failing.Load() && passes.Add(-1) < 0 {
			return fmt.Errorf("boom")
		}
		return nil
	}
	r := start(t, cfg)
	box := attach(t, r.Client, request("box"))
	lf, port := listenerFile(t)
	specs := []control.PublicationSpec{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 81, FD: true}, {Proto: "udp", Port: 53}}
	before, fds := r.world(t), openFDs(t)
	for n, step := range []string{stepPublishAll, stepPublishAll, stepPublishAll, stepPublishRecord} {
		passes.Store(int32(n % 3))
		failing.Store(step)
		if _, err := r.PublishLink(t.Context(), box.key, specs, lf); err == nil || !strings.Contains(err.Error(), "publish to net/box/eth0: boom") {
			t.Errorf("%s: %v", step, err)
		}
		if d := cmp.Diff(before, r.world(t)); d != "" {
			t.Errorf("%s: the world before (-) and after (+) differ:\n%s", step, d)
		}
		nstest.WaitFor(t, patience, func() bool { return openFDs(t) <= fds })
	}
	failing.Store("")
	list, err := r.PublishLink(t.Context(), box.key, specs, lf)
	if err != nil || len(list) != 3 || list[1].HostPort != port || list[2].Proto != "udp" {
		t.Fatalf("%+v, %v", list, err)
	}
	if l, err := r.Link(t.Context(), box.key); err != nil || len(l.Publications) != 3 {
		t.Errorf("%+v, %v", l, err)
	}
	removed, err := r.UnpublishLink(t.Context(), box.key, []control.PublicationSpec{
		{Proto: "tcp", Port: 81, HostPort: port}, {Proto: "udp", Port: 53, HostIP: netip.MustParseAddr("192.0.2.1")}, {Proto: "tcp", Port: 99}})
	if err != nil || len(removed) != 1 || removed[0].HostPort != port {
		t.Errorf("removed %+v, %v", removed, err)
	}
	removed, err = r.UnpublishLink(t.Context(), box.key, specs)
	if err != nil || len(removed) != 2 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if d := cmp.Diff(before, r.world(t)); d != "" {
		t.Errorf("the world before (-) and after (+) differ:\n%s", d)
	}
}

// TestNetnsPublishLinkRefuses: a port that is taken, a bad request and a link
// that is not there change nothing.
func TestNetnsPublishLinkRefuses(t *testing.T) {
	r := start(t, testConfig(t))
	box := attach(t, r.Client, request("box"))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := uint16(taken.Addr().(*net.TCPAddr).Port)
	before := r.world(t)
	nobody := control.LinkKey{Network: "net", Container: "nobody", IfName: "eth0"}
	for _, tt := range []struct {
		key   control.LinkKey
		specs []control.PublicationSpec
		code  control.Code
	}{
		{box.key, []control.PublicationSpec{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 80, HostPort: busy}}, control.CodePortInUse},
		{box.key, []control.PublicationSpec{{Proto: "sctp", Port: 80}}, control.CodeInvalid},
		{nobody, []control.PublicationSpec{{Proto: "tcp", Port: 80}}, control.CodeNotFound},
	} {
		_, err := r.PublishLink(t.Context(), tt.key, tt.specs)
		wantCode(t, err, tt.code)
	}
	_, err = r.UnpublishLink(t.Context(), nobody, nil)
	wantCode(t, err, control.CodeNotFound)
	// A descriptor that is promised and does not come.
	_, err = r.PublishLink(t.Context(), box.key, []control.PublicationSpec{{Proto: "tcp", Port: 80, FD: true}}, []*os.File{}...)
	wantCode(t, err, control.CodeDescriptor)
	if d := cmp.Diff(before, r.world(t)); d != "" {
		t.Errorf("the world before (-) and after (+) differ:\n%s", d)
	}
}
