package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usernet/usernet/internal/control"
)

// MaxFiles is the most descriptors one request may carry: one TUN and room
// for a runtime that expands a range of published ports into single ones.
const MaxFiles = 2048

// Peer is who is at the other end of a connection, as the kernel recorded it
// when the connection was made. UIDs are as seen from the daemon's user
// namespace.
type Peer struct {
	PID int
	UID uint32
	GID uint32
}

// Session is one client's connection.
type Session struct {
	Peer Peer
	ctx  context.Context
}

// Context ends when the connection is closed, by either side.
func (s *Session) Context() context.Context { return s.ctx }

// recvListener accepts connections that collect descriptors.
type recvListener struct {
	*net.UnixListener
	allowed func(uid uint32) bool
}

// Accept never fails for the fault of one client.
func (l *recvListener) Accept() (net.Conn, error) {
	for {
		uc, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := control.PeerCred(uc)
		if err != nil {
			uc.Close()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		return &recvConn{
			UnixConn: uc,
			session:  &Session{Peer: Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, ctx: ctx},
			allowed:  l.allowed(cred.Uid),
			cancel:   cancel,
		}, nil
	}
}

// recvConn collects the descriptors that come with the bytes it reads until a
// handler takes them.
type recvConn struct {
	*net.UnixConn
	session *Session
	allowed bool // false: every request is refused and no descriptor is received
	cancel  context.CancelFunc

	mu     sync.Mutex // guards the rest; net/http reads from a second goroutine while a handler runs
	oob    []byte
	files  []*os.File
	fault  *control.Error // why the descriptors of this connection cannot be trusted
	closed bool
}

// Read reads bytes and keeps the descriptors that come along.
func (c *recvConn) Read(b []byte) (int, error) {
	if !c.allowed || len(b) == 0 {
		return c.UnixConn.Read(b) // read(2) makes the kernel discard descriptors
	}
	c.mu.Lock()
	if c.oob == nil {
		c.oob = make([]byte, unix.CmsgSpace(control.MaxRights*4))
	}
	oob := c.oob
	c.mu.Unlock()
	// net/http has one reader at a time, so the buffer is not shared.
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob) // sets MSG_CMSG_CLOEXEC
	if oobn > 0 || flags&unix.MSG_CTRUNC != 0 {
		c.collect(oob[:oobn], flags)
	}
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err // recvmsg's -1 is no count
}

// collect takes the descriptors out of a control message. Any fault closes all
// that the connection holds: a request with half its descriptors is worth
// nothing.
func (c *recvConn) collect(oob []byte, flags int) {
	files, err := parseRights(oob)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files = append(c.files, files...)
	switch {
	case err != nil:
		c.fault = control.Errorf(control.CodeDescriptor, "control message: %v", err)
	case flags&unix.MSG_CTRUNC != 0:
		c.fault = control.Errorf(control.CodeDescriptor, "the kernel cut the descriptors short (MSG_CTRUNC): the daemon is at its limit of open files")
	case len(c.files) > MaxFiles:
		c.fault = control.Errorf(control.CodeDescriptor, "more than %d descriptors in one request", MaxFiles)
	}
	if c.fault != nil || c.closed {
		c.discardLocked()
	}
}

// parseRights returns the descriptors in a control message, also when it
// fails.
func parseRights(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		if len(msgs[i].Data)%4 != 0 { // the kernel writes whole ones, and unix.ParseUnixRights panics
			err = unix.EINVAL
			continue
		}
		fds, ferr := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("received descriptor %d", fd)))
		}
		if ferr != nil {
			err = ferr
		}
	}
	return files, err
}

// take hands over the collected descriptors when they are exactly want; else
// it closes them. The caller owns what it gets.
func (c *recvConn) take(want int) ([]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		err := c.fault
		c.discardLocked()
		return nil, err
	}
	if got := len(c.files); got != want {
		c.discardLocked()
		return nil, control.Errorf(control.CodeDescriptor, "the request names %s and %d came with it", plural(want, "descriptor"), got)
	}
	files := c.files
	c.files = nil
	return files, nil
}

// discard closes what no handler took and forgets the fault, which belonged
// to the request that ended.
func (c *recvConn) discard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.discardLocked()
	c.fault = nil
}

func (c *recvConn) discardLocked() {
	for _, f := range c.files {
		_ = f.Close() // nobody looked at it yet; nothing can be lost
	}
	c.files = nil
}

// Close ends the connection and the session.
func (c *recvConn) Close() error {
	err := c.UnixConn.Close()
	c.cancel()
	c.mu.Lock()
	c.closed = true
	c.discardLocked()
	c.mu.Unlock()
	return err
}

// allowUID returns the rule for SO_PEERCRED: the daemon's own uid or root.
// The overflow uid is refused whoever the daemon is.
func allowUID(euid int) func(uint32) bool {
	overflow := overflowUID()
	return func(uid uint32) bool {
		return uid != overflow && (uid == 0 || int(uid) == euid)
	}
}

// overflowUID is how the kernel shows every uid that has no name in the daemon's
// user namespace: it could be anybody.
func overflowUID() uint32 {
	overflow := uint32(65534)
	if b, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		// Unreadable or odd: keep the kernel's default (linux/highuid.h).
		_, _ = fmt.Sscanf(strings.TrimSpace(string(b)), "%d", &overflow)
	}
	return overflow
}

func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// readHeaderTimeout bounds how long a client may take over a request's head.
const readHeaderTimeout = 10 * time.Second
