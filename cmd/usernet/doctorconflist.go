package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/usernet/usernet/internal/cnilint"
	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/podman"
	"github.com/usernet/usernet/plugin"
)

// lintConflists judges network configurations and prints what was found.
func (a *app) lintConflists(ctx context.Context, paths, binDirs []string) error {
	files, unreadable := readConflists(paths)
	set := cnilint.Parse(files)
	findings := append(unreadable, set.Lint(a.conflistFacts(ctx, set, binDirs))...)
	if a.json {
		if err := a.printJSON(findings); err != nil {
			return err
		}
	} else {
		a.printFindings(findings)
	}
	if slices.ContainsFunc(findings, func(f cnilint.Finding) bool { return f.Severity == cnilint.Error }) {
		return &statusError{status: statusFailure}
	}
	return nil
}

// readConflists reads files and directories of them. What cannot be read is a
// finding, so that the others are still judged.
func readConflists(paths []string) (files []cnilint.File, findings []cnilint.Finding) {
	fault := func(path, what, fix string) {
		findings = append(findings, cnilint.Finding{Severity: cnilint.Error, Check: "read", File: path, What: what, Fix: fix})
	}
	read := func(path, dir string) {
		data, err := os.ReadFile(path)
		if err != nil {
			fault(path, err.Error(), "correct the path, or its permissions")
			return
		}
		files = append(files, cnilint.File{Path: path, Data: data, Dir: dir})
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || !info.IsDir() {
			read(path, "")
			continue
		}
		entries, err := os.ReadDir(path) // sorted, as runtimes sort
		if err != nil {
			fault(path, err.Error(), "correct its permissions")
			continue
		}
		before := len(files)
		for _, e := range entries {
			if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
				read(filepath.Join(path, e.Name()), path)
			}
		}
		if len(files) == before {
			fault(path, "no *.conflist in it: runtimes find no network", "usernet cni install --conf-dir "+path)
		}
	}
	return files, findings
}

// pluginDirs are where plugins are looked for unless --bin-dir says it: where
// podman is told to, else where podman, containerd and others do by default.
func (a *app) pluginDirs(p *cnilint.Podman) []string {
	if p != nil && len(p.PluginDirs) > 0 {
		return p.PluginDirs
	}
	dirs := []string{"/opt/cni/bin", "/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni"}
	if own, _ := a.cniDirs(); !slices.Contains(dirs, own) {
		dirs = append([]string{own}, dirs...)
	}
	return dirs
}

// conflistFacts looks up what the rules ask of the machine.
func (a *app) conflistFacts(ctx context.Context, set *cnilint.Set, binDirs []string) cnilint.Facts {
	rootful := podmanAsRoot(os.DirFS("/"), a.getenv)
	if len(binDirs) == 0 {
		binDirs = a.pluginDirs(rootful)
	}
	f := cnilint.Facts{
		Keys: plugin.Keys(), Versions: plugin.SupportedVersions, Judge: plugin.Judge, PublishMode: plugin.DefaultPublishMode,
		BinDirs: binDirs, Binaries: make(map[string]cnilint.Binary), Sockets: make(map[string]cnilint.Daemon),
		TUN: tunDevice(), Podman: rootful, DHCP: make(map[string]bool),
	}
	for _, typ := range set.Types() {
		if b, ok := findBinary(binDirs, typ); ok {
			b.Versions = spokenBy(ctx, b)
			f.Binaries[typ] = b
		}
	}
	for _, path := range set.Sockets() {
		f.Sockets[path] = a.daemonAt(ctx, path)
	}
	for _, path := range set.DHCPSockets() {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if f.DHCP[path] = err == nil; err == nil {
			conn.Close()
		}
	}
	_, err := exec.LookPath("usernet")
	f.NoProgram = err != nil
	return f
}

func findBinary(dirs []string, typ string) (cnilint.Binary, bool) {
	for _, dir := range dirs {
		path := filepath.Join(dir, typ)
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		return cnilint.Binary{
			Path: path, Ours: isOwnPlugin(path, nil) == nil,
			NotExecutable: !info.Mode().IsRegular() || info.Mode()&0o111 == 0,
		}, true
	}
	return cnilint.Binary{}, false
}

// versionTime is how long a plugin may take to tell its versions.
const versionTime = 3 * time.Second

// spokenBy asks another's plugin which versions it speaks, as runtimes do before
// they use one. What does not answer as a plugin is judged by its other faults.
func spokenBy(ctx context.Context, b cnilint.Binary) []string {
	if b.Ours || b.NotExecutable {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	versions, err := plugin.VersionsOf(ctx, b.Path)
	if err != nil {
		return nil
	}
	return versions
}

// daemonAt asks the daemon at a configuration's socket; "" is the default.
func (a *app) daemonAt(ctx context.Context, path string) cnilint.Daemon {
	d := cnilint.Daemon{Path: path}
	if path == "" {
		d.Path = a.socketPath()
	}
	if d.Path == "" {
		d.Path = control.DefaultSocket()
	}
	status, err := control.Dial(d.Path).Status(ctx, "")
	switch {
	case errors.Is(err, control.ErrNotRunning):
	case err != nil:
		d.Problem = err.Error()
	case !status.Ready:
		d.Problem = "the daemon is not ready"
		for _, p := range status.Problems {
			d.Problem += ": " + p.Message
		}
	default:
		d.Running = true
		d.About = fmt.Sprintf("%s, pid %d", status.Version, status.PID)
	}
	return d
}

func tunDevice() *cnilint.Device {
	info, err := os.Stat("/dev/net/tun")
	if err != nil {
		return &cnilint.Device{Missing: errors.Is(err, fs.ErrNotExist), Mode: err.Error()}
	}
	return &cnilint.Device{ForAll: info.Mode()&0o006 == 0o006, Mode: fmt.Sprintf("%#o", info.Mode().Perm())}
}

// podmanAsRoot is what root's podman is told; nil if there is none, or if it is
// told what it will itself complain of.
func podmanAsRoot(root fs.FS, getenv func(string) string) *cnilint.Podman {
	if _, err := fs.Stat(root, "usr/bin/podman"); err != nil {
		return nil
	}
	r, err := podman.ReadReservation(root, getenv)
	if err != nil {
		return nil
	}
	dirs, err := podman.ReadPluginDirs(root, getenv)
	if err != nil {
		return nil
	}
	return &cnilint.Podman{Reserves: r.On, File: r.File, PluginDirs: dirs}
}

// printFindings writes for people; the texts quote files, so that what a
// terminal would obey is taken out.
func (a *app) printFindings(findings []cnilint.Finding) {
	p := a.painter(a.stdout)
	colours := map[cnilint.Severity]string{cnilint.OK: green, cnilint.Warning: yellow, cnilint.Error: red}
	count := make(map[cnilint.Severity]int)
	for _, f := range findings {
		count[f.Severity]++
		at := f.File
		if w := f.Where(); w != "" && at != "" {
			at += ": " + w
		} else if w != "" {
			at = w
		}
		fmt.Fprintf(a.stdout, "%s  %s\n         %s\n", p.paint(colours[f.Severity], fmt.Sprintf("%-7s", f.Severity)), printable(at), printable(f.What))
		if f.Fix != "" {
			fmt.Fprintf(a.stdout, "         %s\n", p.paint(bold, "-> "+printable(f.Fix)))
		}
	}
	fmt.Fprintf(a.stdout, "errors: %d, warnings: %d\n", count[cnilint.Error], count[cnilint.Warning])
}

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
