package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

func tempFile(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "fd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestAttachCarriesDescriptors(t *testing.T) {
	h := &recorder{}
	c := start(t, h)
	for _, extra := range []int{0, 1, 300} { // 300: more than one message's worth
		req := testRequest
		files := []*os.File{tempFile(t, "tun")}
		for i := range extra {
			req.Publications = append(req.Publications, control.PublicationSpec{Proto: "tcp", Port: 80, FD: true})
			files = append(files, tempFile(t, fmt.Sprint("socket ", i)))
		}
		a, err := c.Attach(t.Context(), req, files...)
		if err != nil {
			t.Fatal(err)
		}
		arrived, contents := h.got()
		if len(contents) != 1+extra || contents[0] != "tun" || (extra > 0 && contents[extra] != fmt.Sprint("socket ", extra-1)) {
			t.Errorf("%d extra: handler got %d files, first %q last %q", extra, len(contents), contents[0], contents[len(contents)-1])
		}
		want, _ := json.Marshal(req)
		if got, _ := json.Marshal(arrived); !bytes.Equal(got, want) {
			t.Errorf("request arrived as\n%s, sent\n%s", got, want)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDescriptorsAreNeverLeft(t *testing.T) {
	h := &recorder{}
	c := start(t, h)
	if _, err := c.Networks(t.Context()); err != nil { // warm up pollers and the like
		t.Fatal(err)
	}
	one := testRequest
	one.Publications = []control.PublicationSpec{{Proto: "tcp", Port: 80, FD: true}}
	bad := testRequest
	bad.Network = ""
	f := tempFile(t, "x")
	before := openFDs(t)
	tests := []struct {
		name string
		do   func() error
		want control.Code
	}{
		{"too few", func() error { _, err := c.Attach(t.Context(), one, f); return err }, control.CodeDescriptor},
		{"none", func() error { _, err := c.Attach(t.Context(), testRequest); return err }, control.CodeDescriptor},
		{"too many", func() error { _, err := c.Attach(t.Context(), testRequest, f, f, f); return err }, control.CodeDescriptor},
		{"on a route that takes none, on a connection that stays open", func() error {
			before += 2 // the connection's two ends
			if e := ask(t, connect(t, c.Socket), "GET", "/v1/networks", "", nil, slicesRepeat(f, 20)...); e.Code != "" {
				return e
			}
			return nil
		}, ""},
		{"with a body that is no JSON", func() error {
			conn := connect(t, c.Socket)
			defer conn.Close()
			return ask(t, conn, "POST", "/v1/links", "{", nil, f)
		}, control.CodeInvalid},
		{"more than the limit", func() error {
			_, err := c.Attach(t.Context(), testRequest, slicesRepeat(f, MaxFiles+1)...)
			return err
		}, control.CodeDescriptor},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.do(); (err == nil) != (tt.want == "") || err != nil && control.CodeOf(err) != tt.want {
				t.Errorf("error %v, want code %q", err, tt.want)
			}
			eventually(t, "closing of all descriptors", func() bool { return openFDs(t) <= before })
		})
	}
}

func slicesRepeat(f *os.File, n int) []*os.File {
	all := make([]*os.File, n)
	for i := range all {
		all[i] = f
	}
	return all
}

// TestTruncatedRightsAreRefused makes the kernel cut the descriptors by a
// limit of open files that is reached in the middle of a message.
func TestTruncatedRightsAreRefused(t *testing.T) {
	h := &recorder{}
	c := start(t, h)
	f := tempFile(t, "x")
	req := testRequest
	for range 99 {
		req.Publications = append(req.Publications, control.PublicationSpec{Proto: "tcp", Port: 80, FD: true})
	}
	if _, err := c.Networks(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Room for the connection's two ends and half of the descriptors.
	low := unix.Rlimit{Cur: uint64(before + 50), Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, err := c.Attach(t.Context(), req, slicesRepeat(f, 100)...)
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if control.CodeOf(err) != control.CodeDescriptor || !strings.Contains(err.Error(), "MSG_CTRUNC") {
		t.Errorf("error %v, want %s with MSG_CTRUNC", err, control.CodeDescriptor)
	}
	eventually(t, "closing of all descriptors", func() bool { return openFDs(t) <= before })
}

// TestReadErrorHasNoNegativeCount: a peer that leaves with our reply unread
// resets the connection; net/http panics on a negative count.
func TestReadErrorHasNoNegativeCount(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c := &recvConn{UnixConn: nc.(*net.UnixConn), allowed: true, cancel: func() {}}
	defer c.Close()
	if _, err := c.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fds[1]); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 10)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("Read = %d, %v; want 0 and %v", n, err, unix.ECONNRESET)
	}
}
