package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usernet/usernet/plugin"
)

// buildPlugin builds the plugin in dir and returns its path.
func buildPlugin(t *testing.T, dir string) string {
	t.Helper()
	plugin := filepath.Join(dir, "usernet-cni")
	build := exec.Command("go", "build", "-o", plugin, "../usernet-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	return plugin
}

// TestCNIInstallDropIn installs the names, again, and over foreign programs.
func TestCNIInstallDropIn(t *testing.T) {
	dir := t.TempDir()
	executable, bin := buildPlugin(t, dir), filepath.Join(dir, "bin")
	install := func(more ...string) (status int, stdout, stderr string) {
		var o, e bytes.Buffer
		args := append([]string{"cni", "install", "--drop-in", "--plugin", executable, "--bin-dir", bin}, more...)
		status = run(context.Background(), args, func(string) string { return "" }, nil, &o, &e)
		return status, o.String(), e.String()
	}
	if status, out, stderr := install(); status != 0 || !strings.Contains(out, "wrote      "+filepath.Join(bin, "usernet")+"\n") {
		t.Fatalf("status %d, %q %q", status, out, stderr)
	}
	for _, name := range plugin.DropInNames {
		about := exec.Command(filepath.Join(bin, name))
		about.Env = []string{}
		if out, err := about.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "CNI "+name+" plugin v1.") {
			t.Errorf("%s says %q, %v", name, out, err)
		}
	}
	if status, out, _ := install(); status != 0 || strings.Count(out, "unchanged  ") != 1+len(plugin.DropInNames) {
		t.Errorf("the second time: status %d, %q", status, out)
	}
	if status, _, stderr := install("--name", "web"); status != 2 || !strings.Contains(stderr, "--name") {
		t.Errorf("a flag of the conflist: status %d, %q", status, stderr)
	}

	// A foreign program is left alone, and so is everything else then.
	os.RemoveAll(bin)
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(bin, "bridge")
	if err := os.WriteFile(foreign, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := install(); status != 1 || !strings.Contains(stderr, foreign+" is not usernet's plugin") || !strings.Contains(stderr, "--force") {
		t.Errorf("a foreign program: status %d, %q", status, stderr)
	}
	if entries, err := os.ReadDir(bin); err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
	if status, out, stderr := install("--force"); status != 0 || !strings.Contains(out, "replaced   "+foreign) {
		t.Errorf("with --force: status %d, %q %q", status, out, stderr)
	}
	// A name that cannot be made takes everything back.
	os.RemoveAll(bin)
	if err := os.MkdirAll(filepath.Join(bin, ".usernet-bridge", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := install(); status != 1 {
		t.Errorf("a link that cannot be made: status %d", status)
	}
	if entries, err := os.ReadDir(bin); err != nil || len(entries) != 1 {
		t.Errorf("half an installation is left: %v, %v", entries, err)
	}
}

// TestCNIInstall installs the real plugin, again, over foreign files and over a
// configuration that was edited.
func TestCNIInstall(t *testing.T) {
	dir := t.TempDir()
	executable := buildPlugin(t, dir)
	bin, conf := filepath.Join(dir, "bin"), filepath.Join(dir, "conf")
	pluginPath, confPath := filepath.Join(bin, "usernet"), filepath.Join(conf, "web.conflist")
	loopback := filepath.Join(bin, "loopback")
	install := func(more ...string) (status int, stdout, stderr string) {
		var o, e bytes.Buffer
		args := append([]string{"cni", "install", "--plugin", executable, "--bin-dir", bin, "--conf-dir", conf, "--name", "web"}, more...)
		status = run(context.Background(), args, func(string) string { return "" }, nil, &o, &e)
		return status, o.String(), e.String()
	}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	if status, out, stderr := install(); status != 0 || out != "wrote      "+pluginPath+"\nwrote      "+loopback+"\nwrote      "+confPath+"\n" {
		t.Fatalf("status %d, %q %q", status, out, stderr)
	}
	version := exec.Command(pluginPath)
	version.Env, version.Stdin = []string{"CNI_COMMAND=VERSION"}, strings.NewReader(`{"cniVersion":"1.0.0"}`)
	if out, err := version.Output(); err != nil || !bytes.Contains(out, []byte("supportedVersions")) {
		t.Errorf("the installed plugin says %q, %v", out, err)
	}
	if status, out, _ := install(); status != 0 || out != "unchanged  "+pluginPath+"\nunchanged  "+loopback+"\nunchanged  "+confPath+"\n" {
		t.Errorf("the second time: status %d, %q", status, out)
	}
	if out, err := exec.Command(loopback).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "CNI loopback plugin ") {
		t.Errorf("loopback says %q, %v", out, err)
	}
	write(loopback, "#!/bin/sh\n") // the reference's, say
	if status, out, _ := install(); status != 0 || strings.Contains(out, loopback) {
		t.Errorf("with another loopback: status %d, %q", status, out)
	}
	var found, said bytes.Buffer
	run(context.Background(), []string{"doctor", "--bin-dir", bin, conf}, func(string) string { return "" }, nil, &found, &said)
	if !strings.Contains(found.String(), "network web: nothing wrong") || !strings.Contains(found.String(), "usernet is "+pluginPath) {
		t.Errorf("usernet doctor: %s%s", found.String(), said.String())
	}

	write(confPath, `{"name":"web","plugins":[{"type":"usernet","mtu":1400}]}`)
	if status, _, stderr := install(); status != 1 || !strings.Contains(stderr, "--force replaces it") {
		t.Errorf("an edited configuration: status %d, %q", status, stderr)
	}
	if status, out, _ := install("--force"); status != 0 || !strings.Contains(out, "replaced   "+confPath) {
		t.Errorf("with --force: status %d, %q", status, out)
	}
	write(confPath, `{"name":"web","plugins":[{"type":"bridge"}]}`)
	if status, _, stderr := install("--force"); status != 1 || !strings.Contains(stderr, "not a configuration of type usernet") {
		t.Errorf("a foreign configuration: status %d, %q", status, stderr)
	}

	// A foreign program, and a fault of the second file, leave the first alone.
	os.RemoveAll(conf)
	write(pluginPath, "#!/bin/sh\n")
	if status, _, stderr := install(); status != 1 || !strings.Contains(stderr, pluginPath+" is not usernet's plugin") {
		t.Errorf("a foreign program: status %d, %q", status, stderr)
	}
	if _, err := os.Stat(conf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a configuration was written for it: %v", err)
	}
	os.Remove(pluginPath)
	write(conf, "in the way of the directory")
	if status, _, _ := install(); status != 1 {
		t.Errorf("a directory that cannot be made: status %d", status)
	}
	if _, err := os.Stat(pluginPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half an installation is left: %v", err)
	}
}
