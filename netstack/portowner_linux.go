package netstack

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner names the process that holds a host port, as "nginx (pid 123)";
// empty if it cannot be told, for the process belongs to somebody else or has
// gone. It reads /proc, so it is for errors, not for packets.
func portOwner(proto string, host netip.AddrPort) string {
	inode := socketInode(proto, host)
	if inode == "" {
		return ""
	}
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != want {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "pid " + pid
		}
		return fmt.Sprintf("%s (pid %s)", bytes.TrimSpace(name), pid)
	}
	return ""
}

// socketInode finds the socket that stands in the way of host: one bound to the
// same port and to the same address, or one of the two to all addresses.
func socketInode(proto string, host netip.AddrPort) string {
	for _, file := range []string{"/proc/net/" + proto, "/proc/net/" + proto + "6"} {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		inode := scanSockets(bufio.NewScanner(f), proto, host)
		f.Close()
		if inode != "" {
			return inode
		}
	}
	return ""
}

// Of proc_net_tcp(5): columns, and the state of a listening socket. A UDP
// socket that is bound and not connected has state 07.
const (
	procLocal, procState, procInode = 1, 3, 9
	procTCPListen, procUDPBound     = "0A", "07"
)

func scanSockets(lines *bufio.Scanner, proto string, host netip.AddrPort) string {
	state := procTCPListen
	if proto == "udp" {
		state = procUDPBound
	}
	for lines.Scan() {
		col := strings.Fields(lines.Text())
		if len(col) <= procInode || col[procState] != state {
			continue
		}
		local, ok := parseProcAddr(col[procLocal])
		if !ok || local.Port() != host.Port() {
			continue
		}
		if local.Addr() == host.Addr() || local.Addr().IsUnspecified() || host.Addr().IsUnspecified() {
			return col[procInode]
		}
	}
	return ""
}

// parseProcAddr reads "0100007F:1F90": the address in words of the machine's
// byte order, the port as a number.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(addr)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok && err == nil
}
