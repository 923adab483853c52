package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usernet/usernet/internal/cnilint"
)

func TestPodmanAsRoot(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const conf = "etc/containers/containers.conf"
	none := func(string) string { return "" }
	tests := []struct {
		name string
		root fstest.MapFS
		want *cnilint.Podman
	}{
		{"no podman", fstest.MapFS{conf: file("[engine]\nenable_port_reservation = false\n")}, nil},
		{"default", fstest.MapFS{"usr/bin/podman": file("")}, &cnilint.Podman{Reserves: true}},
		{"told", fstest.MapFS{"usr/bin/podman": file(""), conf: file("[engine]\nenable_port_reservation = false\n[network]\ncni_plugin_dirs = [\"/p\"]\n")},
			&cnilint.Podman{File: "/" + conf, PluginDirs: []string{"/p"}}},
		{"broken", fstest.MapFS{"usr/bin/podman": file(""), conf: file("[engine")}, nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, podmanAsRoot(tt.root, none)); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	a := &app{getenv: none}
	if dirs := a.pluginDirs(&cnilint.Podman{PluginDirs: []string{"/p"}}); len(dirs) != 1 || dirs[0] != "/p" {
		t.Errorf("podman is told /p, and plugins are looked for in %q", dirs)
	}
	if dirs := a.pluginDirs(nil); len(dirs) < 5 {
		t.Errorf("by default plugins are looked for in %q", dirs)
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

// A plugin's versions are its own word, and what gives none has none.
func TestSpokenBy(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"older": `[ $CNI_COMMAND = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'`,
		"fails": `exit 1`,
		"mute":  `exec sleep 60`,
	} {
		writeBelow(t, dir, name, "#!/bin/sh\n"+script+"\n")
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(name string) []string {
		b, _ := findBinary([]string{dir}, name)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return spokenBy(ctx, b)
	}
	if got := ask("older"); !slices.Equal(got, []string{"0.4.0", "1.0.0"}) {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"fails", "mute"} {
		if got := ask(name); len(got) > 0 {
			t.Errorf("%s said %v", name, got)
		}
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
