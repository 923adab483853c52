package plugin

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner says who has a host port: "by process 123 (nginx)", or "" where
// that cannot be seen. It reads what ss(8) reads: the socket tables of the
// current namespace, and the descriptors of every process that the caller may
// look at. It is for an error message, so every fault on the way is "unknown".
func portOwner(proto string, at netip.AddrPort) string {
	var inodes []string
	for _, table := range []string{proto, proto + "6"} {
		inodes = append(inodes, boundInodes("/proc/thread-self/net/"+table, proto == "tcp", at)...)
	}
	for _, inode := range inodes {
		pid := socketHolder(inode)
		switch {
		case pid == 0:
		case pid == os.Getpid():
			return "by another entry of the same portMappings"
		default:
			return fmt.Sprintf("by process %d (%s)", pid, processName(pid))
		}
	}
	return ""
}

// boundInodes returns the inodes of the sockets that keep at from being bound:
// of its port, at its address or the unspecified one (proc_net_tcp(5)).
func boundInodes(path string, listening bool, at netip.AddrPort) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var inodes []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st queues tr retrnsmt uid timeout inode
		col := strings.Fields(lines.Text())
		const listen = "0A" // TCP_LISTEN of linux/tcp_states.h
		if len(col) < 10 || listening && col[3] != listen {
			continue
		}
		local, ok := parseProcAddr(col[1])
		if !ok || local.Port() != at.Port() {
			continue
		}
		if local.Addr().IsUnspecified() || at.Addr().IsUnspecified() || local.Addr().Unmap() == at.Addr() {
			inodes = append(inodes, col[9])
		}
	}
	return inodes
}

// parseProcAddr parses "0100007F:1F90": 32-bit words in the machine's byte
// order, then the port as a number.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for w := raw; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr, uint16(p)), err == nil
}

// socketHolder returns a process that holds a socket, or 0.
func socketHolder(inode string) int {
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == want {
			pid, err := strconv.Atoi(strings.Split(link, "/")[2])
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

// processName returns what the kernel calls a process.
func processName(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(string(b))
}
