package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// The files that are generated for a sandbox.
const (
	resolvConfPath = "/etc/resolv.conf"
	hostsPath      = "/etc/hosts"
)

// maxNameservers is how many the C library reads (MAXNS in resolv.h).
const maxNameservers = 3

// loopbackHosts stands in for a machine's hosts file that does not exist.
const loopbackHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// nameFiles makes what the sandbox has in place of the machine's files.
func nameFiles(s Settings, cfg Config) (map[string][]byte, error) {
	files := map[string][]byte{}
	machine, err := os.ReadFile(hostsPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		machine = []byte(loopbackHosts)
	case err != nil:
		return nil, err
	}
	files[hostsPath] = hostsFile(machine, s, cfg)
	if len(s.Nameservers) > 0 {
		files[resolvConfPath] = resolvConf(s)
	}
	return files, nil
}

// hostsFile puts the sandbox's own entries before the machine's: the first
// match counts (hosts(5)).
func hostsFile(machine []byte, s Settings, cfg Config) []byte {
	var b bytes.Buffer
	for _, h := range cfg.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, h.Name)
	}
	for _, a := range s.Addrs {
		fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), cfg.Name)
	}
	b.Write(machine)
	return b.Bytes()
}

// resolvConf writes s as resolv.conf(5) has it.
func resolvConf(s Settings) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by usernet for this sandbox only.\n")
	for i, n := range s.Nameservers {
		if i == maxNameservers {
			break
		}
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(s.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.Search, " "))
	}
	if len(s.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(s.Options, " "))
	}
	return b.Bytes()
}

// hostSearch returns the machine's own search domains and resolver options, so
// that short names mean in the sandbox what they mean outside.
func hostSearch(resolvConf []byte) (search, options []string) {
	for line := range strings.Lines(string(resolvConf)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "search", "domain":
			search = fields[1:] // the last one counts
		case "options":
			options = append(options, fields[1:]...)
		}
	}
	return search, options
}

// ParseHostEntry reads NAME:IP, the argument of --add-host. The address of IPv6
// may be in brackets.
func ParseHostEntry(s string) (HostEntry, error) {
	name, addr, ok := strings.Cut(s, ":")
	if !ok || name == "" || addr == "" {
		return HostEntry{}, fmt.Errorf("add host %q: write it as NAME:ADDRESS, as in db:10.0.0.5", s)
	}
	if strings.ContainsAny(name, " \t#/") {
		return HostEntry{}, fmt.Errorf("add host %q: %q is not a host name", s, name)
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]"))
	if err != nil || a.Zone() != "" {
		return HostEntry{}, fmt.Errorf("add host %q: %q is not an IP address; write it as NAME:ADDRESS, as in db:10.0.0.5", s, addr)
	}
	return HostEntry{Name: name, Addr: a.Unmap()}, nil
}
