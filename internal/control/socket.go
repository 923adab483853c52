package control

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SocketEnv names the environment variable that overrides [DefaultSocket].
const SocketEnv = "USERNET_SOCKET"

// maxSocketPath is the length of sockaddr_un.sun_path less its NUL (unix(7)).
const maxSocketPath = 107

// DefaultSocket returns the socket's path: $USERNET_SOCKET if set; for a
// caller that is not uid 0 of the initial user namespace
// $XDG_RUNTIME_DIR/usernet/usernet.sock, or without that variable
// /run/user/UID/usernet/usernet.sock; else /run/usernet/usernet.sock.
//
// uid 0 alone does not mean the system's daemon: rootless runtimes execute
// plugins as uid 0 of a user namespace, where /run is their own but
// XDG_RUNTIME_DIR is the real one.
func DefaultSocket() string {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		uidMap = []byte(identityMap) // no /proc: judge by the uid alone
	}
	return defaultSocket(os.Getenv, os.Geteuid(), string(uidMap))
}

// DefaultSystem reports whether this process is uid 0 of the initial user
// namespace: the defaults of paths are then the system's and not a user's.
func DefaultSystem() bool {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		uidMap = []byte(identityMap)
	}
	return isSystem(os.Geteuid(), strings.Fields(string(uidMap)))
}

func isSystem(uid int, uidMap []string) bool {
	return uid == 0 && strings.Join(uidMap, " ") == identityMap
}

const identityMap = "0 0 4294967295"

func defaultSocket(getenv func(string) string, uid int, uidMap string) string {
	if p := getenv(SocketEnv); p != "" {
		return p
	}
	fields := strings.Fields(uidMap)
	if isSystem(uid, fields) {
		return "/run/usernet/usernet.sock"
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "usernet", "usernet.sock")
	}
	return filepath.Join("/run/user", strconv.Itoa(outerUID(uid, fields)), "usernet", "usernet.sock")
}

// outerUID maps uid through a uid_map (lines of inside, outside, length) to
// what it is in the parent namespace; unmapped stays as it is.
func outerUID(uid int, fields []string) int {
	for ; len(fields) >= 3; fields = fields[3:] {
		inside, err1 := strconv.Atoi(fields[0])
		outside, err2 := strconv.Atoi(fields[1])
		length, err3 := strconv.Atoi(fields[2])
		if err1 == nil && err2 == nil && err3 == nil && uid >= inside && uid-inside < length {
			return outside + uid - inside
		}
	}
	return uid
}

// PeerCred returns who is at the other end, as the kernel recorded it at
// connect or listen.
func PeerCred(uc *net.UnixConn) (*unix.Ucred, error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	if cerr != nil {
		return nil, fmt.Errorf("peer credentials: %w", cerr)
	}
	return cred, nil
}
