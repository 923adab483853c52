package portowner

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is the holder of a port.
type Process struct {
	PID  int
	Name string // as the kernel knows it, at most 15 bytes; may be empty
}

// String is "nginx (pid 123)".
func (p Process) String() string {
	pid := "pid " + strconv.Itoa(p.PID)
	if p.Name == "" {
		return pid
	}
	return p.Name + " (" + pid + ")"
}

// Of finds a process whose socket keeps at from being bound: one on the same
// port, and on the same address or one of the two on all addresses. proto is
// "tcp" or "udp".
func Of(proto string, at netip.AddrPort) (Process, bool) {
	for _, holders := range All(proto, at) {
		if len(holders) > 0 {
			return holders[0], true
		}
	}
	return Process{}, false
}

// All returns, for each socket that keeps at from being bound, the processes
// that can be seen to hold it; none for a socket of which that is not known.
// An IPv6 address is judged as for a socket of IPv6 alone (IPV6_V6ONLY). Which
// sockets on all of IPv6 take IPv4 as well cannot be seen: all count.
func All(proto string, at netip.AddrPort) [][]Process {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	tables := []string{proto, proto + "6"}
	if at.Addr().Is6() {
		tables = tables[1:]
	}
	var inodes []string
	for _, table := range tables {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		inodes = append(inodes, boundInodes(f, proto == "tcp", at)...)
		f.Close()
	}
	return holders(inodes)
}

// Of proc_net_tcp(5): the columns of a line, and the state of a listener
// (TCP_LISTEN of linux/tcp_states.h). UDP sockets have no state that matters.
const (
	colLocal, colState, colInode = 1, 3, 9
	stateListen                  = "0A"
)

func boundInodes(table io.Reader, listening bool, at netip.AddrPort) (inodes []string) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		col := strings.Fields(lines.Text())
		if len(col) <= colInode || listening && col[colState] != stateListen {
			continue
		}
		local, ok := parseAddrPort(col[colLocal])
		if !ok || local.Port() != at.Port() {
			continue
		}
		if collide(local.Addr(), at.Addr()) {
			inodes = append(inodes, col[colInode])
		}
	}
	return inodes
}

// collide reports whether sockets on two addresses of one port can be in each
// other's way.
func collide(local, at netip.Addr) bool {
	switch {
	case local.Is4() == at.Is4():
		return local == at || local.IsUnspecified() || at.IsUnspecified()
	default:
		return local.Is6() && local.IsUnspecified() // may take IPv4, too
	}
}

// parseAddrPort reads "0100007F:1F90": the address in 32-bit words of the
// machine's byte order, the port as a number.
func parseAddrPort(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for w := raw; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok && err == nil
}

// holders finds the processes that hold each of some sockets.
func holders(inodes []string) [][]Process {
	if len(inodes) == 0 {
		return nil
	}
	all := make([][]Process, len(inodes))
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return all
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		n := slices.Index(inodes, strings.TrimSuffix(inode, "]"))
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if n < 0 || err != nil || slices.ContainsFunc(all[n], func(p Process) bool { return p.PID == pid }) {
			continue
		}
		// A process that ends meanwhile leaves its name empty.
		name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		all[n] = append(all[n], Process{PID: pid, Name: string(bytes.TrimSpace(name))})
	}
	return all
}
