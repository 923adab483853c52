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
	for _, table := range []string{proto, proto + "6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		inodes := boundInodes(f, proto == "tcp", at)
		f.Close()
		for _, inode := range inodes {
			if p, ok := holder(inode); ok {
				return p, true
			}
		}
	}
	return Process{}, false
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
		if local.Addr() == at.Addr().Unmap() || local.Addr().IsUnspecified() || at.Addr().IsUnspecified() {
			inodes = append(inodes, col[colInode])
		}
	}
	return inodes
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

// holder finds a process that holds a socket.
func holder(inode string) (Process, bool) {
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return Process{}, false
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != want {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			continue
		}
		// A process that ends meanwhile leaves its name empty.
		name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		return Process{PID: pid, Name: string(bytes.TrimSpace(name))}, true
	}
	return Process{}, false
}
