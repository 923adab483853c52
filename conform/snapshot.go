package conform

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/netns"
)

// snapshot is what can be seen of a namespace, one fact a line: interfaces,
// addresses, routes, listening sockets, and firewall rules where the tools that
// print them are installed.
type snapshot map[string]bool

// look takes a snapshot of a namespace.
func look(ns *netns.Handle) (snapshot, error) {
	s := snapshot{}
	err := ns.Do(func() error {
		for _, part := range []func() error{s.interfaces, s.routes4, s.routes6, s.sockets} {
			if err := part(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at namespace %v: %w", ns, err)
	}
	s.rules(ns)
	return s, nil
}

func (s snapshot) add(format string, args ...any) { s[fmt.Sprintf(format, args...)] = true }

// more lists, sorted, what has come since an earlier snapshot.
func (s snapshot) more(earlier snapshot) []string {
	var lines []string
	for line := range s {
		if !earlier[line] {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// interfaces notes names and addresses. Link-local IPv6 addresses come and go by
// themselves, so they are left out.
func (s snapshot) interfaces() error {
	list, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range list {
		s.add("interface %s", i.Name)
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface went meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				s.add("address %s on %s", n, i.Name)
			}
		}
	}
	return nil
}

// fields calls fn for each line of a file of the current namespace.
func fields(name string, fn func(f []string)) error {
	file, err := os.Open("/proc/thread-self/net/" + name)
	if err != nil {
		if os.IsNotExist(err) { // the kernel has no IPv6
			return nil
		}
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fn(strings.Fields(lines.Text()))
	}
	return lines.Err()
}

// routes4 notes the main table's IPv4 routes.
func (s snapshot) routes4() error {
	return fields("route", func(f []string) {
		if len(f) < 8 || f[0] == "Iface" {
			return
		}
		mask, err := hex.DecodeString(f[7])
		if err != nil {
			return
		}
		slices.Reverse(mask) // the kernel prints it as a number of this machine
		ones, _ := net.IPMask(mask).Size()
		s.add("route %s/%d via %s dev %s", hexAddr(f[1]), ones, hexAddr(f[2]), f[0])
	})
}

// routes6 notes the IPv6 routes, all tables in one, without the link-local and
// multicast ones that come with an interface.
func (s snapshot) routes6() error {
	return fields("ipv6_route", func(f []string) {
		if len(f) < 10 {
			return
		}
		dst, err := hex.DecodeString(f[0])
		bits, err2 := hex.DecodeString(f[1])
		if err != nil || err2 != nil || len(bits) != 1 || f[9] == "lo" {
			return
		}
		addr, _ := netip.AddrFromSlice(dst)
		if addr.IsLinkLocalUnicast() || addr.IsMulticast() {
			return
		}
		s.add("route %s/%d via %s dev %s", addr, bits[0], hexAddr(f[4]), f[9])
	})
}

// sockets notes what listens.
func (s snapshot) sockets() error {
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		err := fields(proto, func(f []string) {
			const listening, unconnected = "0A", "07"
			if len(f) > 3 && (f[3] == listening || f[3] == unconnected) {
				addr, port, _ := strings.Cut(f[1], ":")
				s.add("socket %s %s port 0x%s", proto, socketAddr(addr), port)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hexAddr decodes an address of a route: the kernel prints IPv4 as a number of
// this machine, IPv6 byte by byte. Text that is none is returned as it is.
func hexAddr(text string) string {
	if len(text) == 2*net.IPv4len {
		return socketAddr(text)
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		return text
	}
	return address(b, text)
}

// socketAddr decodes an address of a socket: 32-bit numbers of this machine,
// one or four.
func socketAddr(text string) string {
	b, err := hex.DecodeString(text)
	if err != nil || len(b)%4 != 0 {
		return text
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return address(b, text)
}

func address(b []byte, text string) string {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return text
	}
	return addr.String()
}

// rules notes firewall rules. The tools are the only way to read them without
// knowing which kernel interface a plugin uses; what is not installed is not
// looked at.
func (s snapshot) rules(ns *netns.Handle) {
	for _, argv := range [][]string{{"nft", "-s", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			continue
		}
		cmd := exec.Command(path, argv[1:]...)
		out := &strings.Builder{}
		cmd.Stdout = out
		if ns.Do(cmd.Start) != nil || cmd.Wait() != nil {
			continue // not permitted, or no such family here
		}
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "-A ") || argv[0] == "nft" && strings.ContainsAny(line, " ") {
				s.add("%s rule %s", argv[0], line)
			}
		}
	}
}
