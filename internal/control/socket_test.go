package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDefaultSocket(t *testing.T) {
	const rootless = "         0       1000          1\n         1     100000      65536\n"
	tests := []struct {
		name   string
		env    map[string]string
		uid    int
		uidMap string
		want   string
	}{
		{"root", nil, 0, "0 0 4294967295", "/run/usernet/usernet.sock"},
		{"root ignores XDG_RUNTIME_DIR", map[string]string{"XDG_RUNTIME_DIR": "/run/user/0"}, 0, " 0 0 4294967295\n", "/run/usernet/usernet.sock"},
		{"user", map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "0 0 4294967295", "/run/user/1000/usernet/usernet.sock"},
		{"user without XDG_RUNTIME_DIR", nil, 1000, "0 0 4294967295", "/run/user/1000/usernet/usernet.sock"},
		{"uid 0 of a user namespace", map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000"}, 0, rootless, "/run/user/1000/usernet/usernet.sock"},
		{"the same without XDG_RUNTIME_DIR", nil, 0, rootless, "/run/user/1000/usernet/usernet.sock"},
		{"subordinate uid", nil, 5, rootless, "/run/user/100004/usernet/usernet.sock"},
		{"override", map[string]string{SocketEnv: "/x/y", "XDG_RUNTIME_DIR": "/run/user/1"}, 1, rootless, "/x/y"},
	}
	for _, tt := range tests {
		got := defaultSocket(func(k string) string { return tt.env[k] }, tt.uid, tt.uidMap)
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestListenModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, st.Mode(), err, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left after Close: %v", err)
	}
}

func TestListenReplacesOnlyStaleSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrSocketInUse) || !strings.Contains(err.Error(), "by pid ") {
		t.Errorf("live socket without a lock: %v, want %v with the pid", err, ErrSocketInUse)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err := Listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	defer l.Close()
	if _, err := Listen(path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("second listener: %v, want %v", err, ErrSocketInUse)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first listener's socket was taken away: %v", err)
	} else {
		c.Close()
	}
}

func TestListenRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                           "no socket is there",
		filepath.Join(open, "s"):       "mode 0777",
		"@abstract":                    "abstract",
		"":                             "want a path",
		"/" + strings.Repeat("x", 200): "limit is 107",
	} {
		if l, err := Listen(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q): %v, want %q", path, err, want)
			if l != nil {
				l.Close()
			}
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("file that was no socket now holds %q, %v", b, err)
	}
}

func TestLinkKey(t *testing.T) {
	k := LinkKey{"net", "box", "eth0"}
	if got, err := ParseLinkKey(k.String()); got != k || err != nil {
		t.Errorf("ParseLinkKey(%q) = %v, %v", k.String(), got, err)
	}
	for _, bad := range []string{"", "a/b", "a/b/c/d", "a//c", "-a/b/c", "a/b/.", "a/b/c:d", "a/b/0123456789abcdef", "a b/c/d", strings.Repeat("a", 256) + "/b/c"} {
		if _, err := ParseLinkKey(bad); CodeOf(err) != CodeInvalid {
			t.Errorf("ParseLinkKey(%q): %v, want %s", bad, err, CodeInvalid)
		}
	}
}
