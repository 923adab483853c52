package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPodmanAsRoot(t *testing.T) {
	const (
		shared = "usr/share/containers/containers.conf"
		system = "etc/containers/containers.conf"
		dropin = "etc/containers/containers.conf.d/50-ports.conf"
		off    = "[engine]\nenable_port_reservation = false\n"
		on     = "[engine]\nenable_port_reservation = true\n"
	)
	tests := []struct {
		name     string
		files    map[string]string
		reserves bool
		file     string
	}{
		{"default", nil, true, ""},
		{"another key", map[string]string{system: "[engine]\nruntime = \"runc\"\n"}, true, ""},
		{"off", map[string]string{system: off}, false, system},
		{"on again", map[string]string{shared: off, system: on}, true, system},
		{"drop-in wins", map[string]string{system: on, dropin: off}, false, dropin},
		{"plugins elsewhere", map[string]string{system: "[network]\ncni_plugin_dirs = [\"/p\"]\n"}, true, ""},
		{"broken file", map[string]string{shared: off, system: "[engine"}, false, shared},
		{"in a table of another name", map[string]string{system: "[network]\nenable_port_reservation = false\n"}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if podmanAsRoot(root) != nil {
				t.Error("found where there is none")
			}
			writeBelow(t, root, "usr/bin/podman", "")
			for path, text := range tt.files {
				writeBelow(t, root, path, text)
			}
			want := tt.file
			if want != "" {
				want = filepath.Join(root, want)
			}
			if p := podmanAsRoot(root); p == nil || p.Reserves != tt.reserves || p.File != want {
				t.Errorf("%+v; want reserves %v by %q", p, tt.reserves, want)
			} else if elsewhere := tt.name == "plugins elsewhere"; elsewhere != slices.Equal((&app{getenv: os.Getenv}).pluginDirs(p), []string{"/p"}) {
				t.Errorf("%+v", p)
			}
		})
	}
}

func writeBelow(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFindBinary(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	writeBelow(t, two, "usernet", "#!/bin/sh\n")
	writeBelow(t, two, "dir/x", "")
	for typ, want := range map[string]bool{"usernet": true, "dir": true, "none": false} {
		b, found := findBinary([]string{one, two}, typ)
		if found != want || found && (!b.NotExecutable || b.Ours) {
			t.Errorf("%s: %+v, %v; no file here is a program", typ, b, found)
		}
	}
	if err := os.Chmod(filepath.Join(two, "usernet"), 0o755); err != nil {
		t.Fatal(err)
	}
	if b, _ := findBinary([]string{one, two}, "usernet"); b.NotExecutable || b.Ours {
		t.Errorf("%+v; it is a program, and not ours", b)
	}
}

// What serves the socket and is no daemon is a problem, not an absence.
func TestDaemonAt(t *testing.T) {
	a := &app{getenv: os.Getenv}
	path := filepath.Join(t.TempDir(), "s")
	if d := a.daemonAt(t.Context(), path); d.Running || d.Problem != "" || d.Path != path {
		t.Errorf("nothing there: %+v", d)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, err = c.Write([]byte("SSH-2.0-x\r\n"))
			c.Close()
			if err != nil {
				return
			}
		}
	}()
	if d := a.daemonAt(t.Context(), path); d.Running || d.Problem == "" {
		t.Errorf("a foreign server: %+v", d)
	}
	l.Close()
	<-served
}
