package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxRights is SCM_MAX_FD (linux/net/scm.h): the most descriptors one message
// may carry.
const maxRights = 253

// session is one connection to the daemon, dialled by its first request. It
// never dials twice: what the daemon holds for the connection is gone with it,
// so a silent second connection would only hide that.
type session struct {
	path      string
	transport *http.Transport

	mu     sync.Mutex
	dialed bool
	files  []*os.File // not sent yet; owned by the caller
}

func newSession(path string, files []*os.File) *session {
	s := &session{path: path, files: files}
	s.transport = &http.Transport{
		DialContext:        s.dial,
		MaxConnsPerHost:    1,
		DisableCompression: true,
	}
	return s
}

func (s *session) close() { s.transport.CloseIdleConnections() }

func (s *session) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	if s.dialed {
		s.mu.Unlock()
		return nil, ErrConnectionLost
	}
	s.dialed = true
	files := s.files
	s.files = nil
	s.mu.Unlock()
	if len(s.path) > maxSocketPath {
		return nil, Errorf(CodeInvalid, "socket path %q has %d bytes, the kernel's limit is %d", s.path, len(s.path), maxSocketPath)
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, err
	}
	uc := c.(*net.UnixConn)
	if err := checkServer(uc); err != nil {
		uc.Close()
		return nil, err
	}
	return &sendConn{UnixConn: uc, files: files}, nil
}

// checkServer refuses to hand descriptors to a daemon of somebody else, who
// may have taken the path first.
func checkServer(uc *net.UnixConn) error {
	cred, err := peerCred(uc)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("served by uid %d, this is uid %d: %w", cred.Uid, os.Geteuid(), ErrForeign)
	}
	return nil
}

// explain turns a transport's error into one that says what to do.
func (s *session) explain(ctx context.Context, err error) error {
	var ce *Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("socket %s: %w", s.path, context.Cause(ctx))
	case errors.As(err, &ce):
		return ce
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("socket %s: %w; start it with \"usernet daemon --socket %s\" or set USERNET_SOCKET", s.path, ErrNotRunning, s.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("socket %s belongs to another user: %w; run as that user or set USERNET_SOCKET", s.path, err)
	case errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EPROTOTYPE), strings.Contains(err.Error(), "malformed HTTP"):
		return fmt.Errorf("socket %s: %w (%w); set USERNET_SOCKET or --socket to the daemon's socket", s.path, ErrForeign, err)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("socket %s: %w before it replied: %w", s.path, ErrConnectionLost, err)
	}
	return fmt.Errorf("socket %s: %w", s.path, err)
}

// sendConn sends its files with the first bytes that are written.
type sendConn struct {
	*net.UnixConn
	files []*os.File // touched by the transport's one writing goroutine only
}

// Write sends b, and with its first bytes the files, at most maxRights per
// message. net/http writes a request from one goroutine.
func (c *sendConn) Write(b []byte) (int, error) {
	sent := 0
	for len(c.files) > 0 && len(b) > sent {
		batch := c.files[:min(len(c.files), maxRights)]
		// One byte per message while more messages must follow: a stream
		// socket carries rights only on data.
		end := len(b)
		if len(c.files) > len(batch) {
			end = sent + 1
		}
		var n int
		err := withFDs(batch, nil, func(fds []int) (err error) {
			n, _, err = c.WriteMsgUnix(b[sent:end], unix.UnixRights(fds...), nil)
			return err
		})
		sent += n
		if err != nil {
			return sent, err
		}
		c.files = c.files[len(batch):]
	}
	if sent == len(b) {
		return sent, nil
	}
	n, err := c.UnixConn.Write(b[sent:])
	return sent + n, err
}

// withFDs calls fn with the files' descriptors while none of them can be
// closed. File.Fd would not do: it makes the open file description blocking,
// and the daemon shares that.
func withFDs(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("send descriptor %s: %w", files[0].Name(), err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) {
		ferr = withFDs(files[1:], append(fds, int(fd)), fn)
	}); err != nil {
		return fmt.Errorf("send descriptor %s: %w", files[0].Name(), err)
	}
	return ferr
}
